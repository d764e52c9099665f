"""From votes to results: who won, how sure that is, whether raters agree, and what it is without inattentive raters."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiwi.benchmark.preference.choices import OUTCOMES, Vote
from kiwi.benchmark.preference.scores import (
    ELO,
    Estimate,
    agreement_parts,
    alpha_of,
    bradley_terry,
    connected,
    interval,
    resampled,
    wilson,
)
from kiwi.benchmark.preference.study import Study

FAILED_CHECKS = 2  # so many failed checks, and more than a third of those that tell, flag a rater
FAILED_SHARE = 1 / 3
ONE_ANSWER_VOTES, ONE_ANSWER_SHARE = 20, 0.95
HASTY_VOTES, HASTY_SECONDS = 5, 1.0

FIRST, SECOND, TIE, BOTH_BAD = range(4)
Counts = NDArray[np.float64]


@dataclass(frozen=True)
class RaterRecord:
    """What is said of one rater: votes on comparisons, checks, the middle time a vote took, and what is suspicious."""

    rater: str
    votes: int
    checks_passed: int
    checks_failed: int
    checks_unclear: int
    median_seconds: float
    flags: tuple[str, ...]


def check_result(vote: Vote) -> str:
    """`passed`, `failed` or `unclear`, for a vote on an attention check.

    Two copies of one clip are a tie, or both bad. Of a clip and its damaged copy the first is better; who finds both
    bad may be right.
    """
    if vote.kind == "same":
        return "passed" if vote.outcome in ("tie", "both_bad") else "failed"
    return {"first": "passed", "both_bad": "unclear"}.get(vote.outcome, "failed")


def rater_records(study: Study, votes: Sequence[Vote]) -> list[RaterRecord]:
    """One record a rater, by name."""
    by_rater: dict[str, list[Vote]] = {}
    for vote in votes:
        by_rater.setdefault(vote.rater, []).append(vote)
    clip = statistics.median(clip.seconds for sample in study.samples for clip in sample.edits.values())
    return [_record(name, given, clip) for name, given in sorted(by_rater.items())]


def _record(name: str, votes: Sequence[Vote], clip_seconds: float) -> RaterRecord:
    checks = Counter(check_result(vote) for vote in votes if vote.kind != "pair")
    choices = Counter(vote.choice for vote in votes if vote.kind == "pair")
    number = choices.total()
    seconds = statistics.median(vote.seconds for vote in votes)
    flags = []
    telling = checks["passed"] + checks["failed"]
    if checks["failed"] >= FAILED_CHECKS and checks["failed"] > FAILED_SHARE * telling:
        flags.append("failed_checks")
    if number >= ONE_ANSWER_VOTES and max(choices.values()) >= ONE_ANSWER_SHARE * number:
        flags.append("one_answer")
    if len(votes) >= HASTY_VOTES and seconds < max(HASTY_SECONDS, clip_seconds / 2):
        flags.append("hasty")
    passed, failed, unclear = (checks[each] for each in ("passed", "failed", "unclear"))
    return RaterRecord(name, number, passed, failed, unclear, round(seconds, 2), tuple(flags))


def results(study: Study, votes: Sequence[Vote], *, overlap: int, undone: int = 0) -> dict[str, Any]:
    """Everything that is known of a study, as JSON has it.

    `all` holds every rater's votes; `without_flagged` leaves out raters with a flag, and is None where there are none.
    """
    votes = [vote for vote in votes if vote.item_id in study.items]
    records = rater_records(study, votes)
    flagged = {record.rater for record in records if record.flags}
    pairs = [vote for vote in votes if vote.kind == "pair"]
    seen = Counter(vote.item_id for vote in pairs)
    return {
        "study": study.study_id,
        "sets": list(study.sets),
        "samples": len(study.samples),
        "comparisons": len(study.comparisons),
        "overlap": overlap,
        "votes": len(pairs),
        "votes_wanted": overlap * len(study.comparisons),
        "comparisons_complete": sum(number >= overlap for number in seen.values()),
        "undone": undone,
        "attention_share": study.attention_share,
        "raters": [asdict(record) for record in records],
        "flagged": sorted(flagged),
        "all": tally(study, pairs),
        "without_flagged": tally(study, [vote for vote in pairs if vote.rater not in flagged]) if flagged else None,
        "excluded_samples": len(study.excluded),
    }


def tally(study: Study, votes: Sequence[Vote]) -> dict[str, Any]:
    """Win rates, scores and agreement of votes on comparisons."""
    counts = outcome_counts(study, votes)
    decided = [vote for vote in votes if vote.choice in ("left", "right")]
    left = wilson(sum(vote.choice == "left" for vote in decided), len(decided))
    return {
        "votes": len(votes),
        "ties": int(counts[..., TIE].sum()),
        "both_bad": int(counts[..., BOTH_BAD].sum()),
        "pairs": _pairs(study, counts),
        **_scores(study, counts),
        "agreement": _agreement(counts),
        "left_share": _said(left),
    }


def outcome_counts(study: Study, votes: Sequence[Vote]) -> Counts:
    """Votes [samples, pairs of sets, outcomes], the outcomes in the order of OUTCOMES."""
    pairs = {pair: place for place, pair in enumerate(combinations(study.sets, 2))}
    samples = {sample.sample_id: place for place, sample in enumerate(study.samples)}
    cell = {item.item_id: samples[item.sample.sample_id] * len(pairs) + pairs[item.sets] for item in study.comparisons}
    kinds = {outcome: place for place, outcome in enumerate(OUTCOMES)}
    places = np.fromiter((cell[vote.item_id] * 4 + kinds[vote.outcome] for vote in votes), np.int64, len(votes))
    counts = np.bincount(places, minlength=len(samples) * len(pairs) * 4)
    return counts.reshape(len(samples), len(pairs), 4).astype(np.float64)


def _pairs(study: Study, counts: Counts) -> list[dict[str, Any]]:
    """The win rate of the first set of each pair, over all samples and over each kind of edit."""
    kinds = np.array([sample.kind for sample in study.samples])
    return [
        {
            "first": first,
            "second": second,
            **_win_rate(counts[:, place]),
            "kinds": {kind: _win_rate(counts[kinds == kind, place]) for kind in dict.fromkeys(kinds.tolist())},
        }
        for place, (first, second) in enumerate(combinations(study.sets, 2))
    ]


def _win_rate(counts: Counts) -> dict[str, Any]:
    """Of counts [samples, outcomes]. A tie is half a win; Wilson's interval takes samples as its units."""
    wins, losses, ties, both_bad = (int(number) for number in counts.sum(axis=0))
    telling = wins + losses + ties
    samples = int((counts[:, [FIRST, SECOND, TIE]].sum(axis=1) > 0).sum())
    rate = wilson(wins + ties / 2, telling, samples)
    said = {"wins": wins, "losses": losses, "ties": ties, "both_bad": both_bad, "samples": samples}
    return {**said, "win_rate": _said(rate)}


def _scores(study: Study, counts: Counts) -> dict[str, Any]:
    """Bradley-Terry scores on Elo's scale (mean 1000; 400 points are odds of ten to one)."""
    per_sample = _win_matrices(study, counts)
    size = len(study.sets)
    wins = per_sample.sum(axis=0).reshape(size, size)
    if not wins.any():
        return {"scores": None, "scores_missing": "no vote tells two sets apart yet"}
    if not connected(wins):
        return {"scores": None, "scores_missing": "some sets were not compared with the others yet"}
    strengths = bradley_terry(wins)
    drawn = resampled(per_sample).reshape(-1, size, size)
    telling = np.array([connected(each) for each in drawn]) if len(per_sample) < 30 else _all_played(drawn)
    if telling.sum() < len(drawn) / 2:
        return {"scores": None, "scores_missing": "too few samples have votes for an interval"}
    low, high = interval(bradley_terry(drawn[telling]))
    scores = {
        name: _said(Estimate(*(round(1000 + ELO * value, 1) for value in (strengths[place], low[place], high[place]))))
        for place, name in enumerate(study.sets)
    }
    return {"scores": scores, "scores_missing": None}


def _all_played(drawn: Counts) -> NDArray[np.bool_]:
    return np.asarray(((drawn + np.swapaxes(drawn, 1, 2)).sum(axis=2) > 0).all(axis=1))


def _win_matrices(study: Study, counts: Counts) -> Counts:
    """Wins [samples, sets * sets] of row over column, ties as half a win for each."""
    size = len(study.sets)
    wins = np.zeros((len(counts), size, size))
    for place, (i, j) in enumerate(combinations(range(size), 2)):
        wins[:, i, j] = counts[:, place, FIRST] + counts[:, place, TIE] / 2
        wins[:, j, i] = counts[:, place, SECOND] + counts[:, place, TIE] / 2
    return wins.reshape(len(counts), size * size)


def _agreement(counts: Counts) -> dict[str, Any]:
    """Krippendorff's alpha (nominal, all four answers) over comparisons that two raters or more judged."""
    samples, pairs, kinds = counts.shape
    parts = agreement_parts(counts.reshape(-1, kinds))
    shared = int((parts[:, -1] > 0).sum())
    if not shared:
        return {"alpha": None, "percent": None, "comparisons": 0}
    sums = parts.sum(axis=0)
    alpha = float(alpha_of(sums))
    by_sample = parts.reshape(samples, pairs, -1).sum(axis=1)
    drawn = alpha_of(resampled(by_sample))
    drawn = drawn[np.isfinite(drawn)]
    said: Mapping[str, float] | None = None
    if np.isfinite(alpha) and len(drawn):
        low, high = interval(drawn)
        said = _said(Estimate(alpha, float(low), float(high)))
    return {"alpha": said, "percent": round(100 * float(sums[-2] / sums[-1]), 1), "comparisons": shared}


def _said(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {name: round(float(value), 4) for name, value in asdict(estimate).items()}
