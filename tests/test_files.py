"""Files are replaced whole, where a link leads, with the permissions that they have, or not at all."""

import errno
import json
import os
import stat

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samplers import KINDS, fitted, quadratic

import skcds
from skcds.io.files import DamagedFileError, check_hash, open_arrays, read_header, replace_file, seal
from skcds.io.plain import described, from_plain, to_plain

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
posix = pytest.mark.skipif(os.name == "nt", reason="links and permissions of POSIX")


def save(path):
    fitted(KINDS[0]).save(path)


def checkpoint(path):
    sampler = skcds.DiffusionSampler(3, n_steps=4, max_iter=1, random_state=0, start="prior")
    sampler.fit(quadratic, checkpoint=path)


WRITERS = {"save": save, "checkpoint": checkpoint, "replace_file": lambda path: replace_file(path, b"new")}
each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


class TestReplaceFile:
    def test_leaves_nothing_behind(self, tmp_path):
        replace_file(tmp_path / "a", b"one")
        replace_file(tmp_path / "a", b"two")
        assert (tmp_path / "a").read_bytes() == b"two" and os.listdir(tmp_path) == ["a"]

    @pytest.mark.parametrize("name", ["a" * 250, "ä" * 120, "with space", ".hidden"])
    def test_names(self, name, tmp_path):
        replace_file(tmp_path / name, b"one")
        assert (tmp_path / name).read_bytes() == b"one"

    def test_a_relative_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        replace_file("a", b"one")
        assert (tmp_path / "a").read_bytes() == b"one"


@posix
class TestLinks:
    @each_writer
    @pytest.mark.parametrize("relative", [True, False])
    @pytest.mark.parametrize("exists", [True, False])
    def test_the_link_stays(self, write, relative, exists, tmp_path):
        target = tmp_path / "data" / "target"
        target.parent.mkdir()
        if exists and write is not checkpoint:  # which would have to be able to read it
            target.write_bytes(b"old")
            target.chmod(0o640)
        link = tmp_path / "link"
        link.symlink_to("data/target" if relative else target)
        second = tmp_path / "second"
        second.symlink_to("link")
        write(second)
        assert link.is_symlink() and second.is_symlink() and not target.is_symlink()
        assert target.read_bytes() not in (b"", b"old")
        assert mode(target) == 0o640 or not exists or write is checkpoint
        assert os.listdir(target.parent) == ["target"] and sorted(os.listdir(tmp_path)) == ["data", "link", "second"]

    @each_writer
    def test_that_lead_to_themselves(self, write, tmp_path):
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        with pytest.raises(OSError) as caught:
            write(tmp_path / "a")
        assert caught.value.errno == errno.ELOOP and (tmp_path / "a").is_symlink()


class TestPlaces:
    @each_writer
    @pytest.mark.parametrize("folder", ["none", "none/at/all"])
    def test_folder_that_is_not_there(self, write, folder, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such folder") as caught:
            write(tmp_path / folder / "a")
        assert caught.value.filename == str(tmp_path / folder)
        assert os.listdir(tmp_path) == []

    @each_writer
    def test_folder_that_is_a_file(self, write, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(NotADirectoryError, match="no folder") as caught:
            write(tmp_path / "file" / "a")
        assert caught.value.filename == str(tmp_path / "file")

    @each_writer
    def test_folder_in_place_of_a_file(self, write, tmp_path):
        with pytest.raises(IsADirectoryError, match="This is a folder"):
            write(tmp_path)
        assert os.listdir(tmp_path) == []

    @posix
    @each_writer
    def test_pipe(self, write, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="device or a pipe"):
            write(tmp_path / "pipe")
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)

    def test_folder_that_cannot_be_written_into(self, tmp_path, monkeypatch):
        """The sentence names the folder, and no hidden file."""

        def refuse(path, *args):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(PermissionError, match="writing into this folder") as caught:
            replace_file(tmp_path / "a", b"")
        assert caught.value.filename == str(tmp_path)


@posix
class TestPermissions:
    @pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
    def test_the_process_mask_holds(self, mask, tmp_path):
        before = os.umask(mask)
        try:
            replace_file(tmp_path / "a", b"")
        finally:
            os.umask(before)
        assert mode(tmp_path / "a") == 0o666 & ~mask

    def test_the_process_mask_is_left_alone(self, tmp_path, monkeypatch):
        """It is the same for all threads."""
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the mask was changed"))
        replace_file(tmp_path / "a", b"")

    @pytest.mark.parametrize("old", [0o600, 0o644, 0o666, 0o400])
    def test_never_wider_than_those_of_the_old_file(self, old, tmp_path, monkeypatch):
        path, seen, fsync = tmp_path / "a", [], os.fsync
        path.write_bytes(b"old")
        path.chmod(old)

        def look(handle):
            seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", look)
        replace_file(path, b"new")
        assert seen == [old] and mode(path) == old and path.read_bytes() == b"new"


class TestSeal:
    arrays = {"x": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 2)), "flag": np.array(True)}

    def test_there_and_back(self):
        raw = seal("kind", {"format": 1, "x": 0.1}, self.arrays)
        check_hash(raw)
        content, shapes = read_header(raw, "kind")
        assert content == {"format": 1, "x": 0.1} and shapes["x"] == ("F64", (2, 3))
        back = open_arrays(raw)
        assert all(np.array_equal(back[name], array) for name, array in self.arrays.items())

    def test_any_other_byte(self):
        raw = seal("kind", {"format": 1}, self.arrays)
        for place in range(len(raw)):
            changed = bytearray(raw)
            changed[place] ^= 1
            with pytest.raises(DamagedFileError):
                check_hash(bytes(changed))

    def test_another_kind(self):
        with pytest.raises(DamagedFileError, match="no safetensors file that skcds wrote"):
            read_header(seal("kind", {"format": 1}, {}), "another")


def same(a, b):
    """Whether two states are one, types, bits and the order of axes in memory included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        layout = a.shape == b.shape and (a.stride() == b.stride() or not a.numel())
        return a.dtype == b.dtype and layout and a.numpy().tobytes("A") == b.numpy().tobytes("A")
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


class TestPlain:
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)

    @given(
        st.recursive(
            scalars,
            lambda inner: (
                st.lists(inner)
                | st.tuples(inner, inner)
                | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
            ),
        )
    )
    def test_plain_values(self, value):
        assert same(from_plain(json.loads(json.dumps(to_plain(value, {}))), {}), value)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
    @pytest.mark.parametrize(
        "shape, order", [((), ()), ((4,), (0,)), ((3, 4), (1, 0)), ((2, 3, 4), (2, 0, 1)), ((0,), (0,))]
    )
    def test_tensors(self, dtype, shape, order):
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(9).to(dtype).permute(order)
        arrays = {}
        plain = to_plain({"a": [tensor, tensor.numpy()]}, arrays)
        raw = seal("kind", {"format": 1, "x": plain}, arrays)
        back = from_plain(read_header(raw, "kind")[0]["x"], open_arrays(raw))
        assert same(back["a"][0], tensor) and np.array_equal(back["a"][1], tensor.numpy())

    def test_what_is_not_plain(self):
        with pytest.raises(TypeError, match="of type object"):
            to_plain({"a": object()}, {})

    @pytest.mark.parametrize("value", [None, True, False, "text", 3, 0.5, [None, True, "text"]])
    def test_plain_values_are_described_by_themselves(self, value):
        found = described(value)
        assert found == value and type(found) is type(value)

    @pytest.mark.parametrize("value", [float("nan"), np.float64("nan"), [float("nan")] * 30])
    def test_nan_is_itself(self, value):
        assert described(value) == described(value)
