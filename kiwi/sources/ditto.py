"""Ditto-1M: `training_metadata/*.json` (lists of objects) or `csvs_for_DiffSynth/*.csv`, clips under `videos/`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from kiwi import storage
from kiwi.dataset.schema import EditPair
from kiwi.sources.adapter import PairMedia, SourceError
from kiwi.sources.delimited import read_records
from kiwi.sources.entries import missing_keys, pair_of
from kiwi.sources.folders import files_in, require_folder
from kiwi.sources.json_entries import read_json_list, require_keys
from kiwi.sources.media_files import open_files
from kiwi.sources.origins import DITTO, ditto_kind
from kiwi.sources.tasks import KindOf

_COLUMNS = {"json": ("source_path", "edited_path", "instruction"), "csv": ("vace_video", "video", "prompt")}
_FOLDERS = {"json": "training_metadata", "csv": "csvs_for_DiffSynth"}


class _Listed(NamedTuple):
    values: dict[str, Any]
    problem: str


@dataclass(frozen=True)
class Ditto:
    """The same pairs in two listings; each is an adapter of its own, so that none is listed twice.

    Listed paths may lack the `videos/` prefix. The clips are shipped as split .tar.gz archives and must be unpacked.
    """

    name: str
    listing: Literal["json", "csv"]
    layout: str
    title: str = "Ditto-1M, instruction-based video edits"
    license: str = DITTO.license

    def check(self, root: str) -> None:
        for path in self._listings(root):
            if self.listing == "json":
                require_keys(iter(read_json_list(path)), _COLUMNS["json"], path)
            else:
                next(read_records(path, _COLUMNS["csv"]), None)

    def entries(self, root: str) -> Iterator[EditPair]:
        source, target, prompt = _COLUMNS[self.listing]
        position = 0
        for path in self._listings(root):
            stem = path.rsplit("/", 1)[-1].rpartition(".")[0]
            for number, listed in enumerate(self._listed(path)):
                edited = listed.values.get(target)
                folder = edited.rpartition("/")[0] if isinstance(edited, str) else ""
                yield pair_of(
                    position,
                    f"{stem}-{number:07d}",
                    listed.values.get(source),
                    edited,
                    listed.values.get(prompt),
                    kind=_kind(folder, stem),
                    source_dataset=DITTO.dataset,
                    license=DITTO.license,
                    problem=listed.problem,
                )
                position += 1

    def open(self, root: str, pair: EditPair) -> PairMedia:
        return open_files(root, pair, prefixes=("", "videos"))

    def _listings(self, root: str) -> list[str]:
        folder = storage.join(require_folder(root), _FOLDERS[self.listing])
        names = [name for name in files_in(folder) if name.lower().endswith(f".{self.listing}")]
        if not names:
            raise SourceError(f"{folder}: holds no .{self.listing} file", f"fetch it; layout: {self.layout}")
        return [storage.join(folder, name) for name in names]

    def _listed(self, path: str) -> Iterator[_Listed]:
        if self.listing == "csv":
            for record in read_records(path, _COLUMNS["csv"]):
                yield _Listed(record.cells, record.problem)
            return
        for entry in read_json_list(path):
            missing = missing_keys(entry.values, _COLUMNS["json"])
            yield _Listed(entry.values, entry.problem or (missing and f"entry {entry.number}: {missing}"))


@lru_cache(maxsize=4096)
def _kind(folder: str, stem: str) -> KindOf:
    """By the edited clip's folder; by the listing's name where the folder says nothing."""
    return ditto_kind((*folder.split("/"), stem))


DITTO_JSON = Ditto("ditto-1m", "json", "training_metadata/*.json: source_path, edited_path, instruction; videos/")
DITTO_CSV = Ditto(
    "ditto-1m-csv", "csv", "csvs_for_DiffSynth/*.csv: video (target), vace_video (source), prompt; videos/"
)
