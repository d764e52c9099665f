"""Finds the media that a listing names, inside the collection's root and nowhere else: loose files, then archives."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from kiwi import storage
from kiwi.dataset.schema import EditPair, Reason
from kiwi.sources import archives
from kiwi.sources.adapter import PairMedia, SourceFailure
from kiwi.sources.entries import suffix_of


def open_files(
    root: str,
    pair: EditPair,
    *,
    prefixes: Sequence[str] = ("",),
    shelves: Sequence[str] = (),
    tails: bool = False,
) -> PairMedia:
    """The media of a pair whose paths are files under `root`. Raises SourceFailure as `find_file` does."""
    source, target = (
        find_file(root, listed, missing, prefixes=prefixes, shelves=shelves, tails=tails)
        for listed, missing in ((pair.src_video, Reason.SOURCE_MISSING), (pair.tgt_video, Reason.TARGET_MISSING))
    )
    reference = None
    if pair.ref_image:
        missing = Reason.REFERENCE_MISSING
        reference = find_file(root, pair.ref_image, missing, prefixes=prefixes, shelves=shelves, tails=tails)
    return PairMedia(source, target, reference, suffix_of(pair.src_video), suffix_of(pair.tgt_video))


def find_file(
    root: str,
    listed: str,
    missing: Reason,
    *,
    prefixes: Sequence[str] = ("",),
    shelves: Sequence[str] = (),
    tails: bool = False,
) -> bytes | Path:
    """A listed file: its path on this machine, or its bytes from S3 or from an archive.

    Args:
        prefixes: folders of the root that a listed path may be meant from, in the order they are tried.
        shelves: folders of the root whose tar archives are looked through where there is no loose file.
        tails: an absolute path that is not under the root is tried without its first folders, one after the other,
            until the rest, a folder and a name at least, is a file under the root (for lists of another machine).

    Raises:
        SourceFailure: `missing` where there is no such file, PATH_ESCAPES for a path that leads out of the root,
            OVER_LIMITS for more bytes than a clip may have.
        StorageError: the store cannot be asked, which is no fault of the row.
        SourceError: an archive cannot be read, or a part of it is missing: any row may be in it.
    """
    candidates = list(dict.fromkeys(_candidates(root, listed, missing, prefixes, tails)))
    for candidate in candidates:
        found = _remote(root, candidate) if storage.is_remote(root) else _local(root, candidate, listed, missing)
        if found is not None:
            return found
    for shelf in dict.fromkeys(shelves):
        for candidate in candidates:
            member = archives.read_member(root, shelf, candidate, missing)
            if member is not None:
                return member
    if listed.startswith("/") and _under(root, listed) is None:
        raise SourceFailure(Reason.PATH_ESCAPES, f"{listed}: leads out of {root}, and no end of it is a file there")
    raise SourceFailure(missing, f"{listed}: no such file in {root}")


def contained(root: str, listed: str) -> str:
    """A listed path relative to `root`, normalised. Raises SourceFailure(PATH_ESCAPES) if it leads out of it."""
    if "\0" in listed:
        raise SourceFailure(Reason.PATH_ESCAPES, f"{listed!r}: is no path")
    if storage.is_remote(listed) or listed.startswith("/"):
        inside = _under(root, listed)
        if inside is None:
            raise SourceFailure(Reason.PATH_ESCAPES, f"{listed}: leads out of {root}")
        listed = inside
    path = posixpath.normpath(listed)
    if path in ("..", ".") or path.startswith(("../", "/")):
        raise SourceFailure(Reason.PATH_ESCAPES, f"{listed}: leads out of {root}")
    return path


def _under(root: str, listed: str) -> str | None:
    """An absolute path or an address relative to the root; None where it is not, by its words, under it."""
    roots = [root]
    if not storage.is_remote(root):
        roots += [str(storage.local(root).absolute()), str(storage.local(root).resolve())]
    starts = (start.rstrip("/") + "/" for start in roots)
    return next((listed[len(start) :] for start in starts if listed.startswith(start)), None)


def _candidates(root: str, listed: str, missing: Reason, prefixes: Sequence[str], tails: bool) -> Iterator[str]:
    if not listed:
        raise SourceFailure(missing, "the row names no file")
    if tails and listed.startswith("/") and "\0" not in listed and _under(root, listed) is None:
        parts = [part for part in listed.split("/") if part]
        if ".." in parts:
            raise SourceFailure(Reason.PATH_ESCAPES, f"{listed}: leads out of {root}")
        yield from ("/".join(parts[start:]) for start in range(1, len(parts) - 1))
        return
    path = contained(root, listed)
    for prefix in prefixes:
        yield contained(root, posixpath.join(prefix, path)) if prefix else path


def _local(root: str, candidate: str, listed: str, missing: Reason) -> Path | None:
    try:
        folder = storage.local(root).resolve()
        path = (folder / candidate).resolve()
        inside, there = path.is_relative_to(folder), path.is_file()
    except (OSError, RuntimeError) as error:
        raise SourceFailure(missing, f"{listed}: {error}") from error
    if not inside:
        raise SourceFailure(Reason.PATH_ESCAPES, f"{listed}: leads out of {root}")
    return path if there else None


def _remote(root: str, candidate: str) -> bytes | None:
    path = storage.join(root, candidate)
    try:
        size = storage.size(path)
    except storage.StorageError:
        if not storage.exists(path) or storage.is_folder(path):
            return None
        raise
    archives.check_bytes(path, size)
    return storage.read_bytes(path)
