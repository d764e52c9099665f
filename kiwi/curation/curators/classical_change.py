"""Where and how two frames differ: registration, a map of colour change, a map of kept structure, and their kind.

Colour change alone cannot tell a new background from a new style: both change most of the frame. Local structure
can: a style keeps the drawing under other colours, a new background keeps neither, and its foreground keeps both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from kiwi.curation.curators.protocols import Image, Mask

Plane = NDArray[np.float32]
ChangeKind = Literal["none", "local", "background", "global"]

ANALYSIS_PIXELS = 65_536
VISIBLE = 8.0  # Lab distance that nobody overlooks, after blurring; re-encoding noise stays below 4
COPIED = 4.0  # under this, pixels count as copied, whatever their surroundings do
FLAT = 2.0  # texture under which a patch has no drawing that could have been kept
STRUCTURE_FLOOR = 2.0  # variance of lightness (0-100) under which a patch counts as flat
SMALL_FRAME = 128 * 128

cv2.setNumThreads(1)


@dataclass(frozen=True)
class ChangeMap:
    """Maps at analysis size [h,w], in the target's coordinates.

    Attributes:
        delta: blurred Lab distance between registered source and target.
        structure: correlation of lightness in a small window, -1 to 1; flat on both sides counts as 1.
        texture: standard deviation of lightness in that window, the larger of both sides.
    """

    delta: Plane
    structure: Plane
    texture: Plane

    @property
    def median(self) -> float:
        return float(np.median(self.delta))

    @property
    def threshold(self) -> float:
        """Median + 6 MAD of the change, and no less than is visible above the median."""
        median = np.median(self.delta)
        spread = np.median(np.abs(self.delta - median))
        return float(max(median + 6.0 * spread, median + VISIBLE / 2, VISIBLE))


def analysis_frame(frame: Image) -> Image:
    """The frame at no more than ANALYSIS_PIXELS, aspect kept."""
    height, width = frame.shape[:2]
    scale = (ANALYSIS_PIXELS / (height * width)) ** 0.5
    if scale >= 1.0:
        return frame
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def lab(frame: Image) -> Plane:
    """CIE Lab float32 [H,W,3], L 0-100."""
    return np.asarray(cv2.cvtColor(frame.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB), np.float32)


def change_map(source: Image, target: Image, *, registered: bool = True) -> ChangeMap:
    """Compares two frames uint8 [H,W,3] of one size. `registered=False` skips looking for drift and zoom."""
    small_source, small_target = analysis_frame(source), analysis_frame(target)
    change = _compare(lab(small_source), lab(small_target))
    if registered and change.median > 1.0:
        warp = _registration(small_source, small_target)
        if warp is not None:
            size = (small_source.shape[1], small_source.shape[0])
            moved = cv2.warpAffine(small_source, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            better = _compare(lab(np.asarray(moved, np.uint8)), lab(small_target))
            if _fits_better(better, change):
                return better
    return change


def kind_of_change(change: ChangeMap) -> ChangeKind:
    """none: nothing visible; local: most of the frame is quiet; background: a part kept its colours and its drawing
    and the rest kept neither; global: everything changed, or the drawing stayed under other colours."""
    visible = change.delta > VISIBLE
    share = float(visible.mean())
    if share < 0.0005:
        return "none"
    if share < 0.5:
        return "local"
    if kept_structure(change, visible) > 0.7:
        return "global"
    kept = kept_foreground(change)
    return "background" if kept.mean() >= 0.01 else "global"


def kept_structure(change: ChangeMap, where: Mask) -> float:
    """Mean of |structure| over `where`, weighted by texture: 1 where the same drawing lies under other colours.

    Windows that look into the unchanged part would see its outline on both sides; they count only if no others do.
    """
    reach = _odd(max(7.0, 0.03 * (where.size**0.5)))
    inner = cv2.erode(where.astype(np.uint8), np.ones((reach, reach), np.uint8), borderValue=1) > 0
    weight = change.texture * (inner if inner.mean() > 0.05 else where)
    total = float(weight.sum())
    return float((np.abs(change.structure) * weight).sum() / total) if total > 1e-3 else 1.0


def edge_agreement(source: Image, target: Image) -> float:
    """Correlation of where both frames uint8 [H,W,3] have edges, in any of L, a and b; their signs do not matter.

    It sees the kept drawing under colours that swap light and dark region by region, as an inversion does: 0.79 and
    more on inverted clips, at most 0.26 between the unrelated ones of 306 pairings of real clips.
    """
    one, other = _edges(source), _edges(target)
    one, other = one - one.mean(), other - other.mean()
    length = float(np.sqrt(np.square(one).sum() * np.square(other).sum()))
    return float((one * other).sum()) / length if length > 1e-3 else 0.0


def changed_region(change: ChangeMap) -> Mask:
    """Where a local edit is: above median + 6 MAD (Otsu's split where most of the frame changed), largest parts."""
    threshold = change.threshold
    if float((change.delta > VISIBLE).mean()) > 0.5:
        threshold = max(_otsu(change.delta), VISIBLE)
    return largest_parts(change.delta > threshold, change.delta)


def kept_foreground(change: ChangeMap) -> Mask:
    """What a background change left alone: little change of colour, same structure, largest parts, holes filled.

    A flat patch keeps no drawing; it must keep its colour, or a pale wall would pass for the pale sky that took its
    place.
    """
    limit = min(max(_otsu(change.delta), VISIBLE), 22.0)
    same = (change.structure > 0.5) & ((change.texture >= FLAT) | (change.delta < VISIBLE))
    kept = (change.delta < limit) & (same | (change.delta < COPIED))
    return largest_parts(kept, limit - change.delta)


def largest_parts(mask: Mask, weight: Plane, share: float = 0.2) -> Mask:
    """The heaviest connected part and every other of at least `share` of its weight, holes filled."""
    size = _odd(0.012 * (mask.size**0.5))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    clean = mask.astype(np.uint8)
    if size > 1:
        clean = np.asarray(cv2.morphologyEx(clean, cv2.MORPH_OPEN, kernel), np.uint8)
        clean = np.asarray(cv2.morphologyEx(clean, cv2.MORPH_CLOSE, kernel), np.uint8)
    count, labels = cv2.connectedComponents(clean, connectivity=8)
    if count <= 1:
        return np.zeros(mask.shape, bool)
    masses = np.bincount(labels.ravel(), weights=np.maximum(weight, 0.0).ravel() + 1e-3, minlength=count)
    masses[0] = 0.0
    chosen = np.asarray(masses >= share * masses.max())[labels] & (labels > 0)
    return fill_holes(chosen)


def fill_holes(mask: Mask, most: float = 0.02) -> Mask:
    """Fills enclosed holes of up to `most` of the frame; larger ones are taken as real."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    if count <= 2:
        return mask
    height, width = mask.shape
    left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
    inside = (left > 0) & (top > 0) & (right < width) & (bottom < height)
    holes = inside & (stats[:, cv2.CC_STAT_AREA] <= most * mask.size)
    holes[0] = False
    return np.asarray(mask | holes[labels], bool)


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) in pixels, x2 and y2 exclusive. The mask must not be empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def resize_mask(mask: Mask, height: int, width: int) -> Mask:
    """A mask at another size, with smooth outlines when enlarged."""
    if mask.shape == (height, width):
        return mask
    soft = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(soft > 0.5, bool)


def _compare(source: Plane, target: Plane) -> ChangeMap:
    scale = (source.shape[0] * source.shape[1]) ** 0.5 / 256.0
    blur, window = max(0.7, 1.5 * scale), max(2.5, 4.0 * scale)
    difference = cv2.GaussianBlur(source - target, (0, 0), blur)
    delta = np.sqrt(np.einsum("hwc,hwc->hw", difference, difference), dtype=np.float32)
    one, other = source[..., 0], target[..., 0]
    planes = np.dstack([one, other, one * one, other * other, one * other])
    mean = np.asarray(cv2.GaussianBlur(planes, (0, 0), window), np.float32)
    variance_one = np.maximum(mean[..., 2] - mean[..., 0] ** 2, 0.0)
    variance_other = np.maximum(mean[..., 3] - mean[..., 1] ** 2, 0.0)
    covariance = mean[..., 4] - mean[..., 0] * mean[..., 1]
    floor = np.float32(STRUCTURE_FLOOR)
    structure = (covariance + floor) / np.sqrt((variance_one + floor) * (variance_other + floor))
    texture = np.sqrt(np.maximum(variance_one, variance_other))
    return ChangeMap(delta, np.asarray(structure, np.float32), np.asarray(texture, np.float32))


def _edges(frame: Image) -> Plane:
    """Logarithm of the edge strength in Lab at analysis size."""
    picture = lab(analysis_frame(frame))
    blur = max(0.7, (picture.shape[0] * picture.shape[1]) ** 0.5 / 256.0)
    picture = cv2.GaussianBlur(picture, (0, 0), blur)
    across, down = cv2.Sobel(picture, cv2.CV_32F, 1, 0), cv2.Sobel(picture, cv2.CV_32F, 0, 1)
    strength = np.sqrt(np.square(across).sum(2) + np.square(down).sum(2))
    return np.asarray(np.log1p(strength / 8.0), np.float32)


def _registration(source: Image, target: Image) -> NDArray[np.float64] | None:
    """The small similarity that carries source onto target, or None: ORB matches, or phase correlation when small."""
    height, width = source.shape[:2]
    grey_source = cv2.cvtColor(source, cv2.COLOR_RGB2GRAY)
    grey_target = cv2.cvtColor(target, cv2.COLOR_RGB2GRAY)
    if height * width <= SMALL_FRAME:
        window = cv2.createHanningWindow((width, height), cv2.CV_32F)
        (dx, dy), response = cv2.phaseCorrelate(grey_source.astype(np.float32), grey_target.astype(np.float32), window)
        if response < 0.3 or not 0.2 < (dx * dx + dy * dy) ** 0.5 < 0.08 * max(height, width):
            return None
        return np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])
    orb = cv2.ORB.create(nfeatures=600, fastThreshold=10)
    points_source, words_source = orb.detectAndCompute(grey_source, None)
    points_target, words_target = orb.detectAndCompute(grey_target, None)
    if words_source is None or words_target is None or min(len(points_source), len(points_target)) < 12:
        return None
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(words_source, words_target)
    if len(matches) < 12:
        return None
    here = np.array([points_source[match.queryIdx].pt for match in matches], np.float32)
    there = np.array([points_target[match.trainIdx].pt for match in matches], np.float32)
    cv2.setRNGSeed(0)
    warp, inliers = cv2.estimateAffinePartial2D(here, there, method=cv2.RANSAC, ransacReprojThreshold=1.5)
    if warp is None or int(inliers.sum()) < 12 or float(inliers.mean()) < 0.2:
        return None
    zoom = float(np.hypot(warp[0, 0], warp[1, 0]))
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], np.float64)
    travel = float(np.abs(corners @ warp.T - corners[:, :2]).max())
    if not 0.85 < zoom < 1.18 or not 0.3 < travel < 0.12 * max(height, width):
        return None
    return np.asarray(warp, np.float64)


def _fits_better(moved: ChangeMap, still: ChangeMap) -> bool:
    """Whether structure agrees better, or the unchanged part does in colour with no loss of structure."""
    structures = [float(np.average(np.abs(one.structure), weights=one.texture + 1e-3)) for one in (moved, still)]
    quiet = [float(np.minimum(one.delta, 2 * VISIBLE).mean()) for one in (moved, still)]
    gain = structures[0] - structures[1]
    return gain > 0.03 or (gain > 0.0 and quiet[0] < 0.9 * quiet[1])


def _otsu(delta: Plane) -> float:
    """Otsu's split of the change, in Lab units."""
    levels = np.clip(delta * 2.5, 0, 255).astype(np.uint8)
    return float(cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0]) / 2.5


def _odd(size: float) -> int:
    return int(size) // 2 * 2 + 1
