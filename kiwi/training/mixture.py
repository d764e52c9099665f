"""What a step trains on: batches drawn from the latent cache, mixed by ratio, one kind and one bucket a step.

Everything is a function of the seed, the stage and the step, so a resumed run draws what the uninterrupted one
would have drawn, and no loader state has to be kept.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from kiwi.configuration import MediaKind, StageSettings
from kiwi.model.context import ContextEncoder
from kiwi.model.instruction import Prompt, PromptBatch, VisionGrid, collate, tokenise
from kiwi.training.errors import TrainingError
from kiwi.workspace import read_json


@dataclass
class Bucket:
    """Samples of one kind and shape, in memory as float16; prompts are tokenised when first drawn."""

    kind: MediaKind
    tensors: dict[str, Tensor]
    rows: list[list[str]]  # [iid, prompt]
    prompts: dict[int, Prompt]


@dataclass(frozen=True)
class Batch:
    """One step's data. Latents float32 [B, C, F, h, w]; vision tokens float32 [B, V, hidden]."""

    kind: MediaKind
    iids: list[str]
    prompts: PromptBatch
    source: Tensor
    target: Tensor
    vision: Tensor
    reference: Tensor | None
    reference_vision: Tensor | None


class Mixture:
    """Draws batches of a cache by a stage's mix.

    Args:
        folder: of the cache.
        stage: its `mix` gives the share of steps by kind; kinds that the cache lacks are left out and said so.
        seed: of the run.

    Raises:
        TrainingError: the cache is damaged, or has none of the kinds of the mix.
    """

    def __init__(self, folder: Path, stage: StageSettings, encoder: ContextEncoder, seed: int) -> None:
        self._stage = stage
        self._encoder = encoder
        self._seed = (seed, zlib.crc32(stage.name.encode()))
        self.buckets: dict[MediaKind, list[Bucket]] = {}
        for entry in _buckets(folder):
            if stage.mix.get(entry["kind"], 0) > 0:
                self.buckets.setdefault(entry["kind"], []).append(_read(folder, entry))
        if not self.buckets:
            raise TrainingError(
                f"stage {stage.name} trains on {', '.join(self._wanted())}, and the dataset has none of them",
                "loosen the curation thresholds, or give more pairs",
            )
        self.missing = [kind for kind in self._wanted() if kind not in self.buckets]
        self._kinds = sorted(self.buckets)
        shares = np.array([stage.mix[kind] for kind in self._kinds])
        self._shares = shares / shares.sum()
        self._orders: dict[tuple[str, int, int], np.ndarray] = {}

    def _wanted(self) -> list[MediaKind]:
        return [kind for kind, share in self._stage.mix.items() if share > 0]

    @property
    def samples(self) -> int:
        return sum(len(bucket.rows) for buckets in self.buckets.values() for bucket in buckets)

    def steps(self) -> int:
        """The stage's steps, or fewer where they would pass over the data more than `max_epochs` times."""
        bound = int(np.ceil(self._stage.max_epochs * self.samples / self._stage.batch_size))
        return max(1, min(self._stage.steps, bound))

    def plan(self, steps: int) -> list[tuple[MediaKind, int, int]]:
        """(kind, bucket, batches of this bucket drawn before) of every step."""
        rng = np.random.default_rng([*self._seed, 1])
        drawn: dict[tuple[str, int], int] = {}
        plan = []
        for _ in range(steps):
            kind = self._kinds[int(rng.choice(len(self._kinds), p=self._shares))]
            sizes = np.array([len(bucket.rows) for bucket in self.buckets[kind]], float)
            place = int(rng.choice(len(sizes), p=sizes / sizes.sum()))
            plan.append((kind, place, drawn.get((kind, place), 0)))
            drawn[kind, place] = plan[-1][2] + 1
        return plan

    def batch(self, kind: MediaKind, place: int, before: int) -> Batch:
        """The batch number `before` of a bucket: samples go round in an order that is shuffled anew each epoch."""
        bucket = self.buckets[kind][place]
        size = self._stage.batch_size
        picked = [self._pick(bucket, kind, place, index) for index in range(before * size, (before + 1) * size)]
        tensors = {name: tensor[picked].float() for name, tensor in bucket.tensors.items()}
        prompts = collate([self._prompt(bucket, index) for index in picked], self._encoder.tokenizer.pad_token_id)
        return Batch(
            kind, [bucket.rows[index][0] for index in picked], prompts, tensors["source"], tensors["target"],
            tensors["vision"], tensors.get("reference"), tensors.get("reference_vision"),
        )  # fmt: skip

    def _pick(self, bucket: Bucket, kind: str, place: int, index: int) -> int:
        epoch, offset = divmod(index, len(bucket.rows))
        if (kind, place, epoch) not in self._orders:
            rng = np.random.default_rng([*self._seed, 2, zlib.crc32(kind.encode()), place, epoch])
            self._orders[kind, place, epoch] = rng.permutation(len(bucket.rows))
        return int(self._orders[kind, place, epoch][offset])

    def _prompt(self, bucket: Bucket, index: int) -> Prompt:
        if index not in bucket.prompts:
            encoder = self._encoder
            reference = _grid(bucket.tensors["reference_vision"]) if bucket.kind == "reference" else None
            bucket.prompts[index] = tokenise(
                encoder.template, encoder.tokenizer, encoder.mllm, bucket.rows[index][1], bucket.kind,
                _grid(bucket.tensors["vision"]), reference,
            )  # fmt: skip
        return bucket.prompts[index]


def _buckets(folder: Path) -> list[dict[str, Any]]:
    try:
        return cast("list[dict[str, Any]]", read_json(folder / "cache.json")["buckets"])
    except (OSError, ValueError, KeyError) as error:
        said = f"the latent cache is damaged: {folder / 'cache.json'}: {error}"
        raise TrainingError(said, f"delete {folder}, run again") from error


def _grid(tokens: Tensor) -> VisionGrid:
    """The grid of square vision inputs of one temporal patch, from their merged tokens [N, V, hidden]."""
    side = 2 * int(tokens.shape[1] ** 0.5)
    return VisionGrid(1, side, side)


def _read(folder: Path, entry: dict[str, Any]) -> Bucket:
    from safetensors.torch import load_file

    path = folder / entry["file"]
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"the latent cache is damaged: {path}: {error}", f"delete {folder}, run again") from error
    if any(len(tensor) != len(entry["rows"]) for tensor in tensors.values()):
        raise TrainingError(f"the latent cache is damaged: {path} lacks samples", f"delete {folder} and run again")
    return Bucket(cast(MediaKind, entry["kind"]), tensors, entry["rows"], {})


def training_noise(shape: torch.Size, seed: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(noise of `shape`, indices 0-999 into the training levels [B]) of one step."""
    rng = np.random.default_rng(list(seed))
    noise = torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
    return noise, torch.from_numpy(rng.integers(0, 1000, shape[0]))
