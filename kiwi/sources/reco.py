"""ReCo-Data: `TASK/TASK_data_configs.json` (a list), clips in `TASK/src_videos` and `TASK/tar_videos`."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from kiwi import storage
from kiwi.dataset.schema import EditPair
from kiwi.sources.adapter import PairMedia, SourceError
from kiwi.sources.entries import missing_keys, pair_of
from kiwi.sources.folders import files_in, folders_in, require_folder
from kiwi.sources.json_entries import read_json_list, require_keys
from kiwi.sources.media_files import open_files
from kiwi.sources.origins import RECO
from kiwi.sources.tasks import declared

_KEYS = ("src_video", "tar_video", "instruction_final_refine")


@dataclass(frozen=True)
class Reco:
    """Its task folders (add, remove, replace, style, and whatever else is there in that form), in the order of names.

    Paths are relative to the root; one that lacks the task's folder is looked for in it. The clips are shipped as tars
    that lie where they are to be unpacked; they are read as they are.
    """

    name: str = "reco"
    title: str = "ReCo-Data, region-constrained video edits"
    license: str = RECO.license
    layout: str = "{add,remove,replace,style}/{task}_data_configs.json, src_videos/, tar_videos/ (unpacked or as tars)"

    def check(self, root: str) -> None:
        for _, path in self._listings(root):
            require_keys(read_json_list(path), _KEYS, path)

    def entries(self, root: str) -> Iterator[EditPair]:
        position = 0
        for task, path in self._listings(root):
            kind = declared(task)
            for number, entry in enumerate(read_json_list(path)):
                missing = missing_keys(entry.values, _KEYS)
                source, target, prompt = (entry.values.get(key) for key in _KEYS)
                yield pair_of(
                    position,
                    f"{task}-{number:07d}",
                    source,
                    target,
                    prompt,
                    kind=kind,
                    source_dataset=RECO.dataset,
                    license=RECO.license,
                    problem=entry.problem or (missing and f"entry {entry.number}: {missing}"),
                )
                position += 1

    def open(self, root: str, pair: EditPair) -> PairMedia:
        task = pair.edit_type
        folders = [posixpath.dirname(path).lstrip("/") for path in (pair.src_video, pair.tgt_video)]
        shelves = [shelf for folder in folders for shelf in (folder, posixpath.join(task, folder)) if ".." not in shelf]
        return open_files(root, pair, prefixes=("", task), shelves=shelves)

    def _listings(self, root: str) -> list[tuple[str, str]]:
        root = require_folder(root)
        found = []
        for task in folders_in(root):
            name = f"{task}_data_configs.json"
            if name in files_in(storage.join(root, task)):
                found.append((task, storage.join(root, task, name)))
        if not found:
            raise SourceError(f"{root}: holds no TASK/TASK_data_configs.json", f"fetch it; layout: {self.layout}")
        return found


RECO_DATA = Reco()
