"""Warping error, flicker and sharpness on clips whose motion and brightness are known."""

import cv2
import numpy as np
import pytest

from kiwi.metrics.flicker import flicker
from kiwi.metrics.flow import Motion, motion, pair_error, warping_error, warping_error_source_flow
from kiwi.metrics.frames import luma
from kiwi.metrics.results import Failure, MetricError
from kiwi.metrics.sharpness import sharpness

HEIGHT, WIDTH = 72, 96


def moving(count=5, step=(2, 1), seed=0):
    """A textured picture that slides by `step` (x, y) pixels a frame."""
    rng = np.random.default_rng(seed)
    large = rng.integers(0, 256, (HEIGHT + 60, WIDTH + 60, 3), dtype=np.uint8)
    large = cv2.normalize(cv2.GaussianBlur(large, (0, 0), 2.5), None, 20, 235, cv2.NORM_MINMAX)
    places = [(30 - index * step[1], 30 - index * step[0]) for index in range(count)]
    return np.stack([large[top : top + HEIGHT, left : left + WIDTH] for top, left in places])


def test_the_flow_of_a_sliding_picture_is_its_step_and_is_trusted():
    clip = moving()
    moved = motion(luma(clip[0]), luma(clip[1]))
    inner = moved.flow[12:-12, 12:-12].reshape(-1, 2)
    assert np.median(inner, axis=0) == pytest.approx([2, 1], abs=0.2)
    assert moved.visible[12:-12, 12:-12].mean() > 0.9
    assert not moved.visible[:, -2:].any(), "what leaves the frame is not to be seen in the next"


def test_the_error_of_a_pair_is_the_mean_square_over_visible_pixels_and_channels():
    frame = np.full((4, 5, 3), 100, np.uint8)
    following = frame.copy()
    following[0, :, 0] = 151  # 51 levels are a fifth of the range
    following[3] = 255  # hidden by the mask
    visible = np.ones((4, 5), bool)
    visible[3] = False
    still = Motion(np.zeros((4, 5, 2), np.float32), visible)
    assert pair_error(frame, following, still) == pytest.approx(0.2**2 * 5 / (3 * 15))
    assert pair_error(frame, following, Motion(still.flow, np.zeros_like(visible))) is None


def test_a_frame_warped_along_a_known_flow_gives_the_same_as_shifting_it():
    clip = moving(2, (3, 0))
    visible = np.zeros((HEIGHT, WIDTH), bool)
    visible[:, : WIDTH - 3] = True
    flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
    flow[..., 0] = 3
    assert pair_error(clip[0], clip[1], Motion(flow, visible)) == 0
    shifted = (clip[0][:, :-3].astype(float) - clip[1][:, :-3]) ** 2
    assert pair_error(clip[0], clip[1], Motion(0 * flow, visible)) == pytest.approx(shifted.mean() / 255**2, rel=1e-5)


def test_motion_costs_little_and_boiling_much():
    clip = moving()
    steady = warping_error(clip)
    boiling = np.clip(clip + np.random.default_rng(1).normal(0, 12, clip.shape), 0, 255).astype(np.uint8)
    unwarped = float(((clip[1:].astype(float) - clip[:-1]) ** 2).mean()) / 255**2
    assert steady.value < unwarped / 20
    assert warping_error(boiling).value > 10 * steady.value
    assert len(steady.per_frame) == len(clip) - 1
    assert steady.direction == "lower"


def test_an_edit_is_held_to_the_motion_of_its_source():
    source, frozen = moving(), np.repeat(moving()[:1], 5, axis=0)
    tinted = 255 - source  # another look, the same motion
    kept = warping_error_source_flow(tinted, source)
    assert kept.value == pytest.approx(kept.of_source, rel=0.2)
    assert warping_error(frozen).value == 0, "along its own motion a still picture is perfect"
    assert warping_error_source_flow(frozen, source).value > 20 * kept.value


def test_a_cut_is_left_out_and_said():
    clip = np.concatenate([moving(3), np.random.default_rng(5).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)])
    blind = Motion(np.zeros((HEIGHT, WIDTH, 2), np.float32), np.zeros((HEIGHT, WIDTH), bool))
    with pytest.MonkeyPatch.context() as patch:
        real = motion
        patch.setattr("kiwi.metrics.flow.motion", lambda a, b: blind if (b == luma(clip[3])).all() else real(a, b))
        found = warping_error(clip)
        assert found.per_frame[2] is None
        assert "1 of 3 pairs have none and are left out" in found.note
        assert found.value == pytest.approx(np.mean(found.per_frame[:2]))
        patch.setattr("kiwi.metrics.flow.motion", lambda a, b: blind)
        with pytest.raises(MetricError) as caught:
            warping_error(clip)
    assert caught.value.reason is Failure.NOTHING_VISIBLE


def test_flicker_is_the_amplitude_of_what_alternates_and_nothing_for_a_fade():
    still = np.full((7, 32, 48, 3), 100, np.uint8)
    alternating, fading, local = still.copy(), still.copy(), still.copy()
    alternating[::2] += 8  # 104 ± 4
    fading += (np.arange(7, dtype=np.uint8) * 5)[:, None, None, None]
    local[::2, :16, :16] += 12  # one block of six, ± 6
    assert flicker(still).value == 0
    assert flicker(alternating).value == pytest.approx(4)
    assert flicker(fading).value == 0
    assert flicker(local, alternating).value == pytest.approx(1)
    assert flicker(local, alternating).of_source == pytest.approx(4)
    assert len(flicker(still).per_frame) == 5


def test_sharpness_is_the_variance_of_a_laplacian_by_hand_and_falls_with_blur():
    clip = moving(2)
    grey = luma(clip[0]).astype(float)
    by_hand = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    found = sharpness(clip)
    assert found.per_frame[0] == pytest.approx(by_hand.var(), rel=1e-9)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in clip])
    assert sharpness(blurred, clip).value < found.value / 2
    assert sharpness(blurred, clip).of_source == pytest.approx(found.value)


@pytest.mark.parametrize(
    ("measure", "frames", "reason"),
    [
        (warping_error, 1, Failure.TOO_SHORT),
        (flicker, 2, Failure.TOO_SHORT),
        (lambda clip: warping_error(clip[:, :9]), 3, Failure.TOO_SMALL),
        (lambda clip: sharpness(clip[:, :2]), 3, Failure.TOO_SMALL),
        (lambda clip: warping_error_source_flow(clip, clip[:2]), 3, Failure.LENGTH),
    ],
)
def test_clips_too_short_or_small_are_typed_failures(measure, frames, reason):
    with pytest.raises(MetricError) as caught:
        measure(moving(frames))
    assert caught.value.reason is reason
