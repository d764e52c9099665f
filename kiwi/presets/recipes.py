"""The paper's curriculum by two recipes, `paper` and `released`, as stages that can be scaled down.

The rows are data. They become settings of a stage, with the sizes, lengths, buckets and
augmentation that belong to them, at the size that they name or at a smaller one of the same shape.

Where the two recipes disagree, and what is taken:

- Rates: the paper's text says 2e-5 throughout; the authors' scripts train stages 1 and 2 at 1e-5, stage 3 at 5e-6.
- Steps: the text names 12K and 10K; the scripts run 30K, 20K for each resolution of stage 2, and 15K.
- Stage 3's mix of images, videos and references: 2:1:1 in the text, 1:1:1 in the scripts.
- Stage 3 on references alone ("Ref. data only", 30K steps) is a row of the scripts that the text's table compares with.
- Batches: the scripts take 128 samples of any kind, so that an image step computes a twentieth of what a clip step
  does, and its devices wait for each other's gradients. Here stages that mix both fill image batches to the tokens of
  128 clips, which are some 18 to 21 images for each clip; clips and references stay at about 128. Stage 1, images
  alone, keeps the scripts' 128, for which its rate was chosen. `--set stages.NAME.batch_tokens=null` brings the
  scripts' batches back.
- Stage 1 trains both connectors in the text; the scripts train the query connector alone. Both stages' settings say
  "connectors": with images there is no reference, so that the second connector has no gradient and stays as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from kiwi.configuration import MediaKind, StageSettings

Recipe = Literal["released", "paper"]
BRIDGE = ("queries", "connectors", "lora")
GLOBAL_BATCH = 128
PIXELS = 921_600


@dataclass(frozen=True)
class Stage:
    """One row of a recipe: pixels of a frame, frames of a clip at most, steps, learning rate, mix, what is trained."""

    name: str
    pixels: int
    frames: int
    steps: int
    rate: float
    mix: dict[MediaKind, float]
    trainable: tuple[str, ...] = ("all",)


# The paper's text names 12K steps and, for stages 2 and 3, 10K; it does not say which of them stage 1 has, nor how the
# two resolutions of stage 2 share theirs. Taken here: 12K for stage 1, 10K for each resolution.
RECIPES: dict[Recipe, tuple[Stage, ...]] = {
    "released": (
        Stage("stage1", 1024 * 1024, 1, 30_000, 1e-5, {"image": 1.0}, BRIDGE),
        Stage("stage2a", 360_000, 81, 20_000, 1e-5, {"image": 0.5, "video": 0.5}),
        Stage("stage2b", PIXELS, 81, 20_000, 1e-5, {"image": 0.5, "video": 0.5}),
        Stage("stage3", PIXELS, 81, 15_000, 5e-6, {"image": 1 / 3, "video": 1 / 3, "reference": 1 / 3}),
    ),
    "paper": (
        Stage("stage1", 1024 * 1024, 1, 12_000, 2e-5, {"image": 1.0}, BRIDGE),
        Stage("stage2a", 360_000, 81, 10_000, 2e-5, {"image": 0.5, "video": 0.5}),
        Stage("stage2b", 960_000, 81, 10_000, 2e-5, {"image": 0.5, "video": 0.5}),
        Stage("stage3", 960_000, 81, 10_000, 2e-5, {"image": 0.5, "video": 0.25, "reference": 0.25}),
    ),
}
REFERENCE_ONLY = Stage("stage3", PIXELS, 81, 30_000, 5e-6, {"reference": 1.0})  # the paper's "Ref. data only"

REFERENCE_SCALE = (0.7, 1.0)


@dataclass(frozen=True)
class Scale:
    """How much smaller than the released sizes a curriculum runs.

    Attributes:
        side: of a frame, as a share of the recipe's.
        frames: of a clip, at most; 4k + 1.
        steps: as a share of the recipe's; at least one.
        batch: samples of a batch.
        multiple: what sides are multiples of; 1 leaves it to what fits a clip to the budget.
        token_side: pixels a side of one transformer token (the codec's stride times the patch); None: batches hold
            `batch` samples of whatever kind. Where it is said, stages that mix images with clips fill every batch to
            the tokens of `batch` clips.
    """

    side: float = 1.0
    frames: int = 81
    steps: float = 1.0
    batch: int = GLOBAL_BATCH
    multiple: int = 1
    token_side: int | None = 32


TINY = Scale(side=1 / 15, frames=9, steps=1 / 5000, batch=4, multiple=8, token_side=None)


def recipe_stages(
    recipe: Recipe, scale: Scale | None = None, *, reference_only: bool = False
) -> tuple[StageSettings, ...]:
    """The stages of a recipe; `reference_only` takes the scripts' last stage on references alone.

    Stage 1 trains on single images, stage 2 at two resolutions one after the other, stage 3 with references at random
    scales on white.
    """
    rows = list(RECIPES[recipe])
    if reference_only:
        rows[-1] = REFERENCE_ONLY
    return tuple(_settings(row, scale or Scale()) for row in rows)


def _settings(row: Stage, scale: Scale) -> StageSettings:
    side = max(1, round(math.sqrt(row.pixels) * scale.side / scale.multiple)) * scale.multiple
    frames = min(row.frames, scale.frames)
    rest: dict[str, Any] = {"reference_scale": REFERENCE_SCALE} if row.mix.get("reference") else {}
    if scale.token_side is not None and frames > 1 and row.mix.get("image"):
        rest["batch_tokens"] = scale.batch * clip_tokens(side, frames, scale.token_side)
    return StageSettings(
        name=row.name, steps=max(1, round(row.steps * scale.steps)), batch_size=scale.batch,
        mix=row.mix, size=side, frames=frames,
        learning_rate=row.rate, mllm_learning_rate=row.rate, trainable=row.trainable, warmup_share=0.0, decay_to=1.0,
        weighting="bell", checkpoint_every=500, **rest,
    )  # fmt: skip


def clip_tokens(side: int, frames: int, token_side: int) -> int:
    """Transformer tokens of a clip of `side`² pixels: one for `token_side`² pixels of the first and each fourth frame.

    Clips of other aspects, rounded to whole tokens, have a few percent more or less.
    """
    return (side // token_side) ** 2 * (1 + (frames - 1) // 4)
