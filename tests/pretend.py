"""A device that is none, for tests of what has to be where when there is no GPU.

Its tensors are on the CPU, and say that they are on the device ``pretend``. Every operation on them runs on the CPU,
and what PyTorch refuses on a GPU is refused here: tensors of two devices in one operation (but for single numbers), and
NumPy arrays of a tensor that is elsewhere. It is stricter where CUDA takes an index from the CPU.
"""

__all__ = ["NAME", "Generator", "install"]

import functools

import torch
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device; ``raw`` is what it has on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        tensor.raw = raw
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, *args, **(kwargs or {}))


def _run(operation, *args, **kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = any(isinstance(tensor, OnDevice) for tensor in tensors)
    name = operation.name().removeprefix("aten::").partition(".")[0]
    strangers = [tuple(t.shape) for t in tensors if here and t.ndim and not isinstance(t, OnDevice)]
    if strangers and name not in ("_to_copy", "copy_"):
        raise RuntimeError(f"{name} was given tensors of two devices: those of shapes {strangers} are on the CPU.")
    to = kwargs.get("device")
    if to is not None:
        kwargs["device"] = "cpu"
    args, kwargs = tree_map(lambda leaf: leaf.raw if isinstance(leaf, OnDevice) else leaf, (args, kwargs))
    result = operation(*args, **kwargs)
    if name.endswith("_") or "out" in kwargs:  # in place
        changed = [t for t in tensors if isinstance(t, OnDevice) and t.shape != t.raw.shape]
        if changed:
            raise NotImplementedError(f"{name} changes a size in place: add it to DIRECT.")
        return tensors[0] if result is not None else None
    leaves_device = name == "_local_scalar_dense" or (to is not None and torch.device(to).type == "cpu")
    if leaves_device or not (here or to is not None):
        return result
    return tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)


# What PyTorch would put together of operations that change sizes in place.
DIRECT = ["arange", "arange.start", "arange.start_step", "eye", "eye.m", "quantile", "quantile.scalar"]


class Generator(torch.Generator):
    """What stands in for ``torch.Generator``: one of the CPU that says it is on the device, if that is asked for."""

    device = None  # set by `install`

    def __new__(cls, device="cpu"):
        return super().__new__(cls) if torch.device(device).type == NAME else torch._C.Generator(device)


@functools.cache
def install() -> None:
    """Make the device known to PyTorch, for the whole process; raises ImportError where PyTorch cannot."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    fallback, direct = (torch.library.Library(name, "IMPL") for name in ("_", "aten"))
    install.kept = fallback, direct  # they undo what they did when they are collected
    fallback.fallback(_run, "PrivateUse1")
    for name in DIRECT:
        operation, _, overload = name.partition(".")
        packet = getattr(torch.ops.aten, operation)
        direct.impl(name, functools.partial(_run, getattr(packet, overload or "default")), "PrivateUse1")
    Generator.device = torch.device(NAME, 0)
