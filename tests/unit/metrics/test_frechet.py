"""The Fréchet distance against closed forms and against the textbook's formula with a matrix root."""

import numpy as np
import pytest

from kiwi.metrics.frechet import between_features, frechet_distance, frechet_video_distance
from kiwi.metrics.results import Failure, MetricError


def with_moments(mean, deviations, count=64, seed=0):
    """Vectors whose sample mean and covariance (diagonal) are exactly these."""
    raw = np.random.default_rng(seed).normal(size=(count, len(mean)))
    raw -= raw.mean(axis=0)
    white = np.linalg.qr(raw)[0] * np.sqrt(count - 1)
    return white * np.asarray(deviations) + np.asarray(mean)


def test_gaussians_with_commuting_covariances_have_the_closed_form():
    first, second = with_moments([0, 1, 2], [1, 2, 3]), with_moments([1, 1, 0], [2, 2, 0.5], seed=1)
    by_hand = (1 + 0 + 4) + (1 - 2) ** 2 + (2 - 2) ** 2 + (3 - 0.5) ** 2
    assert frechet_distance(first, second) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize(("count", "width"), [(200, 12), (30, 30), (9, 40)])
def test_it_is_the_formula_with_a_matrix_root(count, width):
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")
    rng = np.random.default_rng(count)
    first = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    second = rng.normal(1, 1, size=(count + 3, width)) @ rng.normal(size=(width, width))
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = np.real(linalg.sqrtm(covariances[0] @ covariances[1]))
    means = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    textbook = means + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(textbook, rel=1e-4)


def test_a_set_has_no_distance_from_itself_even_without_full_rank():
    few = np.random.default_rng(0).normal(size=(5, 512)).astype(np.float32)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, few[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, few + 2) == pytest.approx(4 * 512, rel=1e-5)


class MeanColour:
    """A plugged-in extractor that is no network: a clip's mean colour, so that distances can be worked by hand."""

    def __init__(self, name):
        self.name = name

    def features(self, frames):
        return frames.reshape(1, -1, 3).mean(axis=1)


def clips(levels):
    return [np.full((2, 4, 4, 3), level, np.uint8) for level in levels]


@pytest.mark.parametrize(("extractor", "called"), [("i3d", "fvd"), ("mean_colour", "frechet_mean_colour")])
def test_only_i3d_features_give_what_is_called_fvd(extractor, called):
    found = frechet_video_distance(iter(clips([10, 20, 30])), clips([14, 24, 34]), MeanColour(extractor))
    assert found.name == called
    assert found.value == pytest.approx(3 * 4**2)
    assert found.direction == "lower"


def test_few_clips_are_said_to_raise_the_distance():
    found = between_features(np.eye(3), np.eye(3), "mean_colour", "sources")
    assert "3 features of edits, 3 of the sources; fewer than their width (3)" in found.note
    assert "fewer" not in between_features(with_moments([0], [1]), with_moments([0], [1]), "x", "y").note


@pytest.mark.parametrize(
    "second", [np.ones((1, 3)), np.ones((4, 2)), np.full((4, 3), np.nan), np.ones(3)], ids=["one", "width", "nan", "1d"]
)
def test_features_that_are_none_are_a_typed_failure(second):
    with pytest.raises(MetricError) as caught:
        frechet_distance(np.ones((4, 3)), second)
    assert caught.value.reason is Failure.FEATURES


def test_a_single_clip_is_no_set():
    with pytest.raises(MetricError, match="between sets of clips"):
        frechet_video_distance(clips([1]), clips([1, 2]), MeanColour("i3d"))
