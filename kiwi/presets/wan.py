"""The released sizes, wan2.2-5b and wan2.1-14b: whole configurations by two recipes, and the ablations of the paper.

`released` is the recipe of the authors' training scripts, `paper` that of the paper's text; they differ in rates, steps
and the mix of stage 3. Curators are the models that the paper names; weights and collections are yours to point at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kiwi.configuration import (
    BenchmarkSettings,
    CollectionSettings,
    CurationSettings,
    GateSettings,
    ModelSettings,
    RunConfiguration,
    SourceSettings,
    TrainerSettings,
)
from kiwi.presets.recipes import Recipe, Scale, recipe_stages

SIDE = 960  # the square root of the pixels of a frame
TOKEN_SIDE = {"wan2.2-5b": 32, "wan2.1-14b": 16}  # the autoencoder's stride times the transformer's patch

# A decision that costs a cluster days, on a judge that wavers: nothing is promoted on fewer than 100 judged samples,
# nor over a champion (or copying) whose scores are not known sample by sample, for then no one can tell how sure the
# lead is.
GATE = GateSettings(min_samples=100, require_comparison=True)

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
        stages=recipe_stages(recipe, Scale(frames=frames, token_side=TOKEN_SIDE[size])),
        trainer=TrainerSettings(precision="bfloat16", recompute="selective"),
        benchmark=BenchmarkSettings(sampling_steps=50),
        gate=GATE,
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
