"""The editor that training starts from."""

from __future__ import annotations

from functools import cache

from kiwi.configuration import ModelSettings, SourceSettings
from kiwi.model.editor import KiwiEditModel
from kiwi.sources.procedural import list_procedural

TOKENIZER_CORPUS = SourceSettings(clips=1500, images=500, seed=0)


def initial_model(settings: ModelSettings) -> KiwiEditModel:
    """A new editor as `settings` say: RANDOM weights for "tiny" and "middle", foundation weights for the others.

    The tokenizer's merges always come from the same sentences, so that every tiny editor reads alike.
    """
    from kiwi.model.start import new_editor

    return new_editor(settings, _sentences())


@cache
def _sentences() -> tuple[str, ...]:
    return tuple(pair.prompt for pair in list_procedural(TOKENIZER_CORPUS))
