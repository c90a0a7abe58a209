"""Files that are written whole or not at all: arrays and plain values as safetensors, with a hash of both."""

__all__ = [
    "BLANK",
    "MARK",
    "DamagedFileError",
    "check_hash",
    "check_place",
    "open_arrays",
    "read_header",
    "replace_file",
    "seal",
]

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from pathlib import Path

import numpy as np
import safetensors.numpy

BLANK = "0" * 64  # stands for the hash while it is taken
MARK = b'"sha256":"'


class DamagedFileError(ValueError):
    """Bytes that are not those that were written."""


# -------------------------------------------------------------------- content


def seal(kind: str, content: dict, arrays: dict[str, np.ndarray]) -> bytes:
    """A safetensors file of named arrays, with `content` as JSON under the name `kind`, and a SHA-256 of every byte."""
    raw = safetensors.numpy.save(arrays, {kind: json.dumps(content), "sha256": BLANK})
    place = raw.index(MARK) + len(MARK)
    digest = hashlib.sha256(raw).hexdigest().encode()
    return b"".join([raw[:place], digest, memoryview(raw)[place + len(digest) :]])


def read_header(raw: bytes, kind: str) -> tuple[dict, dict]:
    """The content that `seal` was given, and dtype and shape of every array; not checked further.

    Raises
    ------
    DamagedFileError
        When there is none of this kind, or it names no format.
    """
    if len(raw) < 8:
        raise DamagedFileError("it is empty or cut off.")
    size = int.from_bytes(raw[:8], "little")
    if size > len(raw) - 8:
        raise DamagedFileError("it is cut off, or no safetensors file.")
    try:
        header = json.loads(raw[8 : 8 + size])
        content = json.loads(header.pop("__metadata__")[kind])
        version = content["format"]
        shapes = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    except Exception as error:
        raise DamagedFileError("it is no safetensors file that skcds wrote, or was changed.") from error
    if type(version) is not int or version < 1:
        raise DamagedFileError(f"its format {version!r} is none of skcds'.")
    return content, shapes


def open_arrays(raw: bytes) -> dict[str, np.ndarray]:
    """The arrays in it. Each has the bytes that its shape takes."""
    return safetensors.numpy.load(raw)


def check_hash(raw: bytes) -> None:
    """Raise `DamagedFileError` unless the hash that the bytes hold is theirs.

    It tells damage. Whoever makes a file up can make up its hash, too.
    """
    place = raw.find(MARK) + len(MARK)
    digest = hashlib.sha256(raw[:place])
    digest.update(BLANK.encode())
    digest.update(memoryview(raw)[place + len(BLANK) :])
    if raw[place : place + len(BLANK)] != digest.hexdigest().encode():
        raise DamagedFileError("its SHA-256 is not that of its content: it was changed or damaged.")


# -------------------------------------------------------------------- places


def check_place(path) -> Path:
    """Where a file of this name is to be written: `path`, or the file that it links to.

    Raises
    ------
    OSError
        When its folder is not there or no folder, or when something that is no file has its name.
    """
    place = Path(os.path.realpath(path))
    folder = place.parent
    if place.is_symlink():
        raise OSError(errno.ELOOP, "This link leads back to itself", os.fspath(path))
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder to write into; make it first", str(folder))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "This is no folder to write into", str(folder))
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, "This is a folder; give the name of a file in it", os.fspath(path))
    if place.exists() and not place.is_file():
        raise OSError(errno.EINVAL, "This is a device or a pipe, which no file can take the place of", os.fspath(path))
    return place


def replace_file(path, data: bytes) -> None:
    """Write a file beside `path`, and put it in its place once it is on the disk: the old file or the new, no other.

    A symbolic link stays, and the file that it links to is replaced. The new file has the permissions of the old one,
    or else those that the process gives to its files.

    Raises
    ------
    OSError
        As of `check_place`, or when the disk is full. What was there stays.
    """
    place = check_place(path)
    mode = stat.S_IMODE(place.stat().st_mode) & 0o777 if place.exists() else None
    handle, beside = _create_beside(place, 0o666 if mode is None else mode)
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None:
                with contextlib.suppress(OSError):
                    os.chmod(beside, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def _create_beside(place: Path, mode: int) -> tuple[int, Path]:
    """A new file in the folder of another, open to write; the kernel takes the process's mask off its permissions."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        beside = place.parent / f".{place.name[:32]}.{secrets.token_hex(8)}"
        try:
            return os.open(beside, flags, mode), beside
        except FileExistsError:
            continue
        except OSError as error:
            raise type(error)(
                error.errno, f"{error.strerror}, on writing into this folder", str(place.parent)
            ) from None
