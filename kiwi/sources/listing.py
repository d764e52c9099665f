"""One way into every source: list its pairs, then open the media of one."""

from __future__ import annotations

from kiwi.configuration import SourceSettings
from kiwi.dataset.schema import EditPair
from kiwi.sources.pairs import PairMedia, SourceError, SourceFailure, list_csv, open_listed
from kiwi.sources.procedural import list_procedural

__all__ = ["PairMedia", "SourceError", "SourceFailure", "list_pairs", "open_pair"]


def list_pairs(settings: SourceSettings) -> list[EditPair]:
    """Every pair of a source, in an order that does not change.

    Raises:
        SourceError: the source cannot be listed (no folder, no columns, no rows, no text).
    """
    if settings.kind == "procedural":
        return list_procedural(settings)
    return list_csv(settings)


def open_pair(settings: SourceSettings, pair: EditPair) -> PairMedia:
    """The files of one listed pair. Procedural pairs have none: `procedural.render_pair` draws them.

    Raises:
        SourceFailure: with the typed reason, for a path that is missing or leads out of the source's folder.
    """
    if settings.kind == "procedural":
        raise SourceError(f"pair {pair.pair_id} is procedural and has no files", "render it instead")
    return open_listed(settings, pair)
