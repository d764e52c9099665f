"""One check a thing that kiwi uses, all of them side by side, each ended by the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from kiwi.errors import KiwiError
from kiwi.operations.deadline import all_within
from kiwi.tracking.redaction import redact

State = Literal["ok", "missing", "failed"]
SECONDS = 12.0


@dataclass(frozen=True)
class Check:
    """What was found about one thing.

    Attributes:
        state: "ok"; "missing" (not installed, not set up); "failed" (set up, and it does not work).
        needed: whether it matters that it is missing. What failed always matters.
    """

    group: str
    name: str
    state: State
    said: str
    remedy: str = ""
    needed: bool = False

    @property
    def bad(self) -> bool:
        return self.state == "failed" or (self.state == "missing" and self.needed)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "said": redact(self.said), "remedy": redact(self.remedy)}


@dataclass(frozen=True)
class Question:
    """A check to be made."""

    group: str
    name: str
    ask: Callable[[], Check]


def examine(questions: Sequence[Question], seconds: float = SECONDS) -> list[Check]:
    """Every question's check, in their order; one that is not answered in time has failed."""
    found = all_within(seconds, [partial(_asked, question) for question in questions])
    return [
        check or Check(question.group, question.name, "failed", f"no answer within {seconds:g} s", "is it overloaded?")
        for question, check in zip(questions, found, strict=True)
    ]


def _asked(question: Question) -> Check:
    try:
        return question.ask()
    except KiwiError as error:
        return Check(question.group, question.name, "failed", error.message, error.remedy)
    except ModuleNotFoundError as error:
        remedy = "pip install 'kiwi[all]'"
        return Check(question.group, question.name, "missing", f"package {error.name!r} is not installed", remedy)


def healthy(checks: Sequence[Check]) -> bool:
    return not any(check.bad for check in checks)
