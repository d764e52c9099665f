"""A drawn pair of pictures whose edit has a known place: a server that does not find it has its grounding off.

vLLM 0.11.1 to 0.12.0 gave shifted boxes, a model that counts in pixels gives numbers of another scale, and both would
spoil every box without an error.
"""

from __future__ import annotations

import os

import cv2
import numpy as np

from kiwi.errors import UsageError
from kiwi.services.questions import Image

HEIGHT, WIDTH = 448, 644
BOX = (462, 308, 602, 406)  # far from the origin, so that a wrong scale or a shift shows
MIN_IOU = 0.7  # 10 pixels of shift both ways leave 0.72, 14 leave 0.63; 5% of scale leaves 0.50
INSTRUCTION = "Add a red rectangle in the lower right part of the picture."
SWITCH = "KIWI_VLM_CANARY"


def canary_pair() -> tuple[Image, Image]:
    """(source, target), uint8 [HEIGHT,WIDTH,3]: plain shapes on a shaded ground, and the same with a red rectangle."""
    shade = np.linspace(150, 215, HEIGHT, dtype=np.float32)[:, None, None]
    source = np.repeat(np.repeat(shade, WIDTH, 1), 3, 2).astype(np.uint8)
    cv2.circle(source, (150, 130), 70, (40, 90, 190), -1)
    cv2.rectangle(source, (330, 60), (430, 170), (60, 150, 70), -1)
    cv2.ellipse(source, (190, 330), (110, 50), 0, 0, 360, (230, 200, 60), -1)
    target = source.copy()
    x1, y1, x2, y2 = BOX
    cv2.rectangle(target, (x1, y1), (x2 - 1, y2 - 1), (210, 30, 30), -1)
    return source, target


def canary_box() -> tuple[float, float, float, float]:
    """Where the rectangle is, in shares of width and height."""
    x1, y1, x2, y2 = BOX
    return x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT


def overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (areas[0] + areas[1] - shared) if shared else 0.0


def canary_wanted() -> bool:
    """KIWI_VLM_CANARY=off leaves the canary out; unset or "on", it is shown."""
    said = os.environ.get(SWITCH, "on").strip().lower()
    if said not in ("on", "off"):
        raise UsageError(f"{SWITCH}={said!r} is neither on nor off", f"export {SWITCH}=on or {SWITCH}=off")
    return said == "on"
