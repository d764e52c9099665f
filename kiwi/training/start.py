"""The editor that training starts from."""

from __future__ import annotations

from kiwi.configuration import ModelSettings, SourceSettings
from kiwi.errors import UsageError
from kiwi.model.editor import KiwiEditModel
from kiwi.sources.procedural import list_procedural

TOKENIZER_CORPUS = SourceSettings(clips=1500, images=500, seed=0)


def initial_model(settings: ModelSettings) -> KiwiEditModel:
    """A new editor with RANDOM weights. Raises UsageError for a preset that cannot be built here.

    The tokenizer's merges always come from the same sentences, so that every tiny editor reads alike.
    """
    if settings.preset != "tiny":
        raise UsageError(f"no builder for the model preset {settings.preset!r}", "available: tiny")
    from kiwi.model.tiny import build_tiny

    return build_tiny((pair.prompt for pair in list_procedural(TOKENIZER_CORPUS)), settings.seed)
