from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kiwi.benchmark.metrics import is_accurate, measure, nearest_colour, shows_answer
from kiwi.benchmark.pixels import HIGHEST_PSNR, psnr
from kiwi.benchmark.rubric import FailedMeasurement, MeasurementError


def test_psnr_agrees_with_a_case_worked_by_hand():
    dark = np.zeros((1, 2, 2, 3), np.uint8)
    lit = dark.copy()
    lit[0, 0, 0] = 51  # one pixel of four off by a fifth of the range: mse = 0.04 / 4 of the peak squared, 20 dB
    assert psnr(lit, dark) == pytest.approx(20.0)
    mask = np.zeros((1, 2, 2), bool)
    mask[0, 0, 0] = True
    assert psnr(lit, dark, mask) == pytest.approx(10 * np.log10(25))
    assert psnr(dark, dark) == HIGHEST_PSNR


def test_psnr_agrees_with_opencv_on_noise():
    import cv2

    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 3, 8, 9, 3), np.uint8)
    assert psnr(first, second) == pytest.approx(cv2.PSNR(first.reshape(24, 9, 3), second.reshape(24, 9, 3)), abs=1e-4)


def test_truth_is_obedient_and_a_copy_is_not_in_every_kind(held_out):
    for kind in held_out.kinds:
        samples = held_out.of_kind(kind)
        assert all(is_accurate(each, each.truth) for each in samples), kind
        if kind != "add":  # what stands where the object is to be added may have its colour by chance
            assert not any(is_accurate(each, each.source) for each in samples), kind


def test_another_colour_at_the_core_is_not_the_answer(held_out):
    sample = held_out.of_kind("subject_reference")[0]
    for colour in sample.palette:
        painted = sample.truth.copy()
        painted[sample.core_mask] = colour
        assert shows_answer(painted, sample.core_mask, sample.answer, sample.palette) == (colour == sample.answer)


def test_nearest_colour_is_of_the_palette():
    assert nearest_colour(np.array([250.0, 10.0, 10.0]), [(0, 0, 255), (255, 0, 0)]) == (255, 0, 0)


def test_pairs_without_answers_have_no_accuracy(held_out):
    sample = replace(held_out.of_kind("recolour")[0], has_answer=False)
    assert measure(sample, sample.truth).accurate is None


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda each: None, FailedMeasurement.EDIT_MISSING),
        (lambda each: each.truth[:-1], FailedMeasurement.EDIT_SHAPE),
        (lambda each: each.truth[:, ::2, ::2], FailedMeasurement.EDIT_SHAPE),
        (lambda each: each.truth.astype(np.float32), FailedMeasurement.EDIT_SHAPE),
    ],
)
def test_missing_and_misshapen_edits_are_typed_failures(held_out, edit, reason):
    sample = held_out.samples[0]
    with pytest.raises(MeasurementError) as raised:
        measure(sample, edit(sample))
    assert raised.value.reason == reason
