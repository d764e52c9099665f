"""One door to files on this machine and in S3: bytes in and out by path or `s3://` address, over fsspec."""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kiwi.errors import KiwiError

_S3_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")


class StorageError(KiwiError):
    """A path or address that cannot be read or written; the message names it."""


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
    with _told(path):
        return bool(_filesystem(path).exists(str(path)))


def is_folder(path: str | Path) -> bool:
    """Whether `path` is a folder (for S3: a prefix with something under it)."""
    if not is_remote(path):
        return local(path).is_dir()
    with _told(path):
        return bool(_filesystem(path).isdir(str(path)))


def read_bytes(path: str | Path) -> bytes:
    """The whole file. Raises StorageError if it is missing or may not be read."""
    with _told(path):
        if not is_remote(path):
            return local(path).read_bytes()
        return bytes(_filesystem(path).cat_file(str(path)))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes whole or not at all: a temporary file renamed in place, or one object put."""
    with _told(path):
        if is_remote(path):
            _filesystem(path).pipe_file(str(path), data)
            return
        destination = local(path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{destination.name}.", suffix=".tmp", dir=destination.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o644)
            os.replace(temporary, destination)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def list_files(folder: str | Path) -> list[str]:
    """Every file under `folder`, relative to it, with forward slashes, sorted. An absent folder has none."""
    if not is_remote(folder):
        root = local(folder)
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    with _told(folder):
        filesystem = _filesystem(folder)
        prefix = str(filesystem._strip_protocol(str(folder))).rstrip("/") + "/"
        return sorted(str(path).removeprefix(prefix) for path in filesystem.find(str(folder)))


def _filesystem(path: str | Path) -> Any:
    """The fsspec file system of an address; S3 takes its endpoint from the usual AWS variables."""
    import fsspec

    scheme = str(path).partition("://")[0]
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a"):
        endpoint = next((os.environ[name] for name in _S3_VARIABLES if os.environ.get(name)), None)
        options = {"endpoint_url": endpoint} if endpoint else {}
    try:
        return fsspec.filesystem(scheme, **options)
    except (ImportError, ValueError) as error:
        raise StorageError(f"{path}: no support for {scheme}:// ({error})", "pip install 'kiwi[data]'") from error


@contextmanager
def _told(path: str | Path) -> Iterator[None]:
    """Turns whatever the store raises into one StorageError that names the address."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"{path}: not found", "check the address") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}", "check rights, space and network") from error
    except KiwiError:
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        raise StorageError(f"{path}: {error}", "check the endpoint, credentials and network") from error
