"""The classical verifier: does the reference show what the target shows, and is there anything on it?

A reference that was made here comes with the mask it was made by, and is held against the very pixels; one that came
with the pair shows the subject in another pose or crop, so only its colours are compared, and more loosely.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from kiwi.curation.curators.classical_change import (
    VISIBLE,
    ChangeMap,
    Plane,
    analysis_frame,
    box_of,
    change_map,
    changed_region,
    kept_foreground,
    lab,
    resize_mask,
)
from kiwi.curation.curators.one_by_one import one_by_one
from kiwi.curation.curators.protocols import Image, Mask, RegionKind, Verification, VerifyRequest
from kiwi.dataset.schema import Reason

PAPER = 6.0  # Lab distance from white under which a pixel belongs to the plain ground
LOOSENESS = 0.5  # a given subject, in a pose and light of its own, passes at this share of the threshold
GRID = 16
BINS = (6, 8, 8)


@dataclass(frozen=True)
class ClassicalVerifier:
    """consistency = colour agreement (overlap of Lab histograms) x novelty x, for references made here, cleanness.

    colour: overlap of the reference's colours with those of the target's edited region (or its background).
    novelty: below 1 as far as the reference agrees better with what the source had there than with the target.
    cleanness: share of a crop's pixels that the edit did change; or how little of the foreground shines through paint.
    layout: for a background, correlation of its coarse picture with the target's around the foreground; the half of
        the agreement hangs on it, since colours alone take one forest for another.
    """

    min_consistency: float
    name: str = "classical"
    version: str = "2"
    measures: tuple[str, ...] = ("colour", "novelty", "cleanness", "layout", "content")

    def verify(self, requests: Iterable[VerifyRequest]) -> Iterator[Verification]:
        """See protocols."""
        return one_by_one(self._verify, Verification, requests)

    def _verify(self, request: VerifyRequest) -> Verification:
        return self.verify_reference(request.reference, request.source, request.target, request.mask, request.kind)

    def verify_reference(
        self, reference: Image, source: Image, target: Image, mask: Mask | None, kind: RegionKind
    ) -> Verification:
        """One reference. REFERENCE_DEGENERATE for an empty one, REFERENCE_INCONSISTENT below the threshold."""
        change = change_map(source, target, registered=False)
        small_source, small_target = lab(analysis_frame(source)), lab(analysis_frame(target))
        shown = lab(analysis_frame(reference))
        subject = _subject(shown) if kind == "object" else np.ones(shown.shape[:2], bool)
        content = float(subject.mean())
        if subject.sum() < 16:
            return Verification({"content": content}, Reason.REFERENCE_DEGENERATE, "the reference shows nothing", 0.0)
        place = _place(change, mask, kind)
        colours = _histogram(shown, subject)
        agreement = _overlap(colours, _histogram(small_target, place))
        before = _overlap(colours, _histogram(small_source, place))
        novelty = float(np.clip(1.0 - (before - agreement), 0.0, 1.0))
        cleanness = 1.0 if mask is None else _cleanness(change, mask, kind, shown, small_target)
        layout = 1.0 if kind == "object" else _layout(shown, small_target, place)
        consistency = agreement * novelty * cleanness * (0.5 + 0.5 * layout)
        measures = {
            "colour": agreement, "novelty": novelty, "cleanness": cleanness, "layout": layout, "content": content
        }  # fmt: skip
        needed = self.min_consistency * (LOOSENESS if mask is None and kind == "object" else 1.0)
        if consistency < needed:
            detail = f"consistency {consistency:.2f}, needed {needed:.2f}"
            return Verification(measures, Reason.REFERENCE_INCONSISTENT, detail, consistency)
        return Verification(measures, None, "", consistency)


def _place(change: ChangeMap, mask: Mask | None, kind: RegionKind) -> Mask:
    """Where in the target to look, at analysis size: the object, or all that is not foreground."""
    if mask is not None:
        small = resize_mask(mask, *change.delta.shape)
        found = small if kind == "object" else ~small
    else:
        found = changed_region(change) if kind == "object" else ~kept_foreground(change)
    return found if found.any() else np.ones(change.delta.shape, bool)


def _cleanness(change: ChangeMap, mask: Mask, kind: RegionKind, shown: Plane, target: Plane) -> float:
    small = resize_mask(mask, *change.delta.shape)
    if not small.any():
        return 0.0
    if kind == "object":
        return float(np.clip((change.delta[small] > 0.5 * VISIBLE).mean() * 1.25, 0.0, 1.0))
    if shown.shape != target.shape:
        return 1.0
    core = cv2.erode(small.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    core = core if core.any() else small
    left = np.linalg.norm(shown[core] - target[core], axis=1) < 0.5 * VISIBLE
    return float(1.0 - 0.8 * left.mean())


def _layout(shown: Plane, target: Plane, place: Mask) -> float:
    """Correlation, 0-1, of both pictures at GRID x GRID in Lab, weighted by how much of a cell lies in `place`.

    Pictures without a layout, plain ones, have 1.
    """
    one = np.asarray(cv2.resize(shown, (GRID, GRID), interpolation=cv2.INTER_AREA), np.float64)
    other = np.asarray(cv2.resize(target, (GRID, GRID), interpolation=cv2.INTER_AREA), np.float64)
    weight = cv2.resize(place.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)[..., None]
    weight = np.where(weight > 0.9, weight, 0.0) if (weight > 0.9).sum() >= 8 else weight
    weight = weight / max(float(weight.sum()), 1e-6)
    one, other = one - (one * weight).sum((0, 1)), other - (other * weight).sum((0, 1))
    spread_one, spread_other = float((one * one * weight).sum()), float((other * other * weight).sum())
    if max(spread_one, spread_other) < PAPER**2:
        return 1.0
    return float(np.clip((one * other * weight).sum() / max((spread_one * spread_other) ** 0.5, 1.0), 0.0, 1.0))


def _subject(shown: Plane) -> Mask:
    """A reference's pixels off its plain ground, whatever plain colour its border has; all if there is none."""
    border = np.concatenate([shown[0], shown[-1], shown[:, 0], shown[:, -1]])
    ground = np.median(border, axis=0)
    plain = float((np.linalg.norm(border - ground, axis=1) < PAPER).mean())
    if plain < 0.7:
        return np.ones(shown.shape[:2], bool)
    subject = np.linalg.norm(shown - ground, axis=2) > PAPER
    if subject.sum() < 16:
        return np.asarray(subject, bool)
    x1, y1, x2, y2 = box_of(np.asarray(subject, bool))
    return np.asarray(subject, bool) if (x2 - x1) * (y2 - y1) >= 16 else np.zeros(shown.shape[:2], bool)


def _histogram(picture: Plane, where: Mask) -> NDArray[np.float32]:
    """A smoothed, normalised Lab histogram of the pixels in `where`; light counts in coarser steps than colour."""
    pixels = picture[where]
    planes = [np.ascontiguousarray(pixels[:, index]).reshape(1, -1) for index in range(3)]
    ranges = [0, 100.01, -100, 100, -100, 100]
    counts = cv2.calcHist(planes, [0, 1, 2], None, list(BINS), ranges).astype(np.float32)
    for axis in range(3):  # each count spills over to its neighbours, so that a shift of half a bin costs little
        moved = np.zeros_like(counts)
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        moved[tuple(ahead)] += counts[tuple(behind)]
        moved[tuple(behind)] += counts[tuple(ahead)]
        counts = counts + 0.5 * moved
    return np.asarray(counts / max(float(counts.sum()), 1e-6), np.float32)


def _overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.minimum(one, other).sum())
