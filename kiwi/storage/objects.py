"""Objects in a store: put in parts, fetched in ranges, listed and deleted; each part and range is tried by itself."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO

from kiwi.storage.remote import StorageError, ask, filesystem

PART = 8 * 2**20  # bytes of one request, which has 15 s: four at once pass a line of 20 Mbit/s
_AT_ONCE = 4
_log = logging.getLogger(__name__)


class RangeReader(io.RawIOBase):
    """A file of known size, read by ranges: what io.BufferedReader reads ahead from."""

    def __init__(self, size: int, read: Callable[[int, int], bytes], ahead: int) -> None:
        super().__init__()
        self._size = size
        self._read = read
        self._ahead = ahead
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise OSError(22, f"no position {position}")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readall(self) -> bytes:
        """The rest, `ahead` bytes a request; io's own asks for 8 kB at a time."""
        rest = [self._read(*bounds) for bounds in _ranges(self._position, self._size, self._ahead)]
        self._position += sum(map(len, rest))
        return b"".join(rest)

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._read(self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def describe(store: Any, path: str) -> dict[str, Any]:
    """What the store knows of a file: at least `size`; S3's `ETag`. Raises FileNotFoundError; OSError for a folder."""
    found: dict[str, Any] = store.info(path)
    if found["type"] == "directory":
        raise IsADirectoryError(21, "is a folder")
    return found


def check(store: Any, path: str) -> None:
    """Asks S3 for one key, so that a missing bucket and refused credentials show; other stores for their root."""
    if hasattr(store, "call_s3"):
        bucket, key, _ = store.split_path(path)
        store.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    else:
        store.exists(path)


def exists(store: Any, path: str) -> bool:
    """Whether a file or folder is there; unlike fsspec's, what cannot be asked is not called absent."""
    try:
        store.info(path)
    except FileNotFoundError:
        return False
    return True


def read_range(store: Any, path: str, start: int, stop: int) -> bytes:
    """Bytes `start` up to `stop`; S3 calls a range that begins behind the end an error, here it is empty."""
    if start == stop:
        return b""
    try:
        return bytes(store.cat_file(path, start=start, end=stop))
    except OSError as error:
        said = getattr(error.__cause__, "response", None) or {}
        if said.get("ResponseMetadata", {}).get("HTTPStatusCode") == 416:
            return b""
        raise


def list_files(store: Any, folder: str) -> list[str]:
    """Names relative to `folder`, sorted; none for a folder that is absent in a bucket that is there."""
    prefix = str(store._strip_protocol(folder)).rstrip("/") + "/"
    try:
        found = [str(path) for path in store.find(folder)]
    except FileNotFoundError:
        if hasattr(store, "call_s3"):  # S3 has no folders: it is the bucket that is missing
            raise
        found = []
    return sorted(path.removeprefix(prefix) for path in found if path.startswith(prefix) and not path.endswith("/"))


def delete(store: Any, path: str) -> None:
    """Removes one object, if it is there."""
    with suppress(FileNotFoundError):
        store.rm_file(path)


def delete_folder(store: Any, path: str) -> None:
    """Removes every object under `path`, if there are any."""
    with suppress(FileNotFoundError):
        store.rm(path.rstrip("/") + "/", recursive=True)


def put(path: str, file: BinaryIO, size: int) -> None:
    """Puts `size` bytes of an open file as one object, which appears whole or not at all."""
    if size > PART and path.partition("://")[0] in ("s3", "s3a"):
        _put_in_parts(path, file, size)
        return
    data = file.read()
    ask(path, lambda: filesystem(path).pipe_file(path, data))


def fetch(path: str, found: dict[str, Any], file: BinaryIO) -> None:
    """Writes an object into an open file, several ranges at once.

    Raises StorageError where the object was replaced meanwhile: its ranges would be of two different objects.
    """
    size = int(found["size"])

    def one(bounds: tuple[int, int]) -> None:
        data = ask(path, lambda: read_range(filesystem(path), path, *bounds))
        if len(data) != bounds[1] - bounds[0]:
            raise StorageError(
                f"{path}: ends at byte {bounds[0] + len(data)}, not {size}", "it was replaced: try again"
            )
        os.pwrite(file.fileno(), data, bounds[0])

    _all(one, _ranges(0, size, PART))
    if ask(path, lambda: describe(filesystem(path), path)).get("ETag") != found.get("ETag"):
        raise StorageError(f"{path}: was replaced while it was read", "try again")


def _put_in_parts(path: str, file: BinaryIO, size: int) -> None:
    store = filesystem(path)
    bucket, key, _ = store.split_path(path)
    part = max(PART, -(-size // 9_000))  # S3 takes 10,000 parts
    begun = ask(path, lambda: store.call_s3("create_multipart_upload", Bucket=bucket, Key=key))
    name = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}

    def one(bounds: tuple[int, int]) -> dict[str, Any]:
        data = _slice(file, *bounds)
        number = bounds[0] // part + 1
        sent = ask(path, lambda: store.call_s3("upload_part", **name, PartNumber=number, Body=data))
        return {"PartNumber": number, "ETag": sent["ETag"]}

    try:
        parts = _all(one, _ranges(0, size, part))
        ask(path, lambda: store.call_s3("complete_multipart_upload", **name, MultipartUpload={"Parts": parts}))
    except BaseException:
        try:
            store.call_s3("abort_multipart_upload", **name)
        except Exception as error:  # noqa: BLE001 - the first error is the one to raise, this one is only said
            _log.warning("%s: parts of a failed upload stay in the bucket: %s", path, error)
        raise


def _slice(file: BinaryIO, start: int, stop: int) -> bytes:
    """Part of an open file without moving its position, which threads share."""
    if isinstance(file, io.BytesIO):
        return bytes(file.getbuffer()[start:stop])
    return os.pread(file.fileno(), stop - start, start)


def _ranges(start: int, stop: int, part: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + part, stop)) for begin in range(start, stop, part))


def _all(work: Callable[[tuple[int, int]], Any], bounds: Iterator[tuple[int, int]]) -> list[Any]:
    """Does the ranges, a few at once; the first failure stops those not yet begun."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = [pool.submit(work, one) for one in bounds]
        try:
            return [one.result() for one in waiting]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
