"""The released sizes, wan2.2-5b and wan2.1-14b: whole configurations by two recipes, and the ablations of the paper.

`released` is the recipe of the authors' training scripts, `paper` that of the paper's text; they differ in rates, steps
and the mix of stage 3. Curators are the models that the paper names; weights and collections are yours to point at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kiwi.configuration import (
    BenchmarkSettings,
    CollectionSettings,
    CurationSettings,
    GateSettings,
    MediaKind,
    ModelSettings,
    RunConfiguration,
    SourceSettings,
    StageSettings,
    TrainerSettings,
)

Recipe = Literal["released", "paper"]
BRIDGE = ("queries", "connectors", "lora")
GLOBAL_BATCH = 128
PIXELS = 921_600
SIDE = 960  # the square root of the pixels of a frame


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

# Overrides (`--set`) that turn a preset into a row of the paper's tables 4 and 5.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "add_with_timestep_scaling": (),
    "add_without_timestep_scaling": ("model.source_scaling=none",),
    "add_shared_patch_embedding": ("model.source_embedding=shared",),
    "channel_concatenation": ("model.source_embedding=channels",),
    "queries_only": ("model.reference_features=false",),
    "without_image_co_training": ('stages.stage2a.mix={"video":1.0}', 'stages.stage2b.mix={"video":1.0}'),
}


def wan(
    size: str,
    recipe: Recipe,
    *,
    workspace: str,
    tracking_uri: str,
    pairs: str | None = None,
    collections: tuple[CollectionSettings, ...] = (),
    seed: int = 0,
    frames: int = 81,
) -> RunConfiguration:
    """A released size by a recipe, on the user's pairs or on published collections; clips of at most `frames`."""
    name = size if recipe == "released" else f"{size}-{recipe}"
    return RunConfiguration(
        preset=name,
        seed=seed,
        workspace=workspace,
        tracking_uri=tracking_uri,
        model_name=f"kiwi-edit-{size}",
        source=SourceSettings(kind="pairs", pairs=pairs)
        if pairs
        else SourceSettings(kind="collections", collections=collections),
        curation=CurationSettings(
            shards=50,
            scorer="vlm",
            grounder="vlm",
            segmenter="sam3",
            synthesizer="qwen_image_edit",
            verifier="vlm",
            deduplicator="clip",
            duplicate_scope="reference",
        ),
        model=ModelSettings(preset=size, size=SIDE, frames=frames, seed=seed),
        stages=tuple(_settings(stage, frames) for stage in RECIPES[recipe]),
        trainer=TrainerSettings(precision="bfloat16", recompute="selective"),
        benchmark=BenchmarkSettings(sampling_steps=50),
        gate=GateSettings(),
    )


def _settings(stage: Stage, frames: int) -> StageSettings:
    """A stage as settings: AdamW at one constant rate and a bell-shaped loss weight, as the authors train.

    References are shown at a random scale on white; batches of 128 are cut over ranks, and by `accumulate` if need be.
    """
    return StageSettings(
        name=stage.name,
        steps=stage.steps,
        batch_size=GLOBAL_BATCH,
        mix=stage.mix,
        learning_rate=stage.rate,
        mllm_learning_rate=stage.rate,
        trainable=stage.trainable,
        warmup_share=0.0,
        decay_to=1.0,
        checkpoint_every=500,
        size=round(math.sqrt(stage.pixels)),
        frames=min(stage.frames, frames),
        weighting="bell",
        reference_scale=(0.7, 1.0) if "reference" in stage.mix else None,
    )


def _preset(size: str, recipe: Recipe, frames: int) -> Callable[..., RunConfiguration]:
    def preset(**places: Any) -> RunConfiguration:
        """See `wan`: workspace, tracking_uri, pairs, collections, seed."""
        return wan(size, recipe, frames=frames, **places)

    return preset


WAN_PRESETS: dict[str, Callable[..., RunConfiguration]] = {
    "wan2.2-5b": _preset("wan2.2-5b", "released", 81),
    "wan2.2-5b-paper": _preset("wan2.2-5b", "paper", 81),
    "wan2.1-14b": _preset("wan2.1-14b", "released", 49),  # the frames of the authors' scripts for this size
    "wan2.1-14b-paper": _preset("wan2.1-14b", "paper", 49),
}
