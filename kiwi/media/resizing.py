"""Geometry of frames: fitting into a pixel budget, an exact size, or onto a white canvas."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Image = NDArray[np.uint8]


def budget_size(height: int, width: int, budget: int) -> tuple[int, int]:
    """The largest even (height, width) of the same aspect with at most `budget` pixels; never an enlargement.

    A size that fits already is returned as it is, odd or not.
    """
    if height * width <= budget:
        return height, width
    scale = math.sqrt(budget / (height * width))
    return max(2, 2 * int(height * scale / 2)), max(2, 2 * int(width * scale / 2))


def resize_frames(frames: Frames, height: int, width: int) -> Frames:
    """Frames uint8 [T,H,W,3] at exactly `height` by `width`: area averaging to shrink, bicubic to enlarge."""
    count, old_height, old_width = frames.shape[:3]
    if (old_height, old_width) == (height, width):
        return frames
    shrinks = height <= old_height and width <= old_width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    out = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        out[index] = cv2.resize(np.ascontiguousarray(frames[index]), (width, height), interpolation=interpolation)
    return out


def resize_to_budget(frames: Frames, budget: int) -> Frames:
    """Frames uint8 [T,H,W,3] with at most `budget` pixels each, aspect kept; unchanged where they fit already."""
    return resize_frames(frames, *budget_size(frames.shape[1], frames.shape[2], budget))


def fit_on_white(image: Image, height: int, width: int, enlarge: bool = True) -> Image:
    """`image` uint8 [H,W,3] as large as it goes into `height` by `width`, aspect kept, centred on white.

    Without `enlarge` an image that is smaller than the canvas keeps its own size.
    """
    old_height, old_width = image.shape[:2]
    scale = min(height / old_height, width / old_width, *(() if enlarge else (1.0,)))
    new_height = min(height, max(1, round(old_height * scale)))
    new_width = min(width, max(1, round(old_width * scale)))
    canvas = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    canvas[top : top + new_height, left : left + new_width] = resize_frames(image[None], new_height, new_width)[0]
    return canvas
