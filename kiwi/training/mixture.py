"""What a step trains on: batches drawn from the latent cache, mixed by ratio, one kind and one bucket a step.

Everything is a function of the seed, the stage and the step, so a resumed run draws what the uninterrupted one
would have drawn, whatever the number of ranks, and no loader state has to be kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kiwi.configuration import MediaKind, StageSettings
from kiwi.model.context import ContextEncoder
from kiwi.model.instruction import Prompt, PromptBatch, collate, tokenise
from kiwi.training.augmentation import shrunk_references
from kiwi.training.buckets import Bucket, read_buckets
from kiwi.training.errors import TrainingError

NOISE_AT_ONCE = 1 << 24  # values of noise that are drawn for a whole batch; above, each sample draws its own
Step = tuple[MediaKind, int, int]


@dataclass(frozen=True)
class Batch:
    """One step's data, or a part of it. Latents float32 [B, C, F, h, w]; vision tokens float32 [B, V, hidden].

    `reference_pixels`, uint8 [B, H, W, 3], are there where references are yet to be encoded.
    """

    kind: MediaKind
    iids: list[str]
    prompts: PromptBatch
    source: Tensor
    target: Tensor
    vision: Tensor
    reference: Tensor | None
    reference_vision: Tensor | None
    reference_pixels: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on a device; prompts follow in the context encoder."""
        if device.type == "cpu":
            return self
        names = ("source", "target", "vision", "reference", "reference_vision")
        tensors = {name: getattr(self, name) for name in names}
        moved = {n: t.pin_memory().to(device, non_blocking=True) for n, t in tensors.items() if t is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class Patching:
    """Pixels and frames that make one transformer token."""

    height: int = 8
    width: int = 8
    frames: int = 4

    def tokens(self, bucket: Bucket) -> int:
        """Tokens of one sample, a reference's included."""
        frames = 1 + (bucket.frames - 1) // self.frames + (bucket.kind == "reference")
        return frames * (bucket.height // self.height) * (bucket.width // self.width)


class Mixture:
    """Draws batches of a cache by a stage's mix.

    Args:
        folder: of the cache.
        stage: its `mix` gives the share of steps by kind; kinds that the cache lacks are left out and said so.
        seed: of the run.
        patching: what makes a token, for batches that are filled to a number of tokens.
        least: samples of a batch, at least (the number of ranks and of their parts).
        dataset, encoder: digests that the cache must have been made of and by; None: any.

    Raises:
        TrainingError: the cache is damaged or of something else, or has none of the kinds of the mix.
    """

    def __init__(
        self, folder: Path, stage: StageSettings, encoder: ContextEncoder, seed: int, *,
        patching: Patching | None = None, least: int = 1, dataset: str | None = None, encoder_digest: str | None = None,
    ) -> None:  # fmt: skip
        self._stage = stage
        self._encoder = encoder
        self._patching = patching or Patching()
        self._least = least
        self._seed = (seed, zlib.crc32(stage.name.encode()))
        self.buckets: dict[MediaKind, list[Bucket]] = {}
        for bucket in read_buckets(folder, set(self._wanted()), dataset=dataset, encoder=encoder_digest):
            self.buckets.setdefault(bucket.kind, []).append(bucket)
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

    def size(self, kind: MediaKind, place: int) -> int:
        """Samples of a batch of a bucket, over all ranks."""
        if self._stage.batch_tokens is None:
            return max(self._least, self._stage.batch_size)
        return max(self._least, self._stage.batch_tokens // self.tokens(kind, place))

    def tokens(self, kind: MediaKind, place: int) -> int:
        """Transformer tokens of one sample of a bucket."""
        return self._patching.tokens(self.buckets[kind][place])

    def steps(self) -> int:
        """The stage's steps, or fewer where they would pass over the data more than `max_epochs` times."""
        bound = int(np.ceil(self._stage.max_epochs * self.samples / self._mean_size()))
        return max(1, min(self._stage.steps, bound))

    def _mean_size(self) -> float:
        if self._stage.batch_tokens is None:
            return self.size(self._kinds[0], 0)
        means = []
        for kind in self._kinds:
            counts = np.array([len(bucket.rows) for bucket in self.buckets[kind]], float)
            sizes = [self.size(kind, place) for place in range(len(counts))]
            means.append(float(np.average(sizes, weights=counts)))
        return float(np.average(means, weights=self._shares))

    def plan(self, steps: int) -> list[Step]:
        """(kind, bucket, batches of this bucket drawn before) of every step."""
        rng = np.random.default_rng([*self._seed, 1])
        drawn: dict[tuple[str, int], int] = {}
        plan: list[Step] = []
        for _ in range(steps):
            kind = self._kinds[int(rng.choice(len(self._kinds), p=self._shares))]
            sizes = np.array([len(bucket.rows) for bucket in self.buckets[kind]], float)
            place = int(rng.choice(len(sizes), p=sizes / sizes.sum()))
            plan.append((kind, place, drawn.get((kind, place), 0)))
            drawn[kind, place] = plan[-1][2] + 1
        return plan

    def batch(self, kind: MediaKind, place: int, before: int, part: slice = slice(None)) -> Batch:
        """The batch number `before` of a bucket, or some of its samples.

        Samples go round in an order that is shuffled anew each epoch.
        """
        bucket = self.buckets[kind][place]
        size = self.size(kind, place)
        numbers = list(range(before * size, (before + 1) * size))[part]
        picked = [self._pick(bucket, kind, place, number) for number in numbers]
        tensors = bucket.take(picked)
        pixels = tensors.pop("reference_pixels", None)
        if pixels is not None and self._stage.reference_scale is not None:
            pixels = shrunk_references(pixels, self._stage.reference_scale, (*self._seed, 4, place), numbers)
        else:
            pixels = None
        floats = {name: tensor.float() for name, tensor in tensors.items()}
        prompts = collate([self._prompt(bucket, index) for index in picked], self._encoder.tokenizer.pad_token_id)
        return Batch(
            kind, [bucket.rows[index][0] for index in picked], prompts, floats["source"], floats["target"],
            floats["vision"], floats.get("reference"), floats.get("reference_vision"), pixels,
        )  # fmt: skip

    def _pick(self, bucket: Bucket, kind: str, place: int, index: int) -> int:
        epoch, offset = divmod(index, len(bucket.rows))
        if (kind, place, epoch) not in self._orders:
            self._orders.pop((kind, place, epoch - 2), None)
            rng = np.random.default_rng([*self._seed, 2, zlib.crc32(kind.encode()), place, epoch])
            self._orders[kind, place, epoch] = rng.permutation(len(bucket.rows))
        return int(self._orders[kind, place, epoch][offset])

    def _prompt(self, bucket: Bucket, index: int) -> Prompt:
        if index not in bucket.prompts:
            encoder = self._encoder
            bucket.prompts[index] = tokenise(
                encoder.template, encoder.tokenizer, encoder.mllm, bucket.rows[index][1], bucket.kind,
                bucket.grid, bucket.reference_grid,
            )  # fmt: skip
        return bucket.prompts[index]


def training_noise(shape: Sequence[int], seed: tuple[int, ...], part: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """(noise of `shape`, indices 0-999 into the training levels [B]) of one step, or some samples' share of them.

    A function of the shape of the whole batch and the seed: ranks that draw their own parts draw what one process
    would have drawn. Large noise is drawn sample by sample, so that a rank need not draw all of it.
    """
    if int(np.prod(shape)) <= NOISE_AT_ONCE:
        rng = np.random.default_rng(list(seed))
        noise = torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32)[part])
        return noise, torch.from_numpy(rng.integers(0, 1000, shape[0])[part])
    own = [np.random.default_rng([*seed, number]) for number in range(shape[0])[part]]
    noise = torch.from_numpy(np.stack([rng.standard_normal(tuple(shape[1:]), dtype=np.float32) for rng in own]))
    return noise, torch.from_numpy(np.stack([rng.integers(0, 1000) for rng in own]))
