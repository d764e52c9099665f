"""NHR-Edit: `train/metadata.jsonl`, one object a line, images beside it, loose or in tars."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from kiwi import storage
from kiwi.dataset.schema import EditPair
from kiwi.sources.adapter import PairMedia, SourceError
from kiwi.sources.entries import missing_keys, pair_of
from kiwi.sources.folders import files_in, folders_in, require_folder
from kiwi.sources.json_entries import read_json_lines, require_keys
from kiwi.sources.media_files import open_files
from kiwi.sources.origins import NHR_EDIT
from kiwi.sources.tasks import KindOf, declared, guessed

_KEYS = ("source_file_name", "edited_file_name", "edit_instruction")
_LISTING = "metadata.jsonl"


@dataclass(frozen=True)
class NhrEdit:
    """Image pairs. One pair a sample, with its first instruction; the rewordings would be the same pair again."""

    name: str = "nhr-edit"
    title: str = "NHR-Edit, image edits mined without human labels"
    license: str = NHR_EDIT.license
    layout: str = "train/metadata.jsonl: sample_id, source_file_name, edited_file_name, edit_instruction, category"

    def check(self, root: str) -> None:
        for _, path in self._listings(root):
            require_keys(read_json_lines(path), _KEYS, path)

    def entries(self, root: str) -> Iterator[EditPair]:
        position = 0
        for split, path in self._listings(root):
            for number, entry in enumerate(read_json_lines(path)):
                missing = missing_keys(entry.values, _KEYS)
                source, target, prompt = (entry.values.get(key) for key in _KEYS)
                yield pair_of(
                    position,
                    entry.values.get("sample_id") or f"{split or 'nhr-edit'}-{number:07d}",
                    source,
                    target,
                    prompt,
                    kind=_kind(entry.values.get("category")),
                    source_dataset=NHR_EDIT.dataset,
                    license=NHR_EDIT.license,
                    problem=entry.problem or (missing and f"line {entry.number}: {missing}"),
                )
                position += 1

    def open(self, root: str, pair: EditPair) -> PairMedia:
        splits = [split for split, _ in self._listings(root)]
        return open_files(root, pair, prefixes=(*splits, ""), shelves=splits)

    def _listings(self, root: str) -> list[tuple[str, str]]:
        return _listings(root.rstrip("/"), self.layout)


@lru_cache(maxsize=64)
def _listings(root: str, layout: str) -> list[tuple[str, str]]:
    root = require_folder(root)
    splits = [folder for folder in folders_in(root) if _LISTING in files_in(storage.join(root, folder))]
    found = [(split, storage.join(root, split, _LISTING)) for split in splits]
    if _LISTING in files_in(root):
        found.append(("", storage.join(root, _LISTING)))
    if not found:
        raise SourceError(f"{root}: holds no train/{_LISTING}", f"fetch it; layout: {layout}")
    return found


def _kind(category: object) -> KindOf:
    return declared_once(category.strip()) if isinstance(category, str) and category.strip() else guessed


@lru_cache(maxsize=1024)
def declared_once(word: str) -> KindOf:
    """`declared`, made once for each word."""
    return declared(word)


NHR_EDIT_TRAIN = NhrEdit()
