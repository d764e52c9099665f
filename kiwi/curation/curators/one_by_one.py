"""Curators that judge one sample at a time, as streams; whatever one sample trips over is that sample's failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from kiwi.curation.curators.protocols import Judgement
from kiwi.dataset.schema import Reason

Request = TypeVar("Request")
Answer = TypeVar("Answer", bound=Judgement)


def one_by_one(
    judge: Callable[[Request], Answer], answer: type[Answer], requests: Iterable[Request]
) -> Iterator[Answer]:
    """`judge` of each request, in order. An exception becomes an `answer` that failed as curator_error, with its words;
    running out of memory is the machine's fault and goes through."""
    for request in requests:
        try:
            yield judge(request)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a sample must not take its shard along
            yield answer(reason=Reason.CURATOR_ERROR, detail=f"{type(error).__name__}: {error}")
