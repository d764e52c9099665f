"""Media in tar shards: few files instead of many, written to the same bytes every time, read at random.

A member's address is `media/media-00000.tar::<iid>.source.mp4`: the shard's path in the dataset, then the name in it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from kiwi import storage
from kiwi.errors import KiwiError

SEPARATOR = "::"
_BLOCK = 512


class ShardError(KiwiError):
    """A shard that is missing, cut short, or does not hold the member asked for."""


@dataclass(frozen=True)
class ShardBooks:
    """What was written: file name, bytes and SHA-256 of the file, and how many members it holds."""

    name: str
    bytes: int
    sha256: str
    members: int


def member_address(shard: str, member: str) -> str:
    """`media/media-00000.tar` and `a.source.mp4` -> `media/media-00000.tar::a.source.mp4`."""
    return f"{shard}{SEPARATOR}{member}"


def split_address(address: str) -> tuple[str, str]:
    """The shard's path and the member's name. Raises ShardError for what is no address."""
    shard, separator, member = address.partition(SEPARATOR)
    if not separator or not shard or not member:
        raise ShardError(f"{address!r} is no member address", f"expected SHARD{SEPARATOR}MEMBER")
    return shard, member


def write_shard(path: str | Path, members: Iterable[tuple[str, bytes]]) -> ShardBooks:
    """Writes one tar atomically, members in the order given; no times, owners or rights of this machine go in.

    Members stream through: to the file beside its place, or for an address to a local file that is then uploaded,
    with an index beside it, so that a reader need not walk the headers.

    Raises ShardError if a name comes twice, StorageError where it cannot be written.
    """
    remote = storage.is_remote(path)
    folder = Path(tempfile.gettempdir()) if remote else storage.local(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".shard.", suffix=".tmp", dir=folder)
        index: dict[str, tuple[int, int]] = {}
        hashing = hashlib.sha256()
        try:
            with os.fdopen(handle, "wb") as file:
                for name, data in members:
                    if name in index:
                        raise ShardError(f"{path}: member {name} comes twice", "every member needs a name of its own")
                    for part in _tar_member(name, data):
                        if part is data:
                            index[name] = (file.tell(), len(data))
                        file.write(part)
                        hashing.update(part)
                end = b"\0" * (2 * _BLOCK)
                file.write(end)
                hashing.update(end)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            os.chmod(temporary, 0o644)
            if remote:
                storage.upload(Path(temporary), path)
                storage.write_bytes(f"{path}.index", json.dumps(index).encode())
            else:
                os.replace(temporary, storage.local(path))
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        said = f"{path}: {error.strerror or error}"
        raise storage.StorageError(said, "check rights and free space") from error
    return ShardBooks(str(path).rpartition("/")[2], size, hashing.hexdigest(), len(index))


def pack_shards(
    folder: Path, prefix: str, members: Iterable[tuple[str, bytes]], capacity: int
) -> tuple[list[ShardBooks], dict[str, str]]:
    """Packs members, in their order, into `<folder>/<prefix>-00000.tar` and on, each of at most `capacity` bytes.

    A member larger than the capacity gets a shard of its own. Only one shard is held in memory as names; the bytes
    stream through.

    Returns:
        The books of each shard, and the file name of the shard of each member.
    """
    books: list[ShardBooks] = []
    places: dict[str, str] = {}
    source = iter(members)
    waiting = next(source, None)
    while waiting is not None:
        name = f"{prefix}-{len(books):05d}.tar"
        pending = waiting

        def portion(first: tuple[str, bytes], shard: str) -> Iterator[tuple[str, bytes]]:
            nonlocal waiting
            held = 0
            item: tuple[str, bytes] | None = first
            while item is not None and (held == 0 or held + _stored(len(item[1])) <= capacity):
                if item[0] in places:
                    raise ShardError(f"{folder}: member {item[0]} comes twice", "every member needs a name of its own")
                held += _stored(len(item[1]))
                places[item[0]] = shard
                yield item
                item = next(source, None)
            waiting = item

        books.append(write_shard(folder / name, portion(pending, name)))
    return books, places


class ShardReader:
    """Random access to the members of one tar; the index is built by walking the headers once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise ShardError(f"{path}: {error.strerror}", "pull or rebuild the dataset") from error
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                self._index = {member.name: (member.offset_data, member.size) for member in archive if member.isfile()}
        except tarfile.TarError as error:
            self._file.close()
            raise ShardError(f"{path}: is no readable tar ({error})", "pull or rebuild the dataset") from error

    @property
    def names(self) -> list[str]:
        """Members in the order in which they lie in the file."""
        return list(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def read(self, name: str) -> bytes:
        """The bytes of one member. Raises ShardError if it is not there or cut short."""
        if name not in self._index:
            raise ShardError(f"{self.path}: holds no member {name}", "pull or rebuild the dataset")
        offset, size = self._index[name]
        data = os.pread(self._file.fileno(), size, offset)
        while len(data) < size:
            more = os.pread(self._file.fileno(), size - len(data), offset + len(data))
            if not more:
                raise ShardError(f"{self.path}: cut short inside {name}", "pull or rebuild the dataset")
            data += more
        return data

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RemoteShardReader:
    """Random access to the members of a tar at an address, by the index that was written beside it."""

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            self._index: dict[str, tuple[int, int]] = json.loads(storage.read_bytes(f"{address}.index"))
        except ValueError as error:
            raise ShardError(f"{address}.index: is no index ({error})", "rebuild the shard") from error

    def read(self, name: str) -> bytes:
        """The bytes of one member. Raises ShardError if it is not there or cut short."""
        if name not in self._index:
            raise ShardError(f"{self.address}: holds no member {name}", "rebuild the shard")
        offset, size = self._index[name]
        data = storage.read_range(self.address, offset, offset + size)
        if len(data) != size:
            raise ShardError(f"{self.address}: cut short inside {name}", "rebuild the shard")
        return data

    def close(self) -> None:
        """Nothing is held open."""


class _Reader(Protocol):
    def read(self, name: str) -> bytes: ...
    def close(self) -> None: ...


class ShardSet:
    """Members of many shards under one root (a folder or an address) by their addresses; keeps open what it opened."""

    def __init__(self, root: str | Path) -> None:
        self.root = root
        self._readers: dict[str, _Reader] = {}

    def reader(self, shard: str) -> _Reader:
        if shard not in self._readers:
            path = storage.join(self.root, shard)
            self._readers[shard] = RemoteShardReader(path) if storage.is_remote(path) else ShardReader(Path(path))
        return self._readers[shard]

    def read(self, address: str) -> bytes:
        """The bytes at `SHARD::MEMBER`. Raises ShardError if shard or member are missing or cut short."""
        shard, member = split_address(address)
        return self.reader(shard).read(member)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def shard_members(folder: Path, shards: Iterable[str]) -> Mapping[str, str]:
    """Member name -> shard file name over several shards of a folder."""
    places: dict[str, str] = {}
    for shard in shards:
        with ShardReader(folder / shard) as reader:
            places.update(dict.fromkeys(reader.names, shard))
    return places


def _stored(size: int) -> int:
    return _BLOCK + -(-size // _BLOCK) * _BLOCK


def _tar_member(name: str, data: bytes) -> Iterator[bytes]:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    header.mode = 0o644
    header.mtime = 0
    yield header.tobuf(tarfile.PAX_FORMAT)
    yield data
    padding = -len(data) % _BLOCK
    if padding:
        yield io.BytesIO(b"\0" * padding).getvalue()
