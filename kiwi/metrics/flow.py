"""Warping error: whether a frame, brought along its motion, looks like the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from kiwi.metrics.frames import luma, mean_of, over_frames
from kiwi.metrics.results import Failure, Frames, Image, Measured, MetricError, check_alike, check_clip

Floats = NDArray[np.float32]
UNIT = "squared, of 0-1"  # mean squared difference, intensities from 0 to 1
# Sundaram, Brox and Keutzer (2010), as Ruder et al. (2016) and Lai et al. (2018) take them; pixels squared.
_CONSISTENT = (0.01, 0.5)
_BOUNDARY = (0.01, 0.002)
_SMALLEST = 16  # pixels along a side: DIS works on patches of 8, at two scales


@dataclass(frozen=True)
class Motion:
    """The motion from one frame to the next.

    Attributes:
        flow: float32 [H, W, 2], in pixels, x before y: what lies at p lies at p + flow[p] in the next frame.
        visible: bool [H, W], where the flow can be trusted: it leads back where it came from, stays in the frame, and
            is no motion boundary.
    """

    flow: Floats
    visible: NDArray[np.bool_]


def warping_error(edit: Frames) -> Measured:
    """Warping error of the edit along its own motion: the mean squared difference of intensities 0-1, lower is better.

    Each frame is compared with the next one warped back onto it, where forward and backward flow agree: the mean over
    visible pixels and channels, then over pairs (Lai et al. 2018, E_warp), with DIS flow (Kroeger et al. 2016). It sees
    what flickers or boils; it does not see what is smooth and wrong, and frames without detail score well.

    Raises:
        MetricError: TOO_SHORT for one frame, TOO_SMALL, NOTHING_VISIBLE where no pair has a pixel to trust.
    """
    ((pairs, seen),) = _along(edit, [edit])
    return _measured("warping_error", pairs, seen)


def warping_error_source_flow(edit: Frames, source: Frames) -> Measured:
    """Warping error of the edit along the motion of its source: same unit, lower is better (Lai et al. 2018).

    What was still or moved in the source must do so in the edit. An edit that rightly moves otherwise (another animal,
    something removed) pays for it. `of_source` is the source along its own motion: what compression and the flow itself
    cost, the floor.

    Raises:
        MetricError: as `warping_error`; LENGTH, SIZE.
    """
    check_alike(edit, source, "source")
    (pairs, seen), (floor, _) = _along(source, [edit, source])
    return _measured("warping_error_source_flow", pairs, seen, mean_of(floor))


def motion(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Motion:
    """The motion between two luma frames, uint8 [H, W]."""
    forward, backward = _flow(first, second), _flow(second, first)
    height, width = first.shape
    to = _grid(height, width) + forward
    returned = np.asarray(cv2.remap(backward, to, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    there, back = _squared(forward), _squared(returned)
    visible = _squared(forward + returned) <= _CONSISTENT[0] * (there + back) + _CONSISTENT[1]
    visible &= (to[..., 0] >= 0) & (to[..., 0] <= width - 1) & (to[..., 1] >= 0) & (to[..., 1] <= height - 1)
    visible &= _steepness(forward) <= _BOUNDARY[0] * there + _BOUNDARY[1]
    return Motion(forward, visible)


def pair_error(frame: Image, following: Image, moved: Motion) -> float | None:
    """Mean squared difference of `frame` and `following` warped onto it, intensities 0-1; None: nothing is visible."""
    inside = np.ascontiguousarray(moved.visible).view(np.uint8)
    count = int(np.count_nonzero(inside))
    if not count:
        return None
    to = _grid(*frame.shape[:2]) + moved.flow
    warped = cv2.remap(following.astype(np.float32), to, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    total = cv2.norm(warped, frame.astype(np.float32), cv2.NORM_L2SQR, inside)
    return float(total) / (3 * count * 255.0**2)


def _along(moving: Frames, measured: Sequence[Frames]) -> list[tuple[list[float | None], float]]:
    """For each clip of `measured`, each pair's error along the motion of `moving`, and the share that was visible."""
    check_clip(moving, "the clip")
    count, height, width = moving.shape[:3]
    if count < 2:
        raise MetricError(Failure.TOO_SHORT, "a warping error needs two frames, and there is one")
    if min(height, width) < _SMALLEST:
        raise MetricError(Failure.TOO_SMALL, f"frames of {width}x{height} are too small for optical flow")
    grey = over_frames(lambda index: luma(moving[index]), count)

    def one(index: int) -> tuple[list[float | None], float]:
        moved = motion(grey[index], grey[index + 1])
        errors = [pair_error(clip[index], clip[index + 1], moved) for clip in measured]
        return errors, float(moved.visible.mean())

    found = over_frames(one, count - 1)
    seen = float(np.mean([share for _, share in found]))
    return [([errors[place] for errors, _ in found], seen) for place in range(len(measured))]


def _measured(name: str, pairs: list[float | None], seen: float, of_source: float | None = None) -> Measured:
    value = mean_of(pairs)
    if value is None:
        said = "no pair of frames has a pixel whose motion can be followed there and back"
        raise MetricError(Failure.NOTHING_VISIBLE, said)
    cuts = pairs.count(None)
    left_out = f"; {cuts} of {len(pairs)} pairs have none and are left out" if cuts else ""
    return Measured(name, value, UNIT, "lower", tuple(pairs), of_source, f"over {seen:.1%} of the pixels{left_out}")


def _flow(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Floats:
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)  # its buffers are of one thread
    return np.asarray(estimator.calc(first, second, None), np.float32)


def _grid(height: int, width: int) -> Floats:
    grid = np.empty((height, width, 2), np.float32)
    grid[..., 0] = np.arange(width)
    grid[..., 1] = np.arange(height)[:, None]
    return grid


def _squared(vectors: Floats) -> Floats:
    """Squared lengths, [H, W, 2] -> [H, W]; NumPy is slow over so short an axis."""
    return np.asarray(cv2.transform(vectors * vectors, np.ones((1, 2), np.float32)), np.float32)


def _steepness(flow: Floats) -> Floats:
    """Squared length of both components' gradients, forward differences; 0 at the last row and column."""
    steep = np.zeros(flow.shape[:2], np.float32)
    steep[:, :-1] += _squared(flow[:, 1:] - flow[:, :-1])
    steep[:-1] += _squared(flow[1:] - flow[:-1])
    return steep
