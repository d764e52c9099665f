"""Members of tar archives by random access, whole or split, plain or gzipped, here or in S3, with nothing unpacked.

`x.tar`, and the parts of a split one (`x.tar.00`, `x.tar.part-aa`, `x.tar.gz.part001`) read as one stream. An archive's
headers are read once in a process; after that a member costs one read. A member's place is its name under the folder
that the archive lies in, or under that folder's parent: collections are unpacked in either.
"""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, NamedTuple

from kiwi import storage
from kiwi.dataset.schema import Reason
from kiwi.sources.adapter import SourceError, SourceFailure
from kiwi.sources.folders import files_in
from kiwi.sources.inflating import Inflated
from kiwi.sources.ranges import RangeFile

_NAME = re.compile(
    r"(?P<name>.+?\.(?:tar\.gz|tgz|tar))(?:[._-]?(?:part)?[-_.]?(?P<part>[0-9]+|[a-z]{2}))?", re.IGNORECASE
)
_HEADERS_AHEAD = 1 << 16
_OTHER_COMPRESSION = frozenset({"xz", "lz", "br"})


class Member(NamedTuple):
    """Where a member's bytes lie in the archive's stream; `unfit` says why it is no file to be read ("": it is)."""

    offset: int
    size: int
    unfit: str


@dataclass(frozen=True)
class Archive:
    """One archive's parts in order, as addresses; `folder` is where it lies, relative to the root ("": in it)."""

    name: str
    folder: str
    parts: tuple[str, ...]


class OpenArchive:
    """An archive's bytes as one stream, and its members by name."""

    def __init__(self, archive: Archive) -> None:
        """Raises SourceError where it is cut short or no tar."""
        self.archive = archive
        read, size = _joined(archive.parts)
        self.inflated = None
        if archive.name.lower().endswith((".tar.gz", ".tgz")):
            self.inflated = Inflated(read, size, archive.name)
            read, size = self.inflated.read, 1 << 62
        self._read, self._size = read, size
        self.members = self._indexed()

    def read(self, member: Member) -> bytes:
        return self._read(member.offset, member.offset + member.size)

    def file(self, member: Member) -> IO[bytes]:
        """A member as a file to read from its start."""
        reader = RangeFile(member.size, lambda start, stop: self._read(member.offset + start, member.offset + stop))
        return io.BufferedReader(reader, buffer_size=1 << 20)

    def _indexed(self) -> dict[str, Member]:
        members: dict[str, Member] = {}
        file = io.BufferedReader(RangeFile(self._size, self._read), buffer_size=_HEADERS_AHEAD)
        try:
            with tarfile.open(fileobj=file, mode="r:", errorlevel=1) as tar:
                for info in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                    if info.isdir():
                        continue
                    name = posixpath.normpath(info.name)
                    escapes = info.name.startswith("/") or name == ".." or name.startswith("../")
                    unfit = "leads out of the archive" if escapes else "" if info.isreg() else "is a link or a device"
                    if info.issparse():
                        unfit = "is a sparse file"
                    members[name] = Member(info.offset_data, info.size, unfit)
        except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError, MemoryError) as error:
            said = f"{self.archive.parts[0]}: cannot be read as a tar archive: {error}"
            raise SourceError(said, "fetch it again; of a split one, all parts") from error
        return members


def archives_in(root: str, folder: str) -> list[Archive]:
    """The tar archives that lie directly in `folder` of `root`. Raises SourceError where a part is missing."""
    return _archives_in(root, folder)


@lru_cache(maxsize=64)
def opened(archive: Archive) -> OpenArchive:
    """The archive, its headers read: once in a process."""
    return OpenArchive(archive)


def read_member(root: str, shelf: str, path: str, missing: Reason) -> bytes | None:
    """The bytes of `path` (relative to `root`) from an archive in the folder `shelf`; None where none holds it.

    Raises:
        SourceFailure: the member is a link or leads out (PATH_ESCAPES), is too large, or its archive cannot be read.
    """
    unreadable = {
        Reason.TARGET_MISSING: Reason.TARGET_UNREADABLE,
        Reason.REFERENCE_MISSING: Reason.REFERENCE_UNREADABLE,
    }
    for archive in archives_in(root, shelf):
        found = opened(archive)
        for folder in {archive.folder, posixpath.dirname(archive.folder)}:
            inside = _under(path, folder)
            member = found.members.get(inside) if inside else None
            if member is None:
                continue
            if member.unfit:
                raise SourceFailure(Reason.PATH_ESCAPES, f"{archive.name}: member {inside} {member.unfit}")
            check_bytes(f"{archive.name}: member {inside}", member.size)
            try:
                data = found.read(member)
            except (zlib.error, EOFError) as error:
                reason = unreadable.get(missing, Reason.SOURCE_UNREADABLE)
                raise SourceFailure(reason, f"{archive.name}: member {inside}: {error}") from error
            if len(data) != member.size:
                reason = unreadable.get(missing, Reason.SOURCE_UNREADABLE)
                raise SourceFailure(reason, f"{archive.name}: member {inside}: the archive ends in it")
            return data
    return None


def check_bytes(name: str, size: int) -> None:
    """Raises SourceFailure(OVER_LIMITS) for a file that is too large to be taken into memory."""
    from kiwi.media.limits import DEFAULT_LIMITS

    if size > DEFAULT_LIMITS.max_bytes:
        raise SourceFailure(Reason.OVER_LIMITS, f"{name}: {size} bytes, more than {DEFAULT_LIMITS.max_bytes}")


def split_name(name: str) -> tuple[str, str] | None:
    """`x.tar.part-ab` -> ("x.tar", "ab"), `x.tar` -> ("x.tar", ""); None for what is no tar archive."""
    found = _NAME.fullmatch(name)
    if found is None or (found["part"] or "").lower() in _OTHER_COMPRESSION:
        return None
    return found["name"], (found["part"] or "").lower()


@lru_cache(maxsize=256)
def _archives_in(root: str, folder: str) -> list[Archive]:
    where = storage.join(root, folder) if folder else root
    parts: dict[str, dict[str, str]] = {}
    for name in files_in(where):
        split = split_name(name)
        if split is not None:
            parts.setdefault(split[0], {})[split[1]] = name
    return [
        Archive(name, folder, tuple(storage.join(where, part) for part in _in_order(where, name, found)))
        for name, found in parts.items()
    ]


def _in_order(where: str, name: str, parts: dict[str, str]) -> list[str]:
    if "" in parts:  # a whole one beside its parts: they were joined
        return [parts[""]]
    numbers = {_number(part): file for part, file in parts.items()}
    first = min(numbers)
    expected = range(0 if first == 0 else 1, max(numbers) + 1)
    absent = [str(number) for number in expected if number not in numbers]
    if absent:
        said = f"{storage.join(where, name)}: part {', '.join(absent[:5])} of {max(numbers)} is missing"
        raise SourceError(said, "fetch all parts: they are one archive")
    return [numbers[number] for number in sorted(numbers)]


def _number(part: str) -> int:
    if part.isdigit():
        return int(part)
    return (ord(part[0]) - ord("a")) * 26 + ord(part[1]) - ord("a")


def _under(path: str, folder: str) -> str:
    """`path` relative to `folder`; "" where it is not under it."""
    if not folder:
        return path
    return path[len(folder) + 1 :] if path.startswith(folder + "/") else ""


def _joined(parts: tuple[str, ...]) -> tuple[Callable[[int, int], bytes], int]:
    """How to read the range of one stream that several files make up, and its size."""
    starts, size = [], 0
    for part in parts:
        starts.append(size)
        size += storage.size(part)

    def pieces(start: int, stop: int) -> Iterator[bytes]:
        for part, begins, ends in zip(parts, starts, [*starts[1:], size], strict=True):
            if begins < stop and start < ends:
                yield storage.read_range(part, max(start, begins) - begins, min(stop, ends) - begins)

    return lambda start, stop: b"".join(pieces(start, stop)), size
