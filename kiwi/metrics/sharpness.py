"""Sharpness: how much fine detail a clip shows, beside its source's."""

from __future__ import annotations

import cv2
import numpy as np

from kiwi.metrics.frames import luma, over_frames
from kiwi.metrics.results import Failure, Frames, Image, Measured, MetricError, check_clip


def sharpness(edit: Frames, source: Frames | None = None) -> Measured:
    """Variance of the luma's Laplacian in squared levels, higher is sharper; the mean over frames.

    Pech-Pacheco et al. (2000); the Laplacian is the 3 by 3 one (4 in the middle) on pixels that have four neighbours.
    Noise counts as detail, and it depends on the size of the frames: compare with `of_source`, at one size.

    Raises:
        MetricError: TOO_SMALL for frames below 3 by 3.
    """
    check_clip(edit, "the edit")
    if min(edit.shape[1:3]) < 3:
        raise MetricError(Failure.TOO_SMALL, f"frames of {edit.shape[2]}x{edit.shape[1]} have no Laplacian")
    frames = _of_frames(edit)
    of_source = float(np.mean(_of_frames(source))) if source is not None and min(source.shape[1:3]) > 2 else None
    return Measured("sharpness", float(np.mean(frames)), "squared levels", "higher", tuple(frames), of_source)


def _of_frames(frames: Frames) -> list[float]:
    return over_frames(lambda index: _laplacian_variance(frames[index]), len(frames))


def _laplacian_variance(frame: Image) -> float:
    edges = cv2.Laplacian(luma(frame), cv2.CV_16S)[1:-1, 1:-1]
    _, deviation = cv2.meanStdDev(np.ascontiguousarray(edges))
    return float(deviation[0, 0]) ** 2
