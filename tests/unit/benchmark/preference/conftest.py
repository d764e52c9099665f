"""What the tests of preference studies share: a study without clips, its signer, and votes on it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest

from kiwi.benchmark.preference.choices import Vote
from kiwi.benchmark.preference.signing import Signer
from kiwi.benchmark.preference.study import Check, ClipFile, Study, StudySample

CLIP = ClipFile("0" * 32 + ".mp4", 64, 48, 8.0, 2.0)


@pytest.fixture
def make_study() -> Callable[..., Study]:
    """Studies of so many samples and sets; their clips are named, not there."""

    def make(samples: int = 12, sets: int = 2, attention_share: float = 0.0, kinds: int = 2) -> Study:
        names = tuple(f"model{number}" for number in range(sets))
        rows = tuple(
            StudySample(f"s{number}", f"kind{number % kinds}", f"edit {number}", CLIP, dict.fromkeys(names, CLIP))
            for number in range(samples)
        )
        checks = tuple(
            Check(f"{kind}|{row.sample_id}", kind, row.sample_id, CLIP, CLIP)
            for row in rows[:12]
            for kind in ("same", "damaged")
        )
        return Study("f00d" * 4, names, rows, checks if attention_share else (), attention_share, {})

    return make


@pytest.fixture
def signer() -> Signer:
    return Signer(b"k" * 32, "a-token-of-the-study")


@pytest.fixture
def make_votes() -> Callable[..., list[Vote]]:
    """Votes on comparisons from (rater, sample, first set, second set, outcome), none of them flipped."""

    def make(rows: list[tuple[str, str, str, str, str]], seconds: float = 9.0) -> list[Vote]:
        choices = {"first": "left", "second": "right"}
        return [
            Vote(rater, f"{sample}|{one}|{other}", "pair", False, choices.get(outcome, outcome), seconds, float(place))  # type: ignore[arg-type]
            for place, (rater, sample, one, other, outcome) in enumerate(rows)
        ]

    return make


@pytest.fixture
def all_pairs() -> Callable[[Study], list[tuple[str, str, str]]]:
    def pairs(study: Study) -> list[tuple[str, str, str]]:
        return [(row.sample_id, *two) for row in study.samples for two in combinations(study.sets, 2)]

    return pairs
