"""The editor that settings ask for, before any training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from kiwi.configuration import ModelSettings
from kiwi.errors import UsageError
from kiwi.model.conditioning import Conditioning
from kiwi.model.editor import KiwiEditModel
from kiwi.model.imports import import_parts


def new_editor(settings: ModelSettings, corpus: Iterable[str]) -> KiwiEditModel:
    """A new editor: RANDOM weights for the presets "tiny" and "middle", foundation weights for the released sizes.

    Args:
        corpus: sentences from which a tokenizer is made, where none comes with the weights.

    Raises:
        UsageError: an unknown preset, a combination of settings that means nothing, or no foundation weights named.
        ModelError: foundation weights that cannot be loaded.
    """
    model = _built(settings, corpus)
    model.defaults = replace(model.defaults, size=settings.size, frames=settings.frames)
    return model


def _built(settings: ModelSettings, corpus: Iterable[str]) -> KiwiEditModel:
    conditioning = conditioning_of(settings)
    import_parts()
    if settings.preset == "tiny":
        from kiwi.model.tiny import build_tiny

        return build_tiny(corpus, settings.seed, conditioning)
    from kiwi.model.wan import SIZES, build_middle, from_foundation

    if settings.preset == "middle":
        return build_middle(corpus, seed=settings.seed, conditioning=conditioning)
    if settings.preset not in SIZES:
        raise UsageError(f"no model preset {settings.preset!r}", f"presets: tiny, {', '.join(SIZES)}")
    if not settings.backbone or not settings.language_model:
        raise UsageError(
            f"the model {settings.preset} starts from released weights, and none are named",
            "--set model.backbone=FOLDER --set model.language_model=FOLDER",
        )
    return from_foundation(
        settings.preset, Path(settings.backbone), Path(settings.language_model), seed=settings.seed,
        conditioning=conditioning,
    )  # fmt: skip


def conditioning_of(settings: ModelSettings) -> Conditioning:
    """The conditioning that settings ask for. Raises UsageError where a scaling has nothing to scale."""
    if settings.source_embedding == "channels" and settings.source_scaling == "learned":
        raise UsageError(
            "source_embedding=channels has no sum that source_scaling=learned could scale",
            "leave model.source_scaling as it is, or choose separate or shared",
        )
    return Conditioning(
        source_embedding=settings.source_embedding,
        source_scaling=settings.source_scaling,
        reference_position=settings.reference_position,
        reference_features=settings.reference_features,
    )
