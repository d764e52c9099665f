"""The tiny preset: the whole product on two CPU cores in minutes, on procedural clips or on the user's own pairs."""

from __future__ import annotations

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
)


def tiny(
    *,
    workspace: str,
    tracking_uri: str,
    pairs: str | None = None,
    collections: tuple[CollectionSettings, ...] = (),
    seed: int = 0,
) -> RunConfiguration:
    """An editor of 477,296 trained parameters (667,984 in all) for 9 frames of 64x64 pixels: random
    weights, and a fixed transform codec.

    With `pairs` or `collections`, real clips take the place of the procedural ones and training is short: so small a
    model shows that the way works, not what the clips could teach.
    """
    real = bool(pairs or collections)
    if pairs:
        source = SourceSettings(kind="pairs", pairs=pairs)
    elif collections:
        source = SourceSettings(kind="collections", collections=collections)
    else:
        source = SourceSettings(kind="procedural", level="easy", seed=seed)
    return RunConfiguration(
        preset="tiny",
        seed=seed,
        workspace=workspace,
        tracking_uri=tracking_uri,
        # another kind of data, another registered model: one trained on a few clips never displaces the other
        model_name="kiwi-edit-tiny-pairs" if real else "kiwi-edit-tiny",
        source=source,
        curation=CurationSettings(shards=2, chunk_rows=8 if pairs else 256, min_quadruplets=1, min_training_pairs=4),
        model=ModelSettings(preset="tiny", size=64, frames=9, seed=seed, reference_rows="all" if real else "needed"),
        stages=_own_stages() if real else _procedural_stages(),
        benchmark=BenchmarkSettings(samples_per_kind=40, sampling_steps=5),
        gate=GateSettings(floors=OWN_FLOORS) if real else GateSettings(floors=FLOORS, ceilings=CEILINGS),
    )


def _procedural_stages() -> tuple[StageSettings, ...]:
    """The paper's three stages (section 4.2) at tiny scale; rates fall on one line over all three.

    Stage 1 trains everything, not the bridge alone: on a transformer with random weights there is nothing to align
    with (docs/model.md).
    """
    return (
        _stage("stage1", 680, {"image": 1.0}, peak=1.0, end=0.55),
        _stage("stage2", 150, {"video": 0.5, "image": 0.5}, peak=0.55, end=0.45, copies=("video", "reference")),
        _stage("stage3", 510, {"video": 0.35, "reference": 0.5, "image": 0.15}, peak=0.45, end=0.01, edit_weight=0.15),
    )


def _own_stages() -> tuple[StageSettings, ...]:
    """The same curriculum on the user's own pairs: few samples, so fewer steps, bounded by passes over the data."""
    return (
        _stage("stage1", 200, {"image": 1.0}, peak=1.0, end=0.6, max_epochs=100),
        _stage(
            "stage2",
            150,
            {"video": 0.5, "image": 0.5},
            peak=0.6,
            end=0.4,
            copies=("video", "reference"),
            max_epochs=100,
        ),
        _stage(
            "stage3",
            200,
            {"video": 0.4, "reference": 0.4, "image": 0.2},
            peak=0.4,
            end=0.01,
            edit_weight=0.3,
            max_epochs=100,
        ),
    )


def _stage(
    name: str,
    steps: int,
    mix: dict[MediaKind, float],
    *,
    peak: float,
    end: float,
    copies: tuple[str, ...] = (),
    edit_weight: float = 1.0,
    max_epochs: float = 1000.0,
) -> StageSettings:
    """A stage whose rates run from `peak` to `end`, as shares of the curriculum's own peak."""
    return StageSettings(
        name=name,
        steps=steps,
        batch_size=16,
        mix=mix,
        optimizer="muon",
        muon_learning_rate=0.02 * peak,
        learning_rate=2e-3 * peak,
        mllm_learning_rate=5e-3 * peak,
        decay_to=end / peak,
        edit_weight=edit_weight,
        start_queries=tuple(("image", bank) for bank in copies),
        max_epochs=max_epochs,
        checkpoint_every=200,
    )


# The measured judge gives a copy of the source 1.0 by its construction, so that any change leads it: on the user's own
# pairs an edit must also be nearer to the wanted one than the source is, over the frame and inside the edit.
OWN_FLOORS = {"learning.psnr_full_gain": 0.0, "learning.psnr_edit_gain": 0.0}
FLOORS = {
    "learning.psnr_full": 21.0,
    "learning.psnr_full_gain": 3.5,
    "learning.psnr_edit": 14.0,
    "learning.psnr_edit_gain": 5.5,
    "learning.accuracy_recolour": 0.8,
    "learning.accuracy_swap": 0.8,
    "learning.accuracy_subject_reference": 0.55,
    "learning.background_reference_loss_db": 2.0,
}
CEILINGS = {
    "learning.accuracy_wrong_instruction": 0.1,
    "learning.accuracy_swapped_reference": 0.25,
}
