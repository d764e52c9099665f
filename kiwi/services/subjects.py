"""Several questions about one subject, answered together: one answer for each subject, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from kiwi.services.questions import Question, Reply

Subject = TypeVar("Subject")
Answer = TypeVar("Answer")


class Asker(Protocol):
    def ask(self, questions: Iterable[Question]) -> Iterator[Reply]: ...


@dataclass(frozen=True)
class Inquiry(Generic[Answer]):
    """The questions about one subject, and what their replies come to. `judge` should hold no pictures."""

    questions: tuple[Question, ...]
    judge: Callable[[list[Reply]], Answer]


def ask_about(
    client: Asker,
    subjects: Iterable[Subject],
    inquiry: Callable[[Subject], Inquiry[Answer]],
    stumbled: Callable[[Exception], Answer],
) -> Iterator[Answer]:
    """An answer for each subject. Subjects are drawn as the client draws questions, so a few are under way at once.

    Args:
        inquiry: makes a subject's questions; it runs on the caller's thread.
        stumbled: the answer for a subject of which no questions can be made, or whose replies cannot be judged.
    """
    judges: deque[tuple[int, Callable[[list[Reply]], Answer]]] = deque()

    def questions() -> Iterator[Question]:
        for subject in subjects:
            made = _made(inquiry, subject, stumbled)
            judges.append((len(made.questions), made.judge))
            yield from made.questions

    with closing(client.ask(questions())) as replies:  # type: ignore[type-var]
        collected: list[Reply] = []
        for reply in replies:
            yield from _unasked(judges)
            collected.append(reply)
            if len(collected) == judges[0][0]:
                yield _judged(judges.popleft()[1], collected, stumbled)
                collected = []
        yield from _unasked(judges)


def _made(
    inquiry: Callable[[Subject], Inquiry[Answer]], subject: Subject, stumbled: Callable[[Exception], Answer]
) -> Inquiry[Answer]:
    try:
        return inquiry(subject)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a sample must not take its shard along
        answer = stumbled(error)
        return Inquiry((), lambda _: answer)


def _unasked(judges: deque[tuple[int, Callable[[list[Reply]], Answer]]]) -> Iterator[Answer]:
    """The answers that wait for no reply, up to the first one that does."""
    while judges and judges[0][0] == 0:
        yield judges.popleft()[1]([])


def _judged(
    judge: Callable[[list[Reply]], Answer], replies: list[Reply], stumbled: Callable[[Exception], Answer]
) -> Answer:
    try:
        return judge(replies)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        return stumbled(error)
