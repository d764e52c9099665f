"""How sure a score is: the bootstrap over samples, of one model's overall and of the difference of two models.

Samples are drawn again within each group that is asked the same criteria, so that every draw has the same criteria and
the same number of samples of each. From fewer than LEAST samples, or where a group holds one alone, nothing can be said
of the spread: there is no interval then rather than one that is too narrow. Draws are the same each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiwi.benchmark.preference.scores import interval, resampled
from kiwi.benchmark.rubric import ALL_CRITERIA

Floats = NDArray[np.float64]
Row = Mapping[str, float]

RESAMPLES = 2000
LEAST = 8
SAME = 1e-9


def intervals(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The middle 95% of both overalls and of each criterion, as [low, high]; None where there are too few samples.

    Args:
        rows: for each sample, its criteria's scores.
    """
    names, values, asked = _matrix(rows)
    drawn = _drawn(values, asked)
    if drawn is None:
        return None
    means, weighted = drawn
    return {
        "overall": _ends(means.mean(axis=1)),
        "overall_sample_weighted": _ends(weighted),
        "criteria": {name: _ends(means[:, place]) for place, name in enumerate(names)},
    }


def difference(ours: Sequence[Row], theirs: Sequence[Row]) -> dict[str, Any]:
    """Ours less theirs, sample by sample; both list the same samples, in one order.

    `chance_better` is the share of draws in which ours leads (a tie counts half). It and the intervals are None where
    there are too few samples. Raises ValueError where a sample was asked other criteria in one than in the other.
    """
    names, values, asked = _matrix(ours)
    other_names, other_values, other_asked = _matrix(theirs)
    if names != other_names or not np.array_equal(asked, other_asked):
        raise ValueError("the samples were asked different criteria")
    if not names:
        raise ValueError("no sample to compare")
    apart = values - other_values  # drawn as such, so that equal scores differ by exactly nothing
    by_name = apart.sum(axis=0) / asked.sum(axis=0)
    said: dict[str, Any] = {
        "samples": len(ours),
        "difference": round(float(by_name.mean()), 4),
        "sample_weighted": round(float((apart.sum(axis=1) / asked.sum(axis=1)).mean()), 4),
        "interval": None,
        "chance_better": None,
        "criteria": {name: {"difference": round(float(by_name[at]), 4)} for at, name in enumerate(names)},
    }
    drawn = _drawn(apart, asked)
    if drawn is None:
        return said
    means, _ = drawn
    leads = means.mean(axis=1)
    chance = float((leads > SAME).mean() + (np.abs(leads) <= SAME).mean() / 2)
    for place, name in enumerate(names):
        said["criteria"][name]["interval"] = _ends(means[:, place])
    return said | {"interval": _ends(leads), "chance_better": round(chance, 4)}


def _matrix(rows: Sequence[Row]) -> tuple[list[str], Floats, Floats]:
    """Names, scores [samples, names] with 0 where a sample was not asked, and 1 where it was."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = np.array([[row.get(name, 0.0) for name in names] for row in rows], dtype=np.float64)
    asked = np.array([[float(name in row) for name in names] for row in rows], dtype=np.float64)
    order = sorted(range(len(names)), key=lambda at: _place(names[at]))
    shape = (len(rows), len(names))
    return [names[at] for at in order], values.reshape(shape)[:, order], asked.reshape(shape)[:, order]


def _place(name: str) -> tuple[int, str]:
    """Criteria stand in the paper's order, others behind them by name."""
    return (ALL_CRITERIA.index(name) if name in ALL_CRITERIA else len(ALL_CRITERIA), name)


def _drawn(values: Floats, asked: Floats) -> tuple[Floats, Floats] | None:
    """Means of each criterion [draws, names], and means over samples of their own means [draws]."""
    if len(values) < LEAST:
        return None
    columns = np.concatenate([values, asked, (values.sum(axis=1) / asked.sum(axis=1))[:, None]], axis=1)
    sums: Floats = np.zeros((RESAMPLES, columns.shape[1]))
    _, groups = np.unique(asked, axis=0, return_inverse=True)
    for group in range(int(groups.max()) + 1):
        members = columns[groups.ravel() == group]
        if len(members) < 2:
            return None
        sums += resampled(members, seed=group, resamples=RESAMPLES)
    width = values.shape[1]
    return sums[:, :width] / sums[:, width : 2 * width], sums[:, -1] / len(values)


def _ends(values: Floats) -> list[float]:
    low, high = interval(values)
    return [round(float(low), 4), round(float(high), 4)]
