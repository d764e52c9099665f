"""Win rates, Bradley-Terry scores and agreement, against figures worked by hand and second implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kiwi.benchmark.preference.scores import (
    agreement_parts,
    alpha_of,
    bradley_terry,
    interval,
    resampled,
    wilson,
)

# Krippendorff's own example (Computing Krippendorff's Alpha-Reliability, 2011, section C): 12 units, 4 observers, one
# value missing here and there; nominal alpha 0.743.
OBSERVERS = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]


def slow_bradley_terry(wins: np.ndarray, rounds: int = 20_000) -> np.ndarray:
    """Hunter's MM iteration, the textbook one, as a second implementation."""
    strength = np.ones(len(wins))
    for _ in range(rounds):
        games = wins + wins.T
        strength = wins.sum(1) / (games / (strength[:, None] + strength[None, :])).sum(1)
        strength /= np.exp(np.log(strength).mean())
    return np.log(strength)


def alpha(counts: list[list[int]]) -> float:
    return float(alpha_of(agreement_parts(np.array(counts, float)).sum(axis=0)))


def test_eight_wins_of_ten_have_the_textbook_interval() -> None:
    rate = wilson(8, 10)
    assert rate is not None
    assert (round(rate.value, 4), round(rate.low, 4), round(rate.high, 4)) == (0.8, 0.4902, 0.9433)


def test_a_set_that_always_won_is_not_certain_to() -> None:
    rate = wilson(5, 5)
    assert rate is not None
    assert (rate.value, rate.high) == (1.0, 1.0)
    assert 0.5 < rate.low < 0.6


def test_more_raters_of_the_same_samples_do_not_narrow_a_win_rate() -> None:
    assert wilson(80, 100, units=10) == wilson(8, 10)


def test_no_vote_has_no_win_rate() -> None:
    assert wilson(0, 0) is None


def test_three_wins_to_one_are_odds_of_three() -> None:
    strengths = bradley_terry(np.array([[0, 30], [10, 0]], float), prior=0)
    assert math.isclose(strengths[0] - strengths[1], math.log(3), rel_tol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_newton_finds_what_the_textbook_iteration_finds(seed: int) -> None:
    draw = np.random.default_rng(seed)
    wins = draw.integers(1, 40, size=(5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    assert np.allclose(bradley_terry(wins, prior=0), slow_bradley_terry(wins), atol=1e-8)


def test_known_strengths_come_back_from_many_games() -> None:
    true = np.array([1.0, 0.2, -0.3, -0.9])
    odds = 1 / (1 + np.exp(true[None, :] - true[:, None]))
    np.fill_diagonal(odds, 0)
    assert np.allclose(bradley_terry(1e6 * odds), true, atol=1e-3)


def test_a_set_that_won_every_game_has_a_finite_score_and_the_first_place() -> None:
    strengths = bradley_terry(np.array([[0, 1000, 1000], [0, 0, 600], [0, 400, 0]], float))
    assert np.isfinite(strengths).all()
    assert strengths.argmax() == 0


def test_sets_that_were_never_compared_are_not_ranked() -> None:
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[2, 3] = 5
    with pytest.raises(ValueError, match="apart"):
        bradley_terry(wins)


def test_many_tables_at_once_give_what_each_gives_alone() -> None:
    wins = np.random.default_rng(0).integers(0, 30, size=(20, 3, 3)).astype(float) + 1
    assert np.allclose(bradley_terry(wins), [bradley_terry(each) for each in wins])


def test_agreement_is_krippendorffs_on_his_own_example() -> None:
    counts = [[sum(row[unit] == str(value) for row in OBSERVERS) for value in range(1, 6)] for unit in range(12)]
    assert round(alpha(counts), 3) == 0.743


def test_agreement_worked_by_hand() -> None:
    # Two raters, three units: aa, ab, bb. Coincidences: aa 2, bb 2, ab 1, ba 1; n = 6, 3 of each value.
    # Observed disagreement 2/6, expected 2 * 3 * 3 / (6 * 5) = 0.6; alpha = 1 - (1/3) / 0.6 = 4/9.
    assert math.isclose(alpha([[2, 0], [1, 1], [0, 2]]), 4 / 9)


def test_full_agreement_is_one_and_a_single_answer_throughout_is_undefined() -> None:
    assert alpha([[3, 0], [0, 3]]) == 1
    assert math.isnan(alpha([[2, 0], [2, 0]]))


def test_units_with_one_rater_say_nothing_of_agreement() -> None:
    assert alpha([[2, 0], [1, 1], [0, 2], [1, 0], [0, 1]]) == alpha([[2, 0], [1, 1], [0, 2]])


def test_an_interval_has_the_width_that_theory_gives() -> None:
    values = (np.arange(400) % 2).astype(float)[:, None]  # standard error of the mean: 0.5 / 20 = 0.025
    low, high = interval(resampled(values)[:, 0] / 400)
    assert math.isclose(high - low, 2 * 1.96 * 0.025, rel_tol=0.12)


def test_copies_of_the_votes_on_the_same_samples_do_not_narrow_an_interval() -> None:
    values = np.random.default_rng(1).integers(0, 2, size=(50, 1)).astype(float)
    once, tenfold = interval(resampled(values) / 50), interval(resampled(10 * values) / 500)
    assert np.allclose(once, tenfold)


def test_resamples_drawn_in_parts_draw_every_sample_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiwi.benchmark.preference.scores.DRAWS_AT_ONCE", 70)
    sums = resampled(np.ones((10, 1)), resamples=33)
    assert sums.shape == (33, 1)
    assert (sums == 10).all()
