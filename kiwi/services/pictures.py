"""How a frame is laid out in the picture that a model sees, and the way back from places in it to the frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from kiwi.services.questions import Image

SMALLEST_SIDE = 64  # below it, models refuse pictures or see a handful of patches
GROUND = 127
LEAST_LINEAR = 0.5  # of the side: down to it, bilinear interpolation still looks at every pixel, in a sixth of the time


@dataclass(frozen=True)
class Layout:
    """A frame scaled to `content` (height, width), at the upper left of a `canvas` (height, width) of plain grey.

    Whoever shows pictures drawn otherwise than before is another version of itself: answers hang on every pixel.
    """

    content: tuple[int, int]
    canvas: tuple[int, int]

    def draw(self, frame: Image) -> Image:
        """The picture, uint8 [H,W,3] of the canvas' size, of a frame of any size."""
        height, width = self.content
        shown = np.ascontiguousarray(frame)
        if frame.shape[:2] != self.content:
            interpolation = self._interpolation(*frame.shape[:2])
            shown = np.asarray(cv2.resize(shown, (width, height), interpolation=interpolation), np.uint8)
        if self.canvas == self.content:
            return shown
        picture = np.full((*self.canvas, 3), GROUND, np.uint8)
        picture[:height, :width] = shown
        return picture

    def _interpolation(self, height: int, width: int) -> int:
        if self.content[0] > height or self.content[1] > width:
            return cv2.INTER_CUBIC
        if min(self.content[0] / height, self.content[1] / width) > LEAST_LINEAR:
            return cv2.INTER_LINEAR
        return cv2.INTER_AREA

    def share_of_frame(self, x: float, y: float) -> tuple[float, float]:
        """A place on the canvas in pixels, as shares of the frame's width and height, held to 0-1."""
        return min(max(x / self.content[1], 0.0), 1.0), min(max(y / self.content[0], 0.0), 1.0)


def layout(
    height: int,
    width: int,
    pixels: int,
    *,
    max_aspect: float | None = None,
    multiple: int = 1,
) -> Layout:
    """The largest layout of a frame with at most about `pixels` pixels of canvas. A frame is enlarged only to
    SMALLEST_SIDE.

    Args:
        max_aspect: the canvas is padded so that its longer side is at most so many times the shorter.
        multiple: the canvas' sides are padded to multiples of this.
    """
    tall, wide = float(height), float(width)
    if max_aspect is not None:
        tall, wide = max(tall, wide / max_aspect), max(wide, tall / max_aspect)
    scale = min(1.0, math.sqrt(pixels / (tall * wide)))
    scale = max(scale, SMALLEST_SIDE / min(tall, wide))
    content = max(1, round(height * scale)), max(1, round(width * scale))
    canvas = [max(side, round(full * scale)) for side, full in zip(content, (tall, wide), strict=True)]
    rounded = [math.ceil(side / multiple) * multiple for side in canvas]
    return Layout(content, (rounded[0], rounded[1]))
