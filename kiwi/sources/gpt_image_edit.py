"""GPT-Image-Edit-1.5M: `gpt-edit/SUBSET/TASK/{input,output,metadata/*.json}`, unpacked or in its split tars."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from kiwi import storage
from kiwi.dataset.schema import EditPair
from kiwi.sources import archives
from kiwi.sources.adapter import PairMedia, SourceError
from kiwi.sources.entries import missing_keys, pair_of
from kiwi.sources.folders import files_in, folders_in, natural, require_folder
from kiwi.sources.json_entries import Entry, json_list, read_json_list, require_keys
from kiwi.sources.media_files import open_files
from kiwi.sources.origins import GPT_IMAGE_EDIT, gpt_image_edit_kind

_FOLDER = "gpt-edit"
_KEYS = ("input", "output", "instruction")


class _Listing(NamedTuple):
    """One metadata file: `task` is its task's folder relative to the root, `archive` what holds it, if packed."""

    task: str
    name: str
    archive: archives.Archive | None


@dataclass(frozen=True)
class GptImageEdit:
    """Image pairs. A subset that is not unpacked is read from its archives as they are (`hqedit.tar.gz.part001`, …).

    Listed paths are relative to the task's folder. An archive is looked into only where its subset has no folder of
    its own: an image that is missing from an unpacked subset is missing.
    """

    name: str = "gpt-image-edit-1.5m"
    title: str = "GPT-Image-Edit-1.5M, image edits by GPT-Image-1"
    license: str = GPT_IMAGE_EDIT.license
    layout: str = "gpt-edit/{subset}/{task}/{input,output,metadata/*.json}, unpacked or {subset}.tar.gz.part001, …"

    def check(self, root: str) -> None:
        for listing in self._listings(require_folder(root), quick=True):
            require_keys(_entries(root, listing), _KEYS, listing.name)

    def entries(self, root: str) -> Iterator[EditPair]:
        root = require_folder(root)
        position = 0
        for listing in self._listings(root):
            kind = gpt_image_edit_kind(tuple(listing.task.split("/")))
            stem = listing.name.rsplit("/", 1)[-1].rpartition(".")[0]
            for number, entry in enumerate(_entries(root, listing)):
                missing = missing_keys(entry.values, _KEYS)
                values = entry.values
                yield pair_of(
                    position,
                    _identifier(values) or f"{stem}-{number:07d}",
                    _joined(listing.task, values.get("input")),
                    _joined(listing.task, values.get("output")),
                    values.get("instruction"),
                    kind=kind,
                    source_dataset=GPT_IMAGE_EDIT.dataset,
                    license=GPT_IMAGE_EDIT.license,
                    problem=entry.problem or (missing and f"{listing.name}: entry {entry.number}: {missing}"),
                )
                position += 1

    def open(self, root: str, pair: EditPair) -> PairMedia:
        root = root.rstrip("/")
        base, unpacked = _layout(root)
        subset = pair.src_video.removeprefix(base + "/").split("/")[0]
        return open_files(root, pair, shelves=() if subset in unpacked else (base,))

    def _listings(self, root: str, quick: bool = False) -> Iterator[_Listing]:
        """Subset by subset. A quick look leaves out the archives where there is an unpacked subset."""
        base, unpacked = _layout(root)
        where = storage.join(root, base) if base else root
        packed = {archive.name.split(".")[0]: archive for archive in archives.archives_in(root, base)}
        found = 0
        for subset in sorted({*unpacked, *packed}):
            if subset in unpacked:
                listings = list(_unpacked(root, posixpath.join(base, subset)))
            elif quick and found:
                continue
            else:
                listings = list(_packed(packed[subset]))
            yield from listings
            found += len(listings)
        if not found:
            raise SourceError(f"{where}: no subset with TASK/metadata/*.json", f"fetch it; layout: {self.layout}")


@lru_cache(maxsize=64)
def _layout(root: str) -> tuple[str, tuple[str, ...]]:
    """The folder of the subsets, relative to the root, and the subsets that are unpacked in it."""
    base = _FOLDER if storage.is_folder(storage.join(root, _FOLDER)) else ""
    return base, tuple(folders_in(storage.join(root, base) if base else root))


def _unpacked(root: str, subset: str) -> Iterator[_Listing]:
    for task in folders_in(storage.join(root, subset)):
        folder = posixpath.join(subset, task)
        for name in files_in(storage.join(root, folder, "metadata")):
            if name.endswith(".json"):
                yield _Listing(folder, storage.join(root, folder, "metadata", name), None)


def _packed(archive: archives.Archive) -> Iterator[_Listing]:
    names = archives.opened(archive).members
    for name in sorted((name for name in names if name.endswith(".json")), key=natural):
        if posixpath.basename(posixpath.dirname(name)) == "metadata":
            task = posixpath.dirname(posixpath.dirname(name))
            yield _Listing(posixpath.join(archive.folder, task), name, archive)


def _entries(root: str, listing: _Listing) -> Iterator[Entry]:
    if listing.archive is None:
        yield from read_json_list(listing.name)
        return
    found = archives.opened(listing.archive)
    member = found.members[listing.name]
    said = f"{listing.archive.name}: member {listing.name}"
    if member.unfit:
        raise SourceError(f"{said}: {member.unfit}", "fetch the archive again")
    with found.file(member) as file:
        yield from json_list(file, said)


def _identifier(values: dict[str, Any]) -> str:
    """The listed id; a reworded instruction's says so, as it may stand beside the original's of the same images."""
    listed, worded = values.get("id"), values.get("instruction_type")
    if not listed or worded in (None, "original"):
        return str(listed or "")
    return f"{listed}-{worded}"


def _joined(folder: str, listed: object) -> object:
    """A listed path under its task's folder; what is no text, or leaves the root, stays as it is, to be refused."""
    return posixpath.join(folder, listed) if isinstance(listed, str) and listed else listed


GPT_IMAGE_EDIT_1_5M = GptImageEdit()
