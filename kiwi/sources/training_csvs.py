"""The authors' training lists: CSVs of `src_video, tgt_video, prompt`, and `ref_image` where there are references."""

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
from kiwi.sources.origins import UNSPECIFIED_LICENSE, origin_of

_REQUIRED = ("src_video", "tgt_video", "prompt")
_METADATA = "_metadata"


@dataclass(frozen=True)
class TrainingCsvs:
    """Every CSV in the root and in its `*_metadata` folders; or one, where the location is a CSV.

    Paths are relative to the root. An absolute one, of the machine where the list was written, is found by its end.
    Licence, source and kind of edit follow from the folders in the target's path, where they are known ones.
    """

    name: str = "training-csvs"
    title: str = "the authors' training lists: image, video, and reference pairs"
    license: str = "that of each row's source"
    layout: str = "*.csv in the root or *_metadata/: src_video, tgt_video, prompt[, ref_image]; media under the root"

    def check(self, root: str) -> None:
        for path in _listings(root, self.layout)[1]:
            next(read_records(path, _REQUIRED), None)

    def entries(self, root: str) -> Iterator[EditPair]:
        position = 0
        folder, paths = _listings(root, self.layout)
        for path in paths:
            listed = path.removeprefix(folder).lstrip("/").removesuffix(".csv")
            for number, record in enumerate(read_records(path, _REQUIRED, ("ref_image",))):
                cells = record.cells
                origin, kind = origin_of(cells["tgt_video"])
                yield pair_of(
                    position,
                    f"{listed}-{number:07d}",
                    cells["src_video"],
                    cells["tgt_video"],
                    cells["prompt"],
                    kind=kind,
                    source_dataset=origin.dataset if origin else self.name,
                    license=origin.license if origin else UNSPECIFIED_LICENSE,
                    reference=cells.get("ref_image", ""),
                    problem=record.problem,
                )
                position += 1

    def open(self, root: str, pair: EditPair) -> PairMedia:
        return open_files(_base(root.rstrip("/")), pair, tails=True)


def _base(root: str) -> str:
    """The folder that paths are relative to: of a CSV its own, or the one above a `*_metadata` folder."""
    if not root.lower().endswith(".csv"):
        return root
    folder = storage.parent(root)
    return storage.parent(folder) if folder.endswith(_METADATA) else folder


def _listings(root: str, layout: str) -> tuple[str, list[str]]:
    root = root.rstrip("/")
    folder = require_folder(_base(root))
    if folder != root:
        if not storage.exists(root):
            raise SourceError(f"{root}: not found", "check the location")
        return folder, [root]
    places = [root, *(storage.join(root, name) for name in folders_in(root) if name.endswith(_METADATA))]
    paths = [storage.join(place, name) for place in places for name in files_in(place) if name.lower().endswith(".csv")]
    if not paths:
        raise SourceError(f"{root}: holds no CSV", f"fetch the lists; layout: {layout}")
    return folder, paths


TRAINING_CSVS = TrainingCsvs()
