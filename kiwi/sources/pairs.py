"""The user's own pairs: a CSV (or a folder that holds pairs.csv) of source, target and instruction.

Columns `src_video, tgt_video, prompt`, and optionally `id, edit_type, ref_image, license, source_dataset`; paths are
relative to the CSV's folder and may not leave it. `;` and tabs are found out, a byte-order mark is no matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from kiwi import storage
from kiwi.dataset.schema import EditPair
from kiwi.sources.adapter import PairMedia, SourceError
from kiwi.sources.delimited import read_records
from kiwi.sources.entries import pair_of
from kiwi.sources.media_files import open_files
from kiwi.sources.origins import UNSPECIFIED_LICENSE
from kiwi.sources.tasks import GUESSED, declared, guess_task, guessed, task_of

__all__ = ["GUESSED", "OWN_PAIRS", "OwnPairs", "guess_task", "pairs_csv", "task_of"]

REQUIRED = ("src_video", "tgt_video", "prompt")
OPTIONAL = ("id", "edit_type", "ref_image", "license", "source_dataset")
_declared = lru_cache(maxsize=1024)(declared)


def pairs_csv(location: str | None) -> str:
    """The path or address of the CSV that `--pairs` means. Raises SourceError if there is none."""
    if not location:
        raise SourceError("no pairs given", "give --pairs a CSV, or a folder with pairs.csv")
    try:
        if location.lower().endswith((".csv", ".tsv")):
            if not storage.exists(location):
                raise SourceError(f"{location}: not found", "check --pairs")
            return location
        if not storage.exists(location) and not storage.is_folder(location):
            raise SourceError(f"{location}: no such folder", "check --pairs")
        if not storage.is_folder(location):
            return location
        inside = storage.join(location, "pairs.csv")
        if not storage.exists(inside):
            raise SourceError(f"{location}: holds no pairs.csv", f"write one with the columns {', '.join(REQUIRED)}")
    except storage.StorageError as error:
        raise SourceError(error.message, error.remedy) from error
    return inside


@dataclass(frozen=True)
class OwnPairs:
    """One CSV of pairs. An edit type that is not given is guessed from the instruction, and called a guess."""

    name: str = "pairs"
    title: str = "your own pairs (also --pairs)"
    license: str = "as the column `license` says"
    layout: str = (
        "a CSV, or pairs.csv: src_video, tgt_video, prompt[, id, edit_type, ref_image, license, source_dataset]"
    )

    def check(self, root: str) -> None:
        next(self.entries(root))

    def entries(self, root: str) -> Iterator[EditPair]:
        path = pairs_csv(root)
        dataset = PurePosixPath(storage.parent(path).replace("\\", "/")).name or "pairs"
        position = -1
        for position, record in enumerate(read_records(path, REQUIRED, OPTIONAL)):
            cells = record.cells
            word = cells.get("edit_type", "")
            yield pair_of(
                position,
                cells.get("id") or f"{dataset}-{position:07d}",
                cells["src_video"],
                cells["tgt_video"],
                cells["prompt"],
                kind=_declared(word) if word else guessed,
                source_dataset=cells.get("source_dataset") or dataset,
                license=cells.get("license") or UNSPECIFIED_LICENSE,
                reference=cells.get("ref_image", ""),
                problem=record.problem,
            )
        if position < 0:
            raise SourceError(f"{path}: has a header but no rows", "write a row for each pair")

    def open(self, root: str, pair: EditPair) -> PairMedia:
        return open_files(_folder(root), pair)


@lru_cache(maxsize=64)
def _folder(root: str) -> str:
    """The folder that a CSV's paths are relative to: looked for once, not at every pair."""
    return storage.parent(pairs_csv(root))


OWN_PAIRS = OwnPairs()
