"""Training checkpoints: sharded safetensors and a JSON index, written while training goes on, kept by number.

torch.distributed.checkpoint would do the same, but its own index is a pickle, and nothing here is read from a pickle.
Each rank writes the pieces that it holds; the index, written last and in one move, makes a checkpoint one. Pieces say
where in the whole tensor they lie, so any number of ranks can take up what another number left.

checkpoints/step-00000200/   rank-00000.safetensors  rank-00000.json  …  index.json
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kiwi import storage
from kiwi.training.errors import TrainingError
from kiwi.training.ranks import Ranks, is_sharded
from kiwi.workspace import read_json

FOLDER = "checkpoints"
LAYOUT = 1
WRITING_NICENESS = 10  # of the thread that writes while training goes on
NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Piece:
    """A box of a tensor: where it begins in the whole, and its values on this rank."""

    offset: tuple[int, ...]
    values: Tensor


class Checkpoints:
    """The checkpoints of one stage, as one rank writes them.

    A save takes a copy in memory and leaves the writing to a thread. It counts from `commit` on, which the first
    rank calls when all ranks have `written`; the training asks for that with the one sum that it makes anyway.

    Args:
        folder: of the stage.
        keep: newest checkpoints that are kept.
    """

    def __init__(self, folder: Path, ranks: Ranks, keep: int) -> None:
        self._folder, self._ranks, self._keep = folder / FOLDER, ranks, keep
        self._thread: threading.Thread | None = None
        self._failure: OSError | SafetensorError | None = None
        self._pending: tuple[Path, dict[str, Any]] | None = None

    def save(self, step: int, tensors: dict[str, Tensor], said: dict[str, Any], *, wait: bool = False) -> None:
        """Saves named tensors and `said`, which must be JSON; with `wait` until it is on disk."""
        self.finish()
        place = self._folder / f"step-{step:08d}"
        pieces = {name: piece for name, tensor in tensors.items() if (piece := _own_piece(tensor, self._ranks))}
        held = {name: Piece(piece.offset, _copied(piece.values)) for name, piece in pieces.items()}
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        self._pending = (place, {"layout": LAYOUT, "step": step, "shapes": shapes, "said": said})
        self._thread = threading.Thread(target=self._write, args=(place, held, wait), name="checkpoint")
        self._thread.start()
        if wait:
            self.finish()

    @property
    def written(self) -> bool:
        """Whether this rank's part of a save lies on disk, to be committed. Raises TrainingError where it failed."""
        if self._thread is None or self._thread.is_alive():
            return False
        self._raise()
        return self._pending is not None

    def commit(self) -> None:
        """Makes the save in hand a checkpoint; called by all ranks when all have written."""
        if self._pending is None:
            return
        place, index = self._pending
        self._pending, self._thread = None, None
        if self._ranks.first:
            parts = {
                f"rank-{rank:05d}": read_json(place / f"rank-{rank:05d}.json") for rank in range(self._ranks.world)
            }
            _write_index(place / "index.json", {**index, "parts": parts})
            self._drop_old()

    def finish(self) -> None:
        """Waits for the save in hand, on all ranks, and commits it."""
        if self._pending is None:
            return
        if self._thread is not None:
            self._thread.join()
        self._raise()
        self._ranks.wait()
        self.commit()
        self._ranks.wait()

    def remove(self) -> None:
        """Removes all checkpoints: the stage is finished."""
        self.finish()
        if self._ranks.first:
            shutil.rmtree(self._folder, ignore_errors=True)

    def latest(self) -> Stored | None:
        """The newest checkpoint; None where there is none. Raises TrainingError for one that is damaged."""
        steps = _committed(self._folder)
        return Stored.opened(steps[-1]) if steps else None

    def _write(self, place: Path, pieces: dict[str, Piece], awaited: bool) -> None:
        if not awaited:
            _give_way()
        try:
            place.mkdir(parents=True, exist_ok=True)
            stem = place / f"rank-{self._ranks.rank:05d}"
            temporary = stem.with_suffix(f".{os.getpid()}.tmp")
            save_file({name: piece.values for name, piece in pieces.items()}, temporary)
            os.replace(temporary, stem.with_suffix(".safetensors"))
            boxes = {name: [list(piece.offset), list(piece.values.shape)] for name, piece in pieces.items()}
            _write_index(
                stem.with_suffix(".json"), {"bytes": stem.with_suffix(".safetensors").stat().st_size, "boxes": boxes}
            )
        except (OSError, SafetensorError) as error:
            self._failure = error

    def _raise(self) -> None:
        if self._failure is not None:
            raise TrainingError(
                f"a checkpoint cannot be written to {self._folder}: {self._failure}",
                "look at the disk; training resumes from the checkpoint before",
            ) from self._failure

    def _drop_old(self) -> None:
        kept = _committed(self._folder)[-self._keep :]
        for path in self._folder.iterdir():
            if NAME.fullmatch(path.name) and path not in kept and path.name < kept[-1].name:
                (path / "index.json").unlink(missing_ok=True)  # first: what is half removed is no checkpoint
                shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Stored:
    """A checkpoint on disk.

    Attributes:
        said: what was saved beside the tensors.
        shapes: of the whole tensors, by name.
        boxes: by name, where pieces lie: (file, offset, shape).
    """

    path: Path
    said: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    boxes: dict[str, list[tuple[str, tuple[int, ...], tuple[int, ...]]]]

    @classmethod
    def opened(cls, path: Path) -> Stored:
        """Reads the index, and sees that the files are there in full. Raises TrainingError where they are not."""
        try:
            index = json.loads((path / "index.json").read_text())
            boxes: dict[str, list[tuple[str, tuple[int, ...], tuple[int, ...]]]] = {}
            for stem, part in index["parts"].items():
                file = f"{Path(stem).name}.safetensors"
                size = (path / file).stat().st_size
                if size != part["bytes"]:
                    raise ValueError(f"{file} has {size} bytes, and was written with {part['bytes']}")
                for name, (offset, shape) in part["boxes"].items():
                    boxes.setdefault(name, []).append((file, tuple(offset), tuple(shape)))
            if index["layout"] != LAYOUT:
                raise ValueError(f"its layout is {index['layout']}, this release reads {LAYOUT}")
            shapes = {name: tuple(shape) for name, shape in index["shapes"].items()}
            return cls(path, index["said"], shapes, boxes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unusable(path, str(error)) from error

    def check(self, tensors: dict[str, Tensor]) -> None:
        """Raises TrainingError where the checkpoint's tensors are not those that are to be filled."""
        theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        ours = {name: shape for name, shape in self.shapes.items() if name in theirs or name.startswith("model.")}
        if ours != theirs:
            first = sorted(set(ours.items()) ^ set(theirs.items()))[0][0]
            raise TrainingError(
                f"{self.path} is a checkpoint of another model: {first} is {_size(ours.get(first))} there and "
                f"{_size(theirs.get(first))} here",
                f"delete {self.path.parent} to train the stage anew, or give the settings that it was made with",
            )

    @torch.no_grad()
    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Fills tensors in place, sharded ones with this rank's part. Raises TrainingError for a damaged file."""
        from safetensors import safe_open

        files: dict[str, Any] = {}
        try:
            for name, tensor in tensors.items():
                offset, local = _local(tensor)
                for file, begin, shape in self.boxes.get(name, []):
                    if file not in files:
                        files[file] = safe_open(self.path / file, framework="pt")
                    _copy_common(files[file], name, begin, shape, offset, local)
        except (OSError, SafetensorError) as error:
            raise _unusable(self.path, str(error)) from error


def _write_index(path: Path, said: dict[str, Any]) -> None:
    """Whole or not at all, on one line: indented JSON is made by Python code, which holds up the training's."""
    storage.write_bytes(path, json.dumps(said).encode())


def _give_way() -> None:
    """Lets the training go before this thread, where a system has a priority for each thread."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = max(os.getpriority(os.PRIO_PROCESS, thread), WRITING_NICENESS)
        os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _committed(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name) and (path / "index.json").is_file())


def _unusable(path: Path, why: str) -> TrainingError:
    return TrainingError(
        f"{path} cannot be resumed from: {why}",
        f"delete {path} to resume from the checkpoint before, or from the start",
    )


def _size(shape: Iterable[int] | None) -> str:
    return "absent" if shape is None else "×".join(map(str, shape)) or "a number"


def _copied(tensor: Tensor) -> Tensor:
    """A copy in main memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _own_piece(tensor: Tensor, ranks: Ranks) -> Piece | None:
    """What this rank writes of a tensor: its shard, or where several hold the same, the first of them writes it."""
    if not is_sharded(tensor):
        return Piece((0,) * tensor.dim(), tensor) if ranks.first else None
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(tensor, DTensor)
    coordinate: list[int] = list(tensor.device_mesh.get_coordinate() or [])
    copies = [place for place, kind in zip(coordinate, tensor.placements, strict=True) if isinstance(kind, Replicate)]
    offset, local = _local(tensor)
    return Piece(offset, local) if not any(copies) and local.numel() else None


def _local(tensor: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """Where this rank's part of a tensor begins, and that part."""
    if not is_sharded(tensor):
        return (0,) * tensor.dim(), tensor
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert isinstance(tensor, DTensor)
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offset), tensor.to_local()


def _copy_common(
    file: Any, name: str, begin: tuple[int, ...], shape: tuple[int, ...], offset: tuple[int, ...], local: Tensor
) -> None:
    """Copies what a stored box and a local part have in common."""
    if not local.dim():
        local.copy_(file.get_tensor(name))
        return
    starts = [max(a, b) for a, b in zip(begin, offset, strict=True)]
    ends = [min(a + n, b + m) for a, n, b, m in zip(begin, shape, offset, local.shape, strict=True)]
    if any(start >= end for start, end in zip(starts, ends, strict=True)):
        return
    theirs = tuple(slice(s - b, e - b) for s, e, b in zip(starts, ends, begin, strict=True))
    ours = tuple(slice(s - b, e - b) for s, e, b in zip(starts, ends, offset, strict=True))
    local[ours].copy_(file.get_slice(name)[theirs])
