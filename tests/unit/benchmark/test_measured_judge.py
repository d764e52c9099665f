from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiwi.benchmark.measured import MeasuredJudge, changed_region
from kiwi.benchmark.rubric import CRITERIA, FailedMeasurement, MeasurementError, apply_cap, judge_view

JUDGE = MeasuredJudge()
SCORES = st.floats(1, 5)


def good(sample):
    noise = np.random.default_rng(7).normal(0, 8, sample.truth.shape)
    return np.clip(sample.truth + noise, 0, 255).astype(np.uint8)


def shuffled(sample):
    return sample.truth[np.random.default_rng(3).permutation(len(sample.truth))]


def with_wrong_reference(sample):
    edit = sample.truth.copy()
    if sample.group == "background":
        edit[sample.edit_mask] = np.broadcast_to(sample.swapped_reference, edit.shape)[sample.edit_mask]
    else:
        edit[sample.edit_mask] = next(colour for colour in sample.palette if colour != sample.answer)
    return edit


def overall(samples, edit) -> float:
    scores = [judge_view(JUDGE, sample.view(edit(sample))) for sample in samples]
    return sum(sum(each.values()) / 3 for each in scores) / len(scores)


def kinds_with_margins():
    from kiwi.sources.procedural import KINDS

    return KINDS


@pytest.mark.parametrize("kind", kinds_with_margins())
def test_truth_leads_a_good_edit_which_leads_every_wrong_one_in_each_kind(held_out, kind):
    samples = held_out.of_kind(kind)
    truth, well = overall(samples, lambda each: each.truth), overall(samples, good)
    wrong = {
        "copy": overall(samples, lambda each: each.source),
        "black": overall(samples, lambda each: np.zeros_like(each.source)),
        "noise": overall(samples, lambda each: np.random.default_rng(1).integers(0, 256, each.source.shape, np.uint8)),
        "shuffled": overall(samples, shuffled),
    }
    if samples[0].group != "instruction":
        wrong["wrong reference"] = overall(samples, with_wrong_reference)
    assert truth == 5.0
    assert truth > well > max(wrong.values()) + 0.5, wrong
    assert wrong["copy"] == 1.0
    assert max(wrong["black"], wrong["noise"], wrong.get("wrong reference", 1.0)) < 1.8, wrong


def test_an_edit_half_made_scores_between_copy_and_truth(held_out):
    def half(sample):
        return ((sample.source.astype(int) + sample.truth) // 2).astype(np.uint8)

    for kind in held_out.kinds:
        assert 1.5 < overall(held_out.of_kind(kind), half) < 4.5


def test_flicker_costs_temporal_consistency_and_grain_hardly_does(held_out):
    sample = held_out.of_kind("recolour")[0]
    swing = np.where(np.arange(len(sample.truth)) % 2, 20, -20)[:, None, None, None]
    flickering = np.clip(sample.truth + swing, 0, 255).astype(np.uint8)
    grainy = judge_view(JUDGE, sample.view(good(sample)))
    assert judge_view(JUDGE, sample.view(flickering))["temporal_consistency"] < 2
    assert grainy["temporal_consistency"] > 4


def test_damage_outside_the_edit_costs_integration_and_not_identity(held_out):
    sample = held_out.of_kind("recolour")[0]
    damaged = np.where(sample.edit_mask[..., None], sample.truth, 255 - sample.truth)
    scores = JUDGE.judge(sample.view(damaged.astype(np.uint8)))
    assert scores["identity_consistency"] == 5.0
    assert scores["physical_consistency"] < 2.5


def test_the_same_pixels_get_the_same_scores(held_out):
    for sample in held_out.samples[::5]:
        assert JUDGE.judge(sample.view(good(sample))) == JUDGE.judge(sample.view(good(sample)))


@given(scores=st.tuples(SCORES, SCORES, SCORES), rubric=st.sampled_from(["subject", "background"]))
def test_the_cap_holds_whatever_a_judge_says(scores, rubric):
    first, second, third = CRITERIA[rubric]
    said = dict(zip(CRITERIA[rubric], scores, strict=True))
    capped = apply_cap(said, rubric)
    assert capped[first] == said[first]
    for name in (second, third):
        assert capped[name] == min(said[name], said[first])


@given(lie=st.floats().filter(lambda value: not 1 <= value <= 5), place=st.integers(0, 2))
def test_a_score_outside_one_to_five_is_a_typed_failure(lie, place):
    said = dict.fromkeys(CRITERIA["subject"], 3.0) | {CRITERIA["subject"][place]: lie}
    with pytest.raises(MeasurementError) as raised:
        apply_cap(said, "subject")
    assert raised.value.reason == FailedMeasurement.REPLY_INVALID


@pytest.mark.parametrize("said", [{}, {"identity_consistency": 3.0}, dict.fromkeys(CRITERIA["background"], 3.0)])
def test_missing_or_foreign_criteria_are_a_typed_failure(said):
    with pytest.raises(MeasurementError) as raised:
        apply_cap(said, "subject")
    assert raised.value.reason == FailedMeasurement.REPLY_INVALID


def test_what_cannot_be_measured_is_said_with_its_reason(held_out):
    view = held_out.of_kind("swap")[0].view(held_out.of_kind("swap")[0].truth)
    cases = {
        FailedMeasurement.NO_GROUND_TRUTH: replace(view, truth=None),
        FailedMeasurement.NO_EDIT_IN_TRUTH: replace(view, truth=view.source, edit_mask=None),
        FailedMeasurement.EMPTY_REGION: replace(view, edit_mask=np.zeros_like(view.edit_mask)),
        FailedMeasurement.ONE_FRAME: replace(view, source=view.source[:1], edit=view.edit[:1]),
        FailedMeasurement.EDIT_SHAPE: replace(view, edit=view.edit[:-1]),
    }
    for reason, unmeasurable in cases.items():
        with pytest.raises(MeasurementError) as raised:
            judge_view(JUDGE, unmeasurable)
        assert raised.value.reason == reason


def test_the_region_of_a_pair_without_mask_covers_its_edit_and_little_else(held_out):
    for sample in held_out.of_kind("recolour"):
        found = changed_region(sample.source, sample.truth)
        core = sample.core_mask
        assert (found & core).sum() / core.sum() > 0.95
        assert found.sum() < 2.5 * sample.edit_mask.sum()


def test_scores_are_numbers_for_flat_clips(held_out):
    sample = held_out.of_kind("recolour")[0]
    flat = np.full_like(sample.source, 90)
    scores = JUDGE.judge(replace(sample.view(flat), source=np.full_like(flat, 10), truth=flat))
    assert all(math.isfinite(value) for value in scores.values())
