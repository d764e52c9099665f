"""The classical segmenter: GrabCut in the box, started from the change map; the change map itself as fallback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from kiwi.curation.curators.classical_change import (
    ChangeMap,
    change_map,
    changed_region,
    fill_holes,
    kept_foreground,
    resize_mask,
)
from kiwi.curation.curators.one_by_one import one_by_one
from kiwi.curation.curators.protocols import Box, Image, Mask, RegionKind, Segmentation, SegmentRequest
from kiwi.dataset.schema import Reason

SPECK = 0.03
CUT_PIXELS = 40_000  # GrabCut's time grows with pixels: 0.6 s on a 720p frame, about 50 ms here


@dataclass(frozen=True)
class ClassicalSegmenter:
    """GrabCut from the box. A cut that has little in common with the measured change is not believed."""

    agreement: float = 0.45
    name: str = "classical"
    version: str = "2"
    measures: tuple[str, ...] = ("area", "agreement", "grabcut")

    def segment(self, requests: Iterable[SegmentRequest]) -> Iterator[Segmentation]:
        """See protocols."""
        return one_by_one(self._segment, Segmentation, requests)

    def _segment(self, request: SegmentRequest) -> Segmentation:
        return self.segment_pair(request.source, request.target, request.box, request.kind)

    def segment_pair(self, source: Image, target: Image, box: Box, kind: RegionKind) -> Segmentation:
        """The mask at the target's size. MASK_DEGENERATE where it is empty or the whole frame."""
        change = change_map(source, target)
        coarse_small = changed_region(change) if kind == "object" else kept_foreground(change)
        height, width = target.shape[:2]
        coarse = resize_mask(coarse_small, height, width)
        window = _window(box, height, width)
        certain = coarse & _certain(change, coarse_small, kind, height, width)
        cut = _cut(target[window], coarse[window], certain[window])
        inside = coarse[window]
        overlap = float((cut & inside).sum()) / max(float((cut | inside).sum()), 1.0)
        believed = overlap >= self.agreement
        mask = np.zeros((height, width), bool)
        if kind == "foreground":  # what is painted over had better be too large than too small
            mask[window] = cut | inside if believed else inside
        else:
            mask[window] = without_specks(cut) if believed else inside
        area = float(mask.mean())
        measures = {"area": area, "agreement": overlap, "grabcut": float(believed)}
        if mask.sum() < 16 or area > 0.95:
            return Segmentation(measures, Reason.MASK_DEGENERATE, f"the mask covers {area:.4f} of the frame")
        return Segmentation(measures, None, "", mask)


def _window(box: Box, height: int, width: int) -> tuple[slice, slice]:
    """The box with a margin of a tenth of its sides (3 pixels at least), within the frame."""
    x1, y1, x2, y2 = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    across, down = max(3.0, 0.1 * (x2 - x1)), max(3.0, 0.1 * (y2 - y1))
    left, top = max(0, int(x1 - across)), max(0, int(y1 - down))
    return slice(top, min(height, int(np.ceil(y2 + down)))), slice(left, min(width, int(np.ceil(x2 + across))))


def without_specks(mask: Mask) -> Mask:
    """The mask without parts of less than SPECK of its largest: a pixel far off would widen the reference's crop."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    return np.asarray((areas >= SPECK * areas.max())[labels] & mask, bool)


def _certain(change: ChangeMap, coarse: Mask, kind: RegionKind, height: int, width: int) -> Mask:
    """What no outline may leave out: the inner part of an edited object, where the change is above its median."""
    if kind == "foreground" or not coarse.any():
        return np.zeros((height, width), bool)
    strong = coarse & (change.delta > np.median(change.delta[coarse]))
    inner = cv2.erode(strong.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return resize_mask(np.asarray(inner, bool), height, width)


def _cut(image: Image, coarse: Mask, certain: Mask) -> Mask:
    """GrabCut of `coarse` within `image`, at no more than CUT_PIXELS; `certain` belongs to it in any case."""
    height, width = coarse.shape
    scale = min(1.0, (CUT_PIXELS / (height * width)) ** 0.5)
    small = (max(4, round(width * scale)), max(4, round(height * scale)))
    picture = image if scale == 1.0 else cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    guess = resize_mask(coarse, picture.shape[0], picture.shape[1])
    labels = np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    reach = max(3, int(0.04 * max(picture.shape[:2])) // 2 * 2 + 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    far = cv2.dilate(guess.astype(np.uint8), kernel) == 0
    labels[far] = cv2.GC_BGD
    labels[resize_mask(certain, picture.shape[0], picture.shape[1])] = cv2.GC_FGD
    if not far.any():
        return coarse
    if not guess.any():
        return coarse
    cv2.setRNGSeed(0)  # GrabCut seeds its colour models at random
    models = np.zeros((1, 65)), np.zeros((1, 65))
    turns = 1 if picture.shape[0] * picture.shape[1] < 10_000 else 3
    cv2.grabCut(np.ascontiguousarray(picture), labels, None, models[0], models[1], turns, cv2.GC_INIT_WITH_MASK)
    cut = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    clean = cv2.morphologyEx(cut.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
    return fill_holes(resize_mask(np.asarray(clean if clean.any() else cut, bool), height, width))
