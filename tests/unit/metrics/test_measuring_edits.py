"""All metrics of one edit: what is measured, what is not and why, and that nothing is measured in its stead."""

import json

import numpy as np
import pytest

from kiwi.benchmark.measured import changed_region
from kiwi.errors import UsageError
from kiwi.metrics.edit import METRICS, EditClips, edit_region, measure_edit
from kiwi.metrics.fidelity import psnr
from kiwi.metrics.results import Failure, Measured, MetricError

OF_CLIP = {"clip_text", "clip_image", "clip_consistency"}
ALONE = {"warping_error", "flicker", "sharpness"}


def names(those):
    return {each.name for each in those}


def why(report):
    return {each.name: each.reason for each in report.unmeasured}


def test_everything_is_measured_where_everything_is_given(source, target, clip):
    outside = np.zeros(source.shape[:3], bool)
    outside[:, 18:42, 28:52] = True
    clips = EditClips(target, source, target, outside, target[0], "a red square")
    report = measure_edit(clips, clip, [name for name in METRICS if name != "vmaf"])
    assert names(report.measured) == set(METRICS) - {"vmaf"}
    assert set(report.seconds) == names(report.measured)
    found = {each.name: each.value for each in report.measured}
    assert found["psnr_outside"] == found["psnr_target"] == 60
    assert found["ssim_outside"] == pytest.approx(1, abs=1e-6)
    said = json.loads(json.dumps(report.as_dict()))
    assert (said["frames"], said["height"], said["width"]) == source.shape[:3]
    assert said["metrics"]["flicker"]["direction"] == "lower"


def test_without_a_mask_the_region_is_where_ground_truth_differs(source, target):
    spoilt = target.copy()
    spoilt[:, 2:10, 2:10] //= 2
    region = edit_region(source, target)
    assert (region == changed_region(source, target)).all(), "the benchmark's rule"
    (found,) = measure_edit(EditClips(spoilt, source, target), only=["psnr_outside"]).measured
    assert found.value == psnr("", spoilt, source, "source", ~region).value < 60


def test_what_is_not_given_is_said_and_has_no_figure(source):
    report = measure_edit(EditClips(source, source))
    assert names(report.measured) == ALONE | {"warping_error_source_flow"}
    assert set(why(report).values()) == {Failure.NOT_GIVEN}
    assert names(report.measured) | names(report.unmeasured) == set(METRICS)


@pytest.mark.parametrize(
    ("cut", "reason"), [(np.s_[:4], Failure.LENGTH), (np.s_[:, :48], Failure.SIZE)], ids=["length", "size"]
)
def test_an_edit_of_another_length_or_size_keeps_what_needs_no_source(source, target, clip, cut, reason):
    report = measure_edit(EditClips(target[cut], source, target, reference=target[0], prompt="red"), clip)
    assert names(report.measured) == ALONE | OF_CLIP
    assert set(why(report).values()) == {reason}


def test_a_missing_edit_has_no_figure_at_all(source, target, clip):
    missing = MetricError(Failure.MISSING, "there is no file e.mp4")
    report = measure_edit(EditClips(missing, source, target, reference=target[0], prompt="red"), clip)
    assert report.measured == ()
    assert report.shape is None
    assert set(why(report).values()) == {Failure.MISSING}


def test_a_damaged_target_fails_only_what_compares_with_it(source, target):
    damaged = MetricError(Failure.UNREADABLE, "t.mp4: breaks off after 3 of 6 frames")
    report = measure_edit(EditClips(target, source, damaged, edit_region(source, target)))
    assert names(report.measured) == ALONE | {"warping_error_source_flow", "psnr_outside", "ssim_outside"}
    reasons = why(report)
    assert {reasons[name] for name in ("psnr_target", "ssim_target", "vmaf")} == {Failure.UNREADABLE}


def test_an_edit_that_may_change_everything_has_no_outside(source):
    everywhere = np.ones(source.shape[:3], bool)
    report = measure_edit(EditClips(source, source, mask=everywhere), only=["psnr_outside", "ssim_outside"])
    assert set(why(report).values()) == {Failure.EMPTY_REGION}


def test_frames_are_described_once_for_all_that_need_them(source, clip, monkeypatch):
    described = []
    real = type(clip).frames
    monkeypatch.setattr(type(clip), "frames", lambda self, frames: described.append(len(frames)) or real(self, frames))
    measure_edit(EditClips(source, None, reference=source[0], prompt="red"), clip, sorted(OF_CLIP))
    assert sorted(described) == [1, 6]


def test_weights_that_fail_to_load_are_tried_once(source, clip, monkeypatch):
    tried = []

    def fails(self, frames):
        tried.append(1)
        raise MetricError(Failure.WEIGHTS, "not in the local cache")

    monkeypatch.setattr(type(clip), "frames", fails)
    report = measure_edit(EditClips(source, None, reference=source[0], prompt="red"), clip, sorted(OF_CLIP))
    assert len(tried) == 1
    assert set(why(report).values()) == {Failure.WEIGHTS}


def test_an_unknown_metric_lists_the_known_ones(source):
    with pytest.raises(UsageError, match="no metric 'lpips'") as caught:
        measure_edit(EditClips(source), only=["lpips"])
    assert "psnr_outside" in caught.value.remedy


def test_a_figure_that_is_none_is_refused():
    for value in (float("nan"), float("inf")):
        with pytest.raises(MetricError):
            Measured("m", value, "dB", "higher")
