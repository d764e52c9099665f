"""What raters can say of two edits, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Choice = Literal["left", "right", "tie", "both_bad"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
Outcome = Literal["first", "second", "tie", "both_bad"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Vote:
    """One vote as it is scored and exported.

    Attributes:
        rater: the pseudonym. item_id, kind: what was shown (a comparison or an attention check).
        flipped: whether the item's `first` was on the right.
        choice: what the rater chose, by side. seconds: time used with the page in view.
        given_at: seconds since 1970.
    """

    rater: str
    item_id: str
    kind: str
    flipped: bool
    choice: Choice
    seconds: float
    given_at: float

    @property
    def outcome(self) -> Outcome:
        """The choice by what was shown instead of by side."""
        return outcome(self.choice, self.flipped)


def outcome(choice: Choice, flipped: bool) -> Outcome:
    if choice == "tie" or choice == "both_bad":
        return choice
    return "first" if (choice == "left") != flipped else "second"
