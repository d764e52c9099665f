"""One door to files on this machine and in S3: bytes in and out by path or `s3://` address, over fsspec.

S3 takes its endpoint and its credentials from the usual AWS variables. A store that is away for a while is asked again
for KIWI_STORAGE_PATIENCE seconds (kiwi/storage/remote.py).
"""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kiwi.storage import objects
from kiwi.storage.remote import StorageError, ask, filesystem, told

__all__ = [
    "StorageError",
    "check",
    "delete",
    "delete_folder",
    "download",
    "exists",
    "is_folder",
    "is_remote",
    "join",
    "list_files",
    "local",
    "open_read",
    "parent",
    "read_bytes",
    "read_range",
    "size",
    "upload",
    "write_bytes",
]

AHEAD = 8 * 2**20


def is_remote(path: str | Path) -> bool:
    """Whether `path` is an address with a scheme (`s3://bucket/key`) other than `file://`."""
    scheme, separator, _ = str(path).partition("://")
    return bool(separator) and scheme != "file"


def local(path: str | Path) -> Path:
    """A `file://` address or a plain path as a Path."""
    return Path(str(path).removeprefix("file://"))


def join(root: str | Path, *parts: str) -> str:
    """Joins with forward slashes for addresses and with the system's separator for paths."""
    if is_remote(root):
        return posixpath.join(str(root), *parts)
    return os.path.join(str(local(root)), *parts)


def parent(path: str | Path) -> str:
    """The folder that `path` lies in."""
    return posixpath.dirname(str(path)) if is_remote(path) else str(local(path).parent)


def exists(path: str | Path) -> bool:
    """Whether a file or folder is there. Raises StorageError if the store cannot be asked."""
    if not is_remote(path):
        return local(path).exists()
    return bool(ask(path, lambda: objects.exists(filesystem(path), str(path))))


def is_folder(path: str | Path) -> bool:
    """Whether `path` is a folder (for S3: a prefix with something under it)."""
    if not is_remote(path):
        return local(path).is_dir()
    return bool(ask(path, lambda: filesystem(path).isdir(str(path))))


def check(path: str | Path) -> None:
    """Raises StorageError unless the store of an address answers, lets us in, and has the bucket; lists nothing."""
    if is_remote(path):
        ask(path, lambda: objects.check(filesystem(path), str(path)))
        return
    with told(path):
        os.stat(local(path))


def size(path: str | Path) -> int:
    """The file's length in bytes. Raises StorageError if it is missing or a folder."""
    if is_remote(path):
        return int(ask(path, lambda: objects.describe(filesystem(path), str(path)))["size"])
    with told(path):
        if local(path).is_dir():
            raise IsADirectoryError(21, "is a folder")
        return local(path).stat().st_size


def read_bytes(path: str | Path) -> bytes:
    """The whole file. Raises StorageError if it is missing or may not be read."""
    if is_remote(path):
        return bytes(ask(path, lambda: filesystem(path).cat_file(str(path))))
    with told(path):
        return local(path).read_bytes()


def read_range(path: str | Path, start: int, stop: int) -> bytes:
    """Bytes `start` up to `stop`, without the rest of the file; fewer where the file ends before `stop`."""
    if not 0 <= start <= stop:
        raise ValueError(f"{path}: no range from byte {start} to byte {stop}")
    if is_remote(path):
        return bytes(ask(path, lambda: objects.read_range(filesystem(path), str(path), start, stop)))
    with told(path), open(local(path), "rb") as file:
        file.seek(start)
        return file.read(stop - start)


def open_read(path: str | Path, ahead: int = AHEAD) -> BinaryIO:
    """The file, open for reading and seeking (`with storage.open_read(path) as file`).

    An address is read `ahead` bytes at a time; a small `ahead` suits short reads here and there. Raises StorageError
    at once if the file is missing.
    """
    if is_remote(path):
        found = ask(path, lambda: objects.describe(filesystem(path), str(path)))
        reading = objects.RangeReader(int(found["size"]), lambda start, stop: read_range(path, start, stop), ahead)
        return io.BufferedReader(reading, buffer_size=ahead)
    with told(path):
        return open(local(path), "rb")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes whole or not at all: a temporary file, synced and renamed in place, or one object put."""
    if is_remote(path):
        objects.put(str(path), io.BytesIO(data), len(data))
        return
    with told(path), _replacing(local(path)) as file:
        file.write(data)


def upload(source: Path, path: str | Path) -> None:
    """Copies a file of this machine to a path or address, whole or not at all, without reading it into memory."""
    with told(source), open(source, "rb") as file:
        if is_remote(path):
            objects.put(str(path), file, os.fstat(file.fileno()).st_size)
            return
        with told(path), _replacing(local(path)) as copy:
            shutil.copyfileobj(file, copy, 2**20)


def download(path: str | Path, destination: Path) -> None:
    """Copies a path or address to a file of this machine, whole or not at all, without reading it into memory."""
    if not is_remote(path):
        upload(local(path), destination)
        return
    found = ask(path, lambda: objects.describe(filesystem(path), str(path)))
    with told(destination), _replacing(destination) as file:
        objects.fetch(str(path), found, file)


def delete(path: str | Path) -> None:
    """Removes a file; one that is missing is fine. Raises StorageError for a folder."""
    if is_remote(path):
        ask(path, lambda: objects.delete(filesystem(path), str(path)))
        return
    with told(path):
        local(path).unlink(missing_ok=True)


def delete_folder(path: str | Path) -> None:
    """Removes a folder and all under it; one that is missing is fine. A whole bucket or disk is refused."""
    if is_remote(path):
        if not str(path).partition("://")[2].strip("/").partition("/")[2]:
            raise StorageError(f"{path}: refusing to delete a whole bucket", "name a folder in it")
        ask(path, lambda: objects.delete_folder(filesystem(path), str(path)))
        return
    folder = local(path)
    if folder.resolve() in (Path(folder.resolve().anchor), Path.cwd(), Path.home()):
        raise StorageError(f"{path!r}: refusing to delete a disk, home or current folder", "name a folder in it")
    with told(path):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        elif folder.exists() or folder.is_symlink():
            raise NotADirectoryError(20, "is not a folder")


def list_files(folder: str | Path) -> list[str]:
    """Every file under `folder`, relative to it, with forward slashes, sorted. An absent folder has none."""
    if is_remote(folder):
        found: list[str] = ask(folder, lambda: objects.list_files(filesystem(folder), str(folder)))
        return found
    root = local(folder)
    with told(folder):
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@contextmanager
def _replacing(destination: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `destination` that takes its place once it is whole and on the disk.

    Its name is random, not made of a process number: two pods on one volume may have the same numbers.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{destination.name[:200]}.", suffix=".tmp", dir=destination.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, destination)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
