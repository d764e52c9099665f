"""Samples of one kind and shape in a latent cache: read lazily from its files, and checked when they are drawn."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from kiwi.configuration import MediaKind
from kiwi.model.instruction import Prompt, VisionGrid
from kiwi.training.errors import TrainingError
from kiwi.training.results import CACHE_VERSION
from kiwi.workspace import read_json


@dataclass
class Part:
    """One file of a bucket. safetensors maps it into memory, so that only what is drawn is read."""

    path: Path
    tensors: dict[str, Tensor]
    checksums: list[int]
    checked: set[int] = field(default_factory=set)


@dataclass
class Bucket:
    """Samples of one kind and shape; prompts are tokenised when first drawn.

    Attributes:
        rows: [iid, prompt] of each sample.
        starts: of each part, the number of its first sample.
        grid, reference_grid: of the vision inputs.
    """

    kind: MediaKind
    frames: int
    height: int
    width: int
    rows: list[list[str]]
    parts: list[Part]
    starts: list[int]
    grid: VisionGrid
    reference_grid: VisionGrid | None
    prompts: dict[int, Prompt] = field(default_factory=dict)

    def take(self, indices: list[int]) -> dict[str, Tensor]:
        """Tensors of some samples, in that order: float16, pixels uint8. Raises TrainingError for a damaged one."""
        found = [self._place(index) for index in indices]
        for part, place in found:
            _check(part, place)
        if len(self.parts) == 1:
            places = [place for _, place in found]
            return {name: tensor[places] for name, tensor in self.parts[0].tensors.items()}
        names = self.parts[0].tensors
        return {name: torch.stack([part.tensors[name][place] for part, place in found]) for name in names}

    def _place(self, index: int) -> tuple[Part, int]:
        number = bisect.bisect_right(self.starts, index) - 1
        return self.parts[number], index - self.starts[number]


def read_buckets(
    folder: Path, kinds: set[MediaKind], *, dataset: str | None = None, encoder: str | None = None
) -> list[Bucket]:
    """The buckets of some kinds of a finished cache.

    Args:
        dataset, encoder: digests that the cache must have been made of and by; None: any.

    Raises:
        TrainingError: a cache that is damaged, or of another dataset version, encoder or release.
    """
    said = _read_json(folder, "cache.json")
    for name, expected, what in (("dataset", dataset, "dataset version"), ("encoder", encoder, "encoder")):
        if expected is not None and said.get(name) != expected:
            raise TrainingError(
                f"the latent cache in {folder} was made of another {what}: {str(said.get(name))[:16]} is not "
                f"{expected[:16]}",
                f"delete {folder} to compute it anew, or train with what it was made of",
            )
    if said.get("version") != CACHE_VERSION:
        raise TrainingError(
            f"the latent cache in {folder} has the layout {said.get('version')}, this release reads {CACHE_VERSION}",
            f"delete {folder}, run again",
        )
    records: dict[int, Any] = {}
    try:
        return [_bucket(folder, entry, records) for entry in said["buckets"] if entry["kind"] in kinds]
    except (KeyError, IndexError, TypeError) as error:
        raise _damaged(folder, folder / "cache.json", repr(error)) from error


def _bucket(folder: Path, entry: dict[str, Any], records: dict[int, Any]) -> Bucket:
    rows: list[list[str]] = []
    parts: list[Part] = []
    starts: list[int] = []
    told: dict[str, Any] = {}
    for number, place in entry["parts"]:
        if number not in records:
            records[number] = _read_json(folder, f"chunks/{number:05d}.json")
        told = records[number]["parts"][place]
        starts.append(len(rows))
        rows += told["rows"]
        parts.append(_part(folder, told))
    seen = told.get("reference_grid")
    return Bucket(
        entry["kind"], entry["frames"], entry["height"], entry["width"], rows, parts, starts,
        VisionGrid(*told["grid"]), VisionGrid(*seen) if seen else None,
    )  # fmt: skip


def _part(folder: Path, told: dict[str, Any]) -> Part:
    from safetensors.torch import load_file

    path = folder / Path(told["file"]).name
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, path, str(error)) from error
    if any(len(tensor) != len(told["rows"]) for tensor in tensors.values()) or not tensors:
        raise _damaged(folder, path, "it lacks samples")
    return Part(path, tensors, told["checksums"])


def _check(part: Part, place: int) -> None:
    """Compares a sample with its checksum, the first time that it is drawn."""
    if place in part.checked:
        return
    from kiwi.training.latents import checksum

    if checksum(part.tensors, place) != part.checksums[place]:
        raise _damaged(part.path.parent, part.path, f"sample {place} is not what was written")
    part.checked.add(place)


def _read_json(folder: Path, name: str) -> Any:
    try:
        return read_json(folder / name)
    except (OSError, ValueError) as error:
        raise _damaged(folder, folder / name, str(error)) from error


def _damaged(folder: Path, path: Path, why: str) -> TrainingError:
    return TrainingError(f"the latent cache is damaged: {path}: {why}", f"delete {folder}, run again")
