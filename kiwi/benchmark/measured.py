"""The judge `measured`: six criteria from pixel measurements on documented curves, the same for the same pixels.

It needs ground truth, and is therefore no judge for edits that have none; its figures are comparable among themselves
(one benchmark revision, one version of this judge) and never with an MLLM's. docs/benchmark.md explains the criteria
and what they mean for each kind of edit; the curves, each linear and clipped to 1-5:

| measurement | 1 at | 5 at |
| --- | --- | --- |
| share of the copy's error undone in the edit region, 1 - rmse / rmse(copy) | 0 | 1 |
| PSNR against truth in the edit region | 8 dB | 24 dB |
| share of the truth's temporal change explained, 1 - mse(dt) / ms(dt truth) | 0 | 1 |
| PSNR against the source outside the edit region | 16 dB | 34 dB |
| PSNR against truth in the band along the region's border | 10 dB | 26 dB |
| correlation of edge strength with the truth | 0.2 | 0.95 |
| sharpness, the smaller of edit/truth and truth/edit in mean gradient | 0.3 | 1 |
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kiwi.benchmark.pixels import channel_mean, decibels, mean_inside, squared_error
from kiwi.benchmark.rubric import HIGHEST, LOWEST, FailedMeasurement, Frames, JudgeView, Mask, MeasurementError

Floats = npt.NDArray[np.float32]

UNDONE = (0.0, 1.0)
EDIT_PSNR = (8.0, 24.0)
EXPLAINED = (0.0, 1.0)
KEPT_PSNR = (16.0, 34.0)
BORDER_PSNR = (10.0, 26.0)
EDGES = (0.2, 0.95)
SHARPNESS = (0.3, 1.0)
STILL = 5.0  # levels of 0-255: temporal change below this counts as a still clip, where noise must not decide
KEPT_SHARE = 0.02  # of the frame: with less than this left untouched there is no "outside" to judge
CHANGED = 16.0  # levels: where truth and source differ by more, after a 5x5 mean, lies the edit of a pair without mask


class MeasuredJudge:
    """Deterministic judge against ground truth. The version in its name changes whenever a curve does."""

    name = "measured/1"

    def judge(self, view: JudgeView) -> dict[str, float]:
        """The rubric's three criteria, 1-5, before the cap.

        Raises MeasurementError: no ground truth, one frame only, no edit in the truth, or an empty region.
        """
        if view.truth is None:
            raise MeasurementError(FailedMeasurement.NO_GROUND_TRUTH, "the judge `measured` compares with ground truth")
        if len(view.source) < 2:
            raise MeasurementError(FailedMeasurement.ONE_FRAME, "temporal criteria need two frames or more")
        region = changed_region(view.source, view.truth) if view.edit_mask is None else view.edit_mask
        likeness = likeness_in_region(view.source, view.edit, view.truth, region)
        if view.rubric == "subject":
            trajectory = np.broadcast_to(region.any(axis=0), region.shape)
            return {
                "identity_consistency": likeness,
                "temporal_consistency": motion(view.edit, view.truth, trajectory),
                "physical_consistency": integration(view, view.truth, region),
            }
        moved = motion(view.edit, view.truth, np.ones_like(region))
        return {
            "reference_similarity": likeness,
            "matting_quality": integration(view, view.truth, region),
            "video_quality": (moved + sharpness(view.edit, view.truth)) / 2,
        }


def on_curve(value: float, ends: tuple[float, float]) -> float:
    """1 at `ends[0]` and below, 5 at `ends[1]` and above, linear between."""
    share = (value - ends[0]) / (ends[1] - ends[0])
    return LOWEST + (HIGHEST - LOWEST) * min(1.0, max(0.0, share))


def changed_region(source: Frames, truth: Frames) -> Mask:
    """Where truth and source visibly differ, bool [T, H, W]: for pairs that come without a mask.

    Raises MeasurementError(NO_EDIT_IN_TRUTH) if they nowhere do.
    """
    import cv2

    difference = np.abs(source.astype(np.int16) - truth.astype(np.int16)).max(axis=-1).astype(np.float32)
    mask: Mask = np.stack([cv2.blur(frame, (5, 5)) > CHANGED for frame in difference])
    if not mask.any():
        raise MeasurementError(FailedMeasurement.NO_EDIT_IN_TRUTH, "truth and source show the same")
    return mask


def likeness_in_region(source: Frames, edit: Frames, truth: Frames, region: Mask) -> float:
    """How much the edit region looks as it should, 1-5: the lower of a relative and an absolute measure.

    Relative alone would praise black where the source was far off; absolute alone would praise a copy where the edit
    is slight.
    """
    copied = mean_inside(squared_error(source, truth), region)
    if copied < 1.0:
        raise MeasurementError(
            FailedMeasurement.NO_EDIT_IN_TRUTH, "truth and source are the same inside the edit region"
        )
    error = mean_inside(squared_error(edit, truth), region)
    undone = 1.0 - float(np.sqrt(error / copied))
    return min(on_curve(undone, UNDONE), on_curve(decibels(error), EDIT_PSNR))


def motion(edit: Frames, truth: Frames, where: Mask) -> float:
    """How well changes from frame to frame follow the truth's, 1-5: flicker, stutter and wrong order all cost."""
    wanted = np.diff(smoothed(truth), axis=0)
    missed = np.diff(smoothed(edit), axis=0) - wanted
    inside = where[1:]
    change = mean_inside(channel_mean(wanted * wanted), inside)
    error = mean_inside(channel_mean(missed * missed), inside)
    return on_curve(1.0 - error / max(change, STILL**2), EXPLAINED)


def smoothed(frames: Frames) -> Floats:
    """Frames under a mean as wide as a sixteenth of the shorter side, [T, H, W, 3]: grain is no motion, flicker is."""
    import cv2

    side = 2 * max(1, round(min(frames.shape[1:3]) / 32)) + 1
    means: Floats = np.stack([cv2.blur(frame.astype(np.float32), (side, side)) for frame in frames])
    return means


def integration(view: JudgeView, truth: Frames, region: Mask) -> float:
    """How well the edit sits in its scene, 1-5: what was to stay is kept, and the border between is right.

    An edit of the whole frame (a style) keeps nothing as it was; there the scene's edges must be where the truth's are.
    """
    kept = ~region
    if kept.mean() < KEPT_SHARE:
        return on_curve(edge_correlation(view.edit, truth), EDGES)
    outside = decibels(mean_inside(squared_error(view.edit, view.source), kept))
    border = border_of(region)
    along = decibels(mean_inside(squared_error(view.edit, truth), border))
    return (on_curve(outside, KEPT_PSNR) + on_curve(along, BORDER_PSNR)) / 2


def border_of(region: Mask) -> Mask:
    """The band along a region's border, as wide as a sixteenth of the shorter side."""
    import cv2

    reach = max(1, round(min(region.shape[1:]) / 32))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
    frames = region.astype(np.uint8)
    band: Mask = np.stack([(cv2.dilate(frame, kernel) != cv2.erode(frame, kernel)) for frame in frames])
    return band


def gradient(frames: Frames) -> Floats:
    """Edge strength of the luma under a 3x3 mean, [T, H-1, W-1], in levels a pixel."""
    import cv2

    luma = frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    luma = np.stack([cv2.blur(frame, (3, 3)) for frame in luma])
    across = np.diff(luma, axis=2)[:, :-1, :]
    down = np.diff(luma, axis=1)[:, :, :-1]
    strength: Floats = np.sqrt(across**2 + down**2)
    return strength


def edge_correlation(edit: Frames, truth: Frames) -> float:
    """Pearson correlation of edge strength over the clip, -1 to 1; a frame without any edge correlates with nothing."""
    first, second = gradient(edit).ravel(), gradient(truth).ravel()
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale > 0 else 0.0


def sharpness(edit: Frames, truth: Frames) -> float:
    """How near the mean edge strength is to the truth's, 1-5: blur and added noise both cost."""
    made, wanted = float(gradient(edit).mean()), float(gradient(truth).mean())
    larger = max(made, wanted)
    return on_curve(min(made, wanted) / larger if larger > 0 else 1.0, SHARPNESS)
