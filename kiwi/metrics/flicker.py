"""Flicker: brightness that comes and goes from frame to frame, while fades and steady motion do not count."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from kiwi.metrics.frames import luma, over_frames
from kiwi.metrics.results import Failure, Frames, Image, Measured, MetricError, check_clip

BLOCK = 16


def flicker(edit: Frames, source: Frames | None = None) -> Measured:
    """Flicker in levels of 0-255, lower is better: the amplitude of brightness that alternates.

    The mean of |Y(t-1) - 2 Y(t) + Y(t+1)| / 4 over blocks of about 16 by 16 pixels and all triples of frames, with Y
    a block's mean luma: brightness that alternates by ±a gives a, a steady fade gives 0. VBench (Huang et al. 2024,
    temporal flickering) takes the first difference of static clips; the second one lets fades pass, and most motion.
    `of_source` is the source's own: what moves counts a little, so compare with it. `per_frame`: one each triple.

    Raises:
        MetricError: TOO_SHORT for fewer than three frames.
    """
    check_clip(edit, "the edit")
    if len(edit) < 3:
        raise MetricError(Failure.TOO_SHORT, f"flicker needs three frames, and the edit has {len(edit)}")
    triples = _alternation(edit)
    of_source = float(np.mean(_alternation(source))) if source is not None and len(source) > 2 else None
    return Measured("flicker", float(np.mean(triples)), "levels of 0-255", "lower", tuple(triples), of_source)


def _alternation(frames: Frames) -> list[float]:
    """The mean over blocks of |second difference| / 4, for each triple."""
    means = np.stack(over_frames(lambda index: _block_means(frames[index]), len(frames)))
    second = means[:-2] - 2 * means[1:-1] + means[2:]
    return [float(each) for each in np.abs(second).mean(axis=(1, 2)) / 4]


def _block_means(frame: Image) -> NDArray[np.float64]:
    height, width = (max(1, round(side / BLOCK)) for side in frame.shape[:2])
    grey = luma(frame).astype(np.float32)
    return np.asarray(cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA), np.float64)
