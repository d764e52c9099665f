"""The two overalls, by name: criteria with equal weight (the paper's), and samples with equal weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def equal_weight(scores: Iterable[float]) -> float:
    """The paper's overall: the mean over criteria (table 3) or categories (table 2), whatever their samples.

    Raises ValueError for no score: there is no overall of nothing.
    """
    listed = list(scores)
    if not listed:
        raise ValueError("no score to average")
    return sum(listed) / len(listed)


def sample_weighted(scores: Mapping[str, float], samples: Mapping[str, int]) -> float:
    """The overall of the authors' script, from means: each criterion counts as often as samples were asked it."""
    asked = sum(samples[name] for name in scores)
    return sum(score * samples[name] for name, score in scores.items()) / asked
