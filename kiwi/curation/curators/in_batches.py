"""Streams that a model takes in batches of one size; whatever one item trips over is that item's failure alone.

A last batch that is not full is filled up with its last item. Matrix products round differently with the number of
rows, so otherwise an answer would depend on how many others came with it, and a dataset on how its shards were cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from kiwi.curation.curators.protocols import Judgement
from kiwi.dataset.schema import Reason
from kiwi.errors import KiwiError

Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = TypeVar("Answer", bound=Judgement)


def in_batches(
    work: Callable[[Sequence[Item]], Sequence[Result]], size: int, items: Iterable[Item]
) -> Iterator[Result]:
    """`work` of `size` items at a time, in their order; holds one batch."""
    stream = iter(items)
    while batch := list(islice(stream, size)):
        full = batch + batch[-1:] * (size - len(batch))
        yield from work(full)[: len(batch)]


def judged_in_batches(
    work: Callable[[Sequence[Item]], Sequence[Answer]], answer: type[Answer], size: int, items: Iterable[Item]
) -> Iterator[Answer]:
    """The same for a curator. An item with which `work` raises becomes an `answer` that failed as curator_error, with
    its words; the others of its batch are done again without it. What is no item's fault goes through: errors of our
    own (weights, memory), and an accelerator that failed."""

    def guarded(batch: Sequence[Item]) -> Sequence[Answer]:
        try:
            return work(batch)
        except Exception as error:
            if isinstance(error, KiwiError | MemoryError) or type(error).__name__ == "AcceleratorError":
                raise
            if size == 1:
                return [answer(reason=Reason.CURATOR_ERROR, detail=f"{type(error).__name__}: {error}")]
        return [next(judged_in_batches(lambda same: work([same[0]] * size), answer, 1, [item])) for item in batch]

    return in_batches(guarded, size, items)
