"""Two judged models, sample by sample: how far apart they are, how sure that is, and the chance that one is better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiwi.benchmark.resampling import difference
from kiwi.benchmark.samples import BenchmarkError
from kiwi.errors import UsageError
from kiwi.workspace import read_json

Scores = Mapping[str, Any]


def read_scores(place: Path) -> dict[str, Any]:
    """The scores at `place`: a work folder of a run, or a scores file.

    Raises UsageError where there are none.
    """
    path = place / "benchmark" / "scores.json" if place.is_dir() else place
    if not path.is_file():
        raise UsageError(f"no benchmark scores in {place}", "`kiwi bench run` and `kiwi bench judge` make them")
    try:
        scores = read_json(path)
    except ValueError as error:
        raise UsageError(f"{path}: no scores ({error})", "judge again: `kiwi bench judge`") from error
    if not isinstance(scores, dict) or not _of_samples(scores.get("per_sample")):
        raise UsageError(f"{path}: no scores of samples", "name a work folder, or a scores.json that judging wrote")
    return scores


def _of_samples(rows: Any) -> bool:
    """Whether these are rows of samples, each with its criteria or None where it was not judged."""
    return isinstance(rows, list) and all(
        isinstance(row, dict) and "id" in row and isinstance(row.get("criteria", 0), dict | None) for row in rows
    )


def compare(first: Scores, second: Scores, *, min_coverage: float) -> dict[str, Any]:
    """What the second model gains over the first.

    Returns {"judge", "revision", "first", "second": overalls, "left_out": samples that only one has scores of,
    "verdict": None or "better", "worse", "alike", "why": what stands against a verdict, and all that
    kiwi.benchmark.resampling.difference says}. There is no verdict below `min_coverage` of either, nor from too few
    samples; "alike" means that the 95% interval holds 0.

    Raises:
        BenchmarkError: scores of different benchmark revisions or judges, or no sample that both have scores of.
    """
    for key, word in (("revision", "benchmark revision"), ("judge", "judge")):
        if first.get(key) is None or first.get(key) != second.get(key):
            raise BenchmarkError(
                f"one was scored with {word} {first.get(key)}, the other with {second.get(key)}",
                "such scores do not compare: benchmark and judge both alike",
            )
    before, after = _by_sample(first), _by_sample(second)
    shared = [name for name in after if name in before]
    if not shared:
        raise BenchmarkError("there is no sample that both have scores of", "judge both on the same samples")
    apart = difference([after[name] for name in shared], [before[name] for name in shared])
    why = _no_verdict(first, second, apart, min_coverage)
    return {
        "judge": first["judge"],
        "revision": first["revision"],
        "first": first.get("overall"),
        "second": second.get("overall"),
        "left_out": len(before.keys() ^ after.keys()),
        "verdict": None if why else _verdict(apart["interval"]),
        "why": why,
        **apart,
    }


def _by_sample(scores: Scores) -> dict[str, dict[str, float]]:
    return {str(row["id"]): row["criteria"] for row in scores["per_sample"] if row["criteria"] is not None}


def _no_verdict(first: Scores, second: Scores, apart: Mapping[str, Any], least: float) -> str | None:
    for word, scores in (("first", first), ("second", second)):
        coverage = scores.get("coverage")
        if not isinstance(coverage, int | float) or coverage < least:
            said = "not known" if coverage is None else f"{coverage:.1%}"
            return f"the share of judged samples of the {word} is {said}, {least:.1%} are needed"
    if apart["interval"] is None:
        return "too few samples to tell chance from difference"
    return None


def _verdict(ends: list[float]) -> str:
    low, high = ends
    return "better" if low > 0 else "worse" if high < 0 else "alike"
