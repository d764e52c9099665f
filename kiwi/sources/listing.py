"""One way into every source: list its pairs, then open the media of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from kiwi.configuration import CollectionSettings, SourceSettings
from kiwi.dataset.schema import EditPair
from kiwi.sources.adapter import PairMedia, SourceError, SourceFailure
from kiwi.sources.pairs import OWN_PAIRS, pairs_csv
from kiwi.sources.registry import adapter_named

__all__ = ["PairMedia", "SourceError", "SourceFailure", "check_source", "iterate_pairs", "list_pairs", "open_pair"]


def iterate_pairs(settings: SourceSettings) -> Iterator[EditPair]:
    """Every pair of a source, one by one, in an order that does not change; nothing of the media is opened.

    A collection follows the one before it, and `position` counts on. A listed entry that cannot be used is a pair
    with its `problem`; it keeps its position.

    Raises:
        SourceError: the source cannot be listed (no folder, no columns, no rows, no text, a broken listing file).
    """
    if settings.kind == "procedural":
        from kiwi.sources.procedural import list_procedural

        yield from list_procedural(settings)
    elif settings.kind == "pairs":
        yield from OWN_PAIRS.entries(pairs_csv(settings.pairs))
    else:
        yield from _collected(_collections(settings))


def list_pairs(settings: SourceSettings) -> list[EditPair]:
    """`iterate_pairs` as a list."""
    return list(iterate_pairs(settings))


def open_pair(settings: SourceSettings, pair: EditPair) -> PairMedia:
    """The files of one listed pair. Procedural pairs have none: `procedural.render_pair` draws them.

    Raises:
        SourceFailure: with the typed reason, for a listed entry that is no use, or a path that is missing or leads out
            of the source's folder.
    """
    if settings.kind == "procedural":
        raise SourceError(f"pair {pair.pair_id} is procedural and has no files", "render it instead")
    if pair.problem is not None:
        raise SourceFailure(pair.problem, pair.problem_detail)
    if settings.kind == "pairs":
        return OWN_PAIRS.open(settings.pairs or "", pair)
    collections = _collections(settings)
    if not 0 <= pair.collection < len(collections):
        said = f"pair {pair.pair_id} is of collection {pair.collection}, the settings have {len(collections)}"
        raise SourceError(said, "open it with the settings that listed it")
    collection = collections[pair.collection]
    return adapter_named(collection.adapter).open(collection.location, pair)


def check_source(settings: SourceSettings) -> None:
    """A quick look before a run starts, which does not read a listing to its end.

    Raises:
        SourceError: a folder or a listing file is missing, or has no columns that the adapter can read.
    """
    if settings.kind == "pairs":
        OWN_PAIRS.check(pairs_csv(settings.pairs))
    elif settings.kind == "collections":
        for collection in _collections(settings):
            adapter_named(collection.adapter).check(collection.location)


def _collected(collections: tuple[CollectionSettings, ...]) -> Iterator[EditPair]:
    position = 0
    for index, collection in enumerate(collections):
        listed = adapter_named(collection.adapter).entries(collection.location)
        for pair in islice(listed, collection.limit):
            if index or pair.position != position:
                pair = replace(pair, position=position, collection=index)
            yield pair
            position += 1


def _collections(settings: SourceSettings) -> tuple[CollectionSettings, ...]:
    if not settings.collections:
        raise SourceError("the source is collections, and names none", "add source.collections: adapter and location")
    return settings.collections
