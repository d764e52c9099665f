"""The classical synthesizer: references made of the target's own pixels, and labelled as such.

A subject is cut out onto white ("crop_classical"). A background has its foreground painted over by Telea's method
("inpaint_classical"), which smears; it is no equal of a generative model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from kiwi.curation.curators.classical_change import analysis_frame, box_of, resize_mask
from kiwi.curation.curators.one_by_one import one_by_one
from kiwi.curation.curators.protocols import Image, Mask, RegionKind, Synthesis, SynthesizeRequest
from kiwi.dataset.schema import Reason

LARGEST_HOLE = 0.75


@dataclass(frozen=True)
class ClassicalSynthesizer:
    """Crops and inpaints. Extreme shapes and sizes are refused before any work.

    Attributes:
        max_aspect: longest side over shortest.
        min_side, max_side: pixels a side that a reference may have.
    """

    max_aspect: float
    min_side: int
    max_side: int
    name: str = "classical"
    version: str = "1"
    measures: tuple[str, ...] = ("aspect", "width", "height")

    def synthesize(self, requests: Iterable[SynthesizeRequest]) -> Iterator[Synthesis]:
        """See protocols."""
        return one_by_one(self._synthesize, Synthesis, requests)

    def _synthesize(self, request: SynthesizeRequest) -> Synthesis:
        return self.synthesize_frame(request.target, request.mask, request.kind)

    def synthesize_frame(self, target: Image, mask: Mask, kind: RegionKind) -> Synthesis:
        height, width = target.shape[:2]
        box = box_of(mask) if kind == "object" else (0, 0, width, height)
        across, down = box[2] - box[0], box[3] - box[1]
        aspect = max(across, down) / min(across, down)
        measures = {"aspect": aspect, "width": float(across), "height": float(down)}
        if aspect > self.max_aspect:
            detail = f"{across}x{down} pixels, aspect {aspect:.1f}, at most {self.max_aspect}"
            return Synthesis(measures, Reason.EXTREME_ASPECT, detail)
        if min(across, down) < self.min_side or max(across, down) > self.max_side:
            detail = f"{across}x{down} pixels, sides from {self.min_side} to {self.max_side}"
            return Synthesis(measures, Reason.EXTREME_RESOLUTION, detail)
        if kind == "object":
            return Synthesis(measures, None, "", cut_out(target, mask), "crop_classical")
        if float(mask.mean()) > LARGEST_HOLE:
            detail = f"the foreground hides {float(mask.mean()):.2f} of the background"
            return Synthesis(measures, Reason.REFERENCE_DEGENERATE, detail)
        return Synthesis(measures, None, "", clean_background(target, mask), "inpaint_classical")


def cut_out(image: Image, mask: Mask) -> Image:
    """The masked pixels on white, cropped with a margin of a twentieth of the longer side (1 pixel at least)."""
    x1, y1, x2, y2 = box_of(mask)
    margin = max(1, round(0.05 * max(x2 - x1, y2 - y1)))
    crop, inside = image[y1:y2, x1:x2], mask[y1:y2, x1:x2].astype(np.float32)
    if min(x2 - x1, y2 - y1) >= 64:  # soften the outline of large cuts; small ones would lose their colour
        inside = np.asarray(cv2.GaussianBlur(cv2.erode(inside, np.ones((3, 3), np.uint8)), (0, 0), 1.0), np.float32)
    alpha = inside[..., None]
    mixed = np.rint(alpha * crop + (1.0 - alpha) * 255.0).astype(np.uint8)
    return np.pad(mixed, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)


def clean_background(image: Image, mask: Mask) -> Image:
    """`image` with the masked foreground painted over from its surroundings.

    The paint is computed at analysis size (Telea's method is smooth anyway) and laid only over the hole.
    """
    height, width = mask.shape
    small = analysis_frame(image)
    scale = small.shape[0] / height
    grow = max(2, round(0.012 * max(height, width)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grow + 1, 2 * grow + 1))
    hole = np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0, bool)
    small_hole = hole if scale == 1.0 else resize_mask(hole, small.shape[0], small.shape[1])
    small_hole = np.asarray(cv2.dilate(small_hole.astype(np.uint8), np.ones((3, 3), np.uint8)), np.uint8)
    paint = cv2.inpaint(small, small_hole, 3.0, cv2.INPAINT_TELEA)
    if scale < 1.0:
        paint = cv2.resize(paint, (width, height), interpolation=cv2.INTER_CUBIC)
        alpha = cv2.GaussianBlur(hole.astype(np.float32), (0, 0), 1.5)[..., None]
        return np.asarray(np.rint(alpha * paint + (1.0 - alpha) * image), np.uint8)
    return np.where(hole[..., None], paint, image).astype(np.uint8)
