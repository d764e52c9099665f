"""The statistics of preferences: win rates, Bradley-Terry scores, agreement between raters, all with intervals.

A tie is half a win for each; "both bad" is counted and takes no part in strength. Samples, not votes, are what is drawn
again for intervals: two raters on one sample are no two experiments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Z95 = 1.959963984540054
RESAMPLES = 1000
DRAWS_AT_ONCE = 4_000_000
PRIOR = 0.5  # one tie between every two sets that were compared: keeps the score of a set that always wins finite
ELO = 400 / np.log(10)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


def wilson(wins: float, trials: float, units: float | None = None) -> Estimate | None:
    """The share of wins with Wilson's interval, None for no trial.

    Args:
        units: independent observations behind the trials (samples, where several raters saw each), at most `trials`.
    """
    if trials <= 0:
        return None
    n = min(trials, units) if units is not None else trials
    p = wins / trials
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return Estimate(p, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def bradley_terry(wins: Floats, prior: float = PRIOR, tolerance: float = 1e-10) -> Floats:
    """Log-strengths [..., m], of mean 0, that make the wins [..., m, m] most likely; Newton's method, all at once.

    wins[i, j] is how often i won over j, ties as half a win for each. `prior` is added to both directions of every pair
    that was compared. Raises ValueError where the sets do not hang together: their scores would not compare.
    """
    wins = np.asarray(wins, dtype=np.float64)
    size = wins.shape[-1]
    if not connected(wins.reshape(-1, size, size).sum(axis=0)):
        raise ValueError("the comparisons leave sets apart from each other")
    games = wins + np.swapaxes(wins, -1, -2)
    won = wins + prior * (games > 0)
    games = won + np.swapaxes(won, -1, -2)
    strengths: Floats = np.zeros(wins.shape[:-1])
    level = np.ones((size, size)) / size
    for _ in range(200):
        expected = 1 / (1 + np.exp(strengths[..., None, :] - strengths[..., :, None]))
        gradient = (won - games * expected).sum(axis=-1)
        weight = games * expected * (1 - expected)
        hessian = np.eye(size) * weight.sum(axis=-1)[..., None] - weight + level
        # A resample may leave a set without any game: its score stays where it is.
        hessian += np.eye(size) * 1e-12
        step = np.clip(np.linalg.solve(hessian, gradient[..., None])[..., 0], -2.0, 2.0)
        strengths = strengths + step
        strengths -= strengths.mean(axis=-1, keepdims=True)
        if np.abs(step).max(initial=0.0) < tolerance:
            return strengths
    raise ValueError("the Bradley-Terry scores do not converge")


def connected(wins: Floats) -> bool:
    """Whether comparisons lead from every set to every other one."""
    linked = (wins + wins.T) > 0
    reached = {0}
    border = [0]
    while border:
        near = set(np.flatnonzero(linked[border.pop()]).tolist()) - reached
        reached |= near
        border += near
    return len(reached) == len(wins)


def resampled(per_sample: Floats, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Sums [resamples, k] over samples drawn with replacement from per_sample [samples, k]."""
    return np.concatenate([weights @ per_sample for weights in _weights(len(per_sample), seed, resamples)])


def _weights(samples: int, seed: int, resamples: int) -> Iterator[Floats]:
    """How often each sample is drawn, [part of resamples, samples] at a time."""
    draw = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // samples)
    for start in range(0, resamples, at_once):
        number = min(at_once, resamples - start)
        drawn = draw.integers(0, samples, size=(number, samples)) + samples * np.arange(number)[:, None]
        yield np.bincount(drawn.ravel(), minlength=number * samples).reshape(number, samples).astype(np.float64)


def interval(values: Floats) -> tuple[Floats, Floats]:
    """The middle 95% of values [resamples, ...]."""
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return low, high


def agreement_parts(counts: Floats) -> Floats:
    """What each unit adds to Krippendorff's alpha, [units, categories + 2], from counts [units, categories].

    The columns: values of each category in units with two values or more, agreeing pairs, and pairs' share of values.
    They add up over units, so a resample of units is a sum of rows.
    """
    counts = np.asarray(counts, dtype=np.float64)
    raters = counts.sum(axis=1)
    paired = raters >= 2
    values = np.where(paired[:, None], counts, 0.0)
    agreeing = np.where(paired, (counts * (counts - 1)).sum(axis=1) / np.maximum(1, raters - 1), 0.0)
    return np.concatenate([values, agreeing[:, None], np.where(paired, raters, 0.0)[:, None]], axis=1)


def alpha_of(sums: Floats) -> Floats:
    """Krippendorff's alpha for nominal data from sums [..., categories + 2] of `agreement_parts`.

    NaN where it is undefined: no two values to compare, or only one category in use.
    """
    values, agreeing, total = sums[..., :-2], sums[..., -2], sums[..., -1]
    observed = total - agreeing
    expected = total**2 - (values**2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(expected > 0, 1 - (total - 1) * observed / expected, np.nan))
