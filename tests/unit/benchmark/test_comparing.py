"""Intervals, the difference of two models sample by sample, and when there is no verdict."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiwi.benchmark.comparing import compare, read_scores
from kiwi.benchmark.resampling import LEAST, difference, intervals
from kiwi.benchmark.rubric import ALL_CRITERIA, CRITERIA
from kiwi.benchmark.samples import BenchmarkError
from kiwi.errors import UsageError

SUBJECT, BACKGROUND = CRITERIA["subject"], CRITERIA["background"]


def rows(seed: int, samples: int = 60, lift: float = 0.0):
    """Samples of both rubrics; those of one seed are alike but for `lift`."""
    drawn = np.random.default_rng(seed)
    made = []
    for number in range(samples):
        names = SUBJECT if number % 3 else BACKGROUND
        made.append({name: float(np.clip(drawn.normal(3, 0.8) + lift, 1, 5)) for name in names})
    return made


def scores(rows, coverage=1.0, **more):
    listed = [{"id": str(number), "criteria": row} for number, row in enumerate(rows)]
    return {"judge": "j/1", "revision": "r", "coverage": coverage, "overall": 3.0, "per_sample": listed, **more}


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says():
    inside = 0
    for seed in range(100):
        drawn = np.random.default_rng(seed).normal(3, 0.5, (40, 3))
        low, high = intervals([dict(zip(SUBJECT, row, strict=True)) for row in drawn])["overall"]
        inside += low <= 3 <= high
    assert 86 <= inside <= 100


def test_an_interval_narrows_with_the_samples_and_is_the_same_each_time():
    few, many = intervals(rows(1, 30))["overall"], intervals(rows(1, 3000))["overall"]
    assert many[1] - many[0] < (few[1] - few[0]) / 5
    assert intervals(rows(1, 30)) == intervals(rows(1, 30))


def test_pairing_sees_a_small_lift_that_the_models_own_intervals_hide():
    before, after = rows(2), rows(2, lift=0.1)
    low, high = intervals(before)["overall"]
    assert low < intervals(after)["overall"][0] < high
    said = difference(after, before)
    assert said["chance_better"] > 0.99
    assert said["interval"][0] > 0


@given(seed=st.integers(0, 1000), samples=st.integers(LEAST, 30))
@settings(max_examples=20, deadline=None)
def test_a_model_against_itself_is_even_and_turning_the_two_round_turns_the_sign(seed, samples):
    ours, theirs = rows(seed, samples), rows(seed + 1, samples)
    same = difference(ours, ours)
    assert (same["difference"], same["interval"], same["chance_better"]) == (0.0, [0.0, 0.0], 0.5)
    one, other = difference(ours, theirs), difference(theirs, ours)
    assert one["difference"] == -other["difference"]
    assert one["chance_better"] == pytest.approx(1 - other["chance_better"], abs=1e-4)
    assert one["interval"] == pytest.approx([-end for end in reversed(other["interval"])], abs=2e-4)


@pytest.mark.parametrize(
    "few",
    [rows(3, LEAST - 1), [*[row for row in rows(3, 30) if SUBJECT[0] in row], rows(3, 1)[0]], []],
    ids=["seven", "one of a rubric", "none"],
)
def test_too_few_samples_give_no_interval_rather_than_a_narrow_one(few):
    assert intervals(few) is None
    if few:
        said = difference(few, few)
        assert said["difference"] == 0.0
        assert said["interval"] is None
        assert said["chance_better"] is None
    assert intervals(rows(3, LEAST)) is not None


def test_a_lead_that_few_samples_make_against_others_is_not_sure():
    before = [dict.fromkeys(SUBJECT, 3.0) for _ in range(10)]
    after = [dict.fromkeys(SUBJECT, mark) for mark in (3.25, 3.25, 2.9, *[3.0] * 7)]
    said = difference(after, before)
    assert said["difference"] == 0.04
    assert 0.8 < said["chance_better"] < 0.95
    assert said["interval"][0] < 0 < said["interval"][1]


def test_samples_that_were_asked_other_criteria_do_not_compare():
    with pytest.raises(ValueError, match="different criteria"):
        difference(rows(1, 6), list(reversed(rows(1, 6))))
    with pytest.raises(ValueError, match="no sample"):
        difference([], [])


def test_differences_are_listed_in_the_papers_order_of_criteria():
    asked = [dict.fromkeys(reversed(names), 3.0) for names in CRITERIA.values() for _ in range(LEAST)]
    assert tuple(difference(asked, asked)["criteria"]) == ALL_CRITERIA


VERDICTS = [
    ("better", rows(5), rows(5, lift=0.3), {}, "better"),
    ("worse", rows(5, lift=0.3), rows(5), {}, "worse"),
    ("the same", rows(5), rows(5), {}, "alike"),
    ("others of the same strength", rows(5), rows(6), {}, "alike"),
    ("one judged too little", rows(5), rows(5, lift=0.3), {"coverage": 0.9}, None),
    ("coverage not known", rows(5), rows(5, lift=0.3), {"coverage": None}, None),
    ("too few", rows(5, LEAST - 1), rows(5, LEAST - 1, lift=0.3), {}, None),
]


@pytest.mark.parametrize(("case", "first", "second", "more", "verdict"), VERDICTS, ids=[each[0] for each in VERDICTS])
def test_the_verdict(case, first, second, more, verdict):
    said = compare(scores(first), scores(second, **more), min_coverage=0.95)
    assert said["verdict"] == verdict
    assert (said["why"] is None) == (verdict is not None)


@pytest.mark.parametrize("key", ["judge", "revision"])
def test_other_judges_and_other_revisions_are_never_compared(key):
    with pytest.raises(BenchmarkError, match="another"):
        compare(scores(rows(1)), scores(rows(1), **{key: "another"}), min_coverage=0.95)


def test_samples_that_one_could_not_be_judged_on_are_left_out_and_counted():
    part = scores(rows(5, lift=0.3), coverage=0.97)
    part["per_sample"][0]["criteria"] = None
    said = compare(scores(rows(5)), part, min_coverage=0.95)
    assert (said["samples"], said["left_out"]) == (59, 1)
    none = scores([])
    with pytest.raises(BenchmarkError, match="no sample"):
        compare(scores(rows(5)), none, min_coverage=0.95)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"per_sample": 3}', '{"per_sample": [1]}', '{"per_sample": [{}]}'])
def test_what_is_no_scores_file_is_said_in_one_line(tmp_path, text):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="no scores"):
        read_scores(path)
    with pytest.raises(UsageError, match="no benchmark scores"):
        read_scores(tmp_path / "away")
    path.write_text(json.dumps(scores(rows(1, 2))))
    assert read_scores(path)["judge"] == "j/1"
