"""Imports inside the package flow one way: no circles, and none from a lower layer to a higher one."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "skcds"
# From the lowest; a module belongs to the longest name that it starts with.
LAYERS = [
    ["_version", "_support"],
    ["io"],
    ["density"],
    ["models"],
    ["train"],
    ["explore"],
    ["metrics"],
    ["weights"],
    ["estimators"],
    ["targets", "adapters", "plotting"],
    ["importance", "diagnosis", "specifications"],  # public names of modules further down
    ["", "__main__"],
]


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, modules):
    """Modules of the package that a file imports, in functions too."""
    here = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                yield inner if inner in modules else ".".join(base)
        names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        yield from (name.partition(".")[2] for name in names if name.partition(".")[0] == "skcds")


def graph(root=ROOT):
    paths = {module_of(path): path for path in sorted(root.rglob("*.py"))}
    return {module: set(imports_of(path, paths)) - {module} for module, path in paths.items()}


def layer_of(module):
    names = [(len(name), k) for k, layer in enumerate(LAYERS) for name in layer if f"{module}.".startswith(f"{name}.")]
    return max(names)[1] if module else len(LAYERS) - 1


def test_there_is_no_circle():
    imports = graph()
    order = list(graphlib.TopologicalSorter(imports).static_order())
    assert {"io.reader", "estimators.base", "density.energy"} <= set(order)
    assert "io.writer" in imports["estimators.pickling"]


def test_imports_go_down():
    pairs = [(module, name) for module, names in graph().items() for name in names]
    assert not [(module, name) for module, name in pairs if layer_of(name) > layer_of(module)]


def test_every_module_has_a_layer():
    assert all(layer_of(module) is not None for module in graph())
    with pytest.raises(ValueError):
        layer_of("nowhere")


def test_a_circle_is_found():
    imports = graph()
    imports["io.reader"].add("estimators.base")
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(imports).static_order())
