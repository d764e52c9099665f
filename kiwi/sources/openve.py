"""OpenVE-3M: one CSV a category, whose name is the category's, delimited by commas or semicolons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kiwi import storage
from kiwi.dataset.schema import EditPair
from kiwi.sources.adapter import PairMedia, SourceError
from kiwi.sources.delimited import read_records
from kiwi.sources.entries import pair_of
from kiwi.sources.folders import files_in, folders_in, require_folder
from kiwi.sources.media_files import open_files
from kiwi.sources.origins import OPENVE, openve_kind

_COLUMNS = ("original_video", "video", "prompt")


@dataclass(frozen=True)
class OpenVE:
    """The lists lie in the root or in a folder of it that begins with `csv`; paths may lack the videos' folder."""

    name: str = "openve-3m"
    title: str = "OpenVE-3M, instruction-guided video edits in eight categories"
    license: str = OPENVE.license
    layout: str = "{category}.csv in the root or csv*/: original_video, video (edited), prompt; videos/"

    def check(self, root: str) -> None:
        for path in self._listings(root):
            next(read_records(path, _COLUMNS), None)

    def entries(self, root: str) -> Iterator[EditPair]:
        position = 0
        for path in self._listings(root):
            stem = path.rsplit("/", 1)[-1].rpartition(".")[0]
            kind = openve_kind((stem,))
            for number, record in enumerate(read_records(path, _COLUMNS)):
                yield pair_of(
                    position,
                    f"{stem}-{number:07d}",
                    record.cells["original_video"],
                    record.cells["video"],
                    record.cells["prompt"],
                    kind=kind,
                    source_dataset=OPENVE.dataset,
                    license=OPENVE.license,
                    problem=record.problem,
                )
                position += 1

    def open(self, root: str, pair: EditPair) -> PairMedia:
        return open_files(root, pair, prefixes=("", "videos", "videos_folders"), tails=True)

    def _listings(self, root: str) -> list[str]:
        root = require_folder(root)
        places = [
            root,
            *(storage.join(root, folder) for folder in folders_in(root) if folder.lower().startswith("csv")),
        ]
        paths = [storage.join(place, name) for place in places for name in files_in(place) if name.endswith(".csv")]
        if not paths:
            raise SourceError(f"{root}: holds no CSV", f"fetch the lists; layout: {self.layout}")
        return paths


OPENVE_3M = OpenVE()
