"""Lets a judge look at edits and notes what it says, for held-out samples and for lists alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from kiwi.benchmark.edits import RESULT
from kiwi.benchmark.rubric import Judge, JudgeView, MeasurementError
from kiwi.benchmark.scores import Outcome

FORMAT = 2  # of scores.json: what an earlier version of kiwi wrote is judged again


def judge_into(outcome: Outcome, judge: Judge, views: Iterable[tuple[str, JudgeView]], model: str) -> Outcome:
    """Notes in `outcome` what the judge says of each (sample id, view), and what it cannot judge."""
    waiting: deque[str] = deque()

    def shown() -> Iterator[JudgeView]:
        for name, view in views:
            waiting.append(name)
            yield view

    for judgement in judge.judge_all(shown()):
        name = waiting.popleft()
        if judgement.scores is not None:
            outcome.scores[name], outcome.repeats[name] = judgement.scores, judgement.repeats
        if judgement.failure is not None:
            outcome.failures.append(failed(model, name, RESULT, judgement.failure))
    return outcome


def failed(model: str, name: str, arm: str, failure: MeasurementError) -> dict[str, str]:
    """An entry of `failures`: which edit has no score, and the typed reason."""
    about = {"model": model, "id": name, "arm": arm}
    return about | {"reason": str(failure.reason), "detail": failure.message}
