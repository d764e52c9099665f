"""Fréchet distance between two sets of clips, by whatever features are plugged in; FVD where these are I3D's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kiwi.metrics.results import Failure, Frames, Measured, MetricError

Features = NDArray[np.float32] | NDArray[np.float64]  # [clips or windows, width]
OF_FVD = "i3d"  # the one extractor whose distance may be called FVD


class VideoFeatures(Protocol):
    """Describes clips by vectors. `name` stands in the metric's name, so it says which network it is."""

    @property
    def name(self) -> str: ...

    def features(self, frames: Frames) -> Features:
        """RGB uint8 [T, H, W, 3] -> [windows, width], one row or more."""
        ...


def frechet_video_distance(
    edits: Iterable[Frames], others: Iterable[Frames], extractor: VideoFeatures, called: str = "ground truth"
) -> Measured:
    """Fréchet distance between edited clips and others, squared feature units, lower is better.

    With I3D's features (Carreira and Zisserman 2017, trained on Kinetics-400, logits) it is FVD (Unterthiner et al.
    2018) and is called `fvd`; with any other extractor it is called after that: frechet_NAME. Distances of different
    extractors, or of sets of different sizes, do not compare: few clips raise it.

    Args:
        edits, others: clips, taken one at a time. called: what the others are, for the note.

    Raises:
        MetricError: FEATURES for fewer than two rows of features, ones that are not finite, or of two widths.
    """
    return between_features(_stacked(edits, extractor), _stacked(others, extractor), extractor.name, called)


def between_features(edits: Features, others: Features, extractor: str, called: str) -> Measured:
    """`frechet_video_distance` of features that are there already, [windows, width] each, made by `extractor`."""
    value = frechet_distance(edits, others)
    note = f"{len(edits)} features of edits, {len(others)} of the {called}"
    if min(len(edits), len(others)) <= edits.shape[1]:
        note += f"; fewer than their width ({edits.shape[1]}), so it comes out too high and only ranks sets of one size"
    return Measured(distance_name(extractor), value, "squared feature units", "lower", note=note)


def distance_name(extractor: str) -> str:
    """`fvd` for I3D's features, else frechet_NAME."""
    return "fvd" if extractor == OF_FVD else f"frechet_{extractor}"


def frechet_distance(first: Features, second: Features) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) of two sets of vectors [n, width], covariances by n - 1.

    (C1 C2)^½ is not formed. Its trace is the sum of the square roots of the eigenvalues of C1 C2, and these roots are
    the singular values of A Bᵀ, where C1 = Aᵀ A and C2 = Bᵀ B: nothing is squared and no root of a small negative
    eigenvalue is taken, so that sets with fewer vectors than their width, whose covariance has no full rank, are
    handled as any other.

    Raises:
        MetricError: FEATURES.
    """
    _check(first, second)
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    factor_one, factor_other = _factor(one), _factor(other)
    shared = float(np.linalg.svd(factor_one @ factor_other.T, compute_uv=False).sum())
    means = float(((one.mean(axis=0) - other.mean(axis=0)) ** 2).sum())
    traces = float((factor_one**2).sum() + (factor_other**2).sum())
    return max(0.0, means + traces - 2 * shared)


def _factor(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """A factor A of the covariance, Aᵀ A, with no more rows than columns."""
    centred = (vectors - vectors.mean(axis=0)) / np.sqrt(len(vectors) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred


def _stacked(clips: Iterable[Frames], extractor: VideoFeatures) -> NDArray[np.float64]:
    rows = [np.asarray(extractor.features(clip), np.float64) for clip in clips]
    if len(rows) < 2:
        said = f"a Fréchet distance is one between sets of clips, and a set has {len(rows)}"
        raise MetricError(Failure.FEATURES, said, "give two clips or more")
    return np.concatenate(rows)


def _check(first: Features, second: Features) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        said = f"features of shapes {first.shape} and {second.shape} are no two sets of vectors of one width"
        raise MetricError(Failure.FEATURES, said)
    if min(len(first), len(second)) < 2:
        said = f"{len(first)} and {len(second)} vectors: a covariance needs two or more"
        raise MetricError(Failure.FEATURES, said, "give two clips or more")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise MetricError(Failure.FEATURES, "some features are not finite", "look at what the extractor gives")
