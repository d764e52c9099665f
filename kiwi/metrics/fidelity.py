"""PSNR and SSIM between two clips, over the frame or within a region: preservation, and closeness to ground truth."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from kiwi.benchmark.pixels import decibels
from kiwi.metrics.frames import luma, mean_of, over_frames
from kiwi.metrics.results import Failure, Frames, Mask, Measured, MetricError, check_alike, check_region

WINDOW, SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_MIDDLE = 128.0  # taken off before squaring, so that float32 keeps the variance of bright, flat windows


def psnr(name: str, edit: Frames, other: Frames, called: str, region: Mask | None = None) -> Measured:
    """PSNR in dB, higher is better: 10 log10(255² / mse), the mse over the three channels and all pixels of all frames.

    Identical pixels give 60 dB, and no value is higher. `per_frame` holds each frame's own. ITU-T J.340 (2010) and
    Huynh-Thu and Ghanbari (2008) describe its use and its limits.

    Args:
        called: what errors call the other clip. region: bool [T, H, W], where to look; everywhere if None.

    Raises:
        MetricError: LENGTH, SIZE, EMPTY_REGION.
    """
    check_alike(edit, other, called)
    if region is not None:
        check_region(edit, region)
    errors = over_frames(lambda index: _squared_error(edit[index], other[index], _of(region, index)), len(edit))
    pixels = sum(count for _, count in errors)
    if not pixels:
        raise MetricError(Failure.EMPTY_REGION, "the region to measure holds no pixel")
    frames = tuple(decibels(total / (3 * count)) if count else None for total, count in errors)
    return Measured(name, decibels(sum(total for total, _ in errors) / (3 * pixels)), "dB", "higher", frames)


def ssim(name: str, edit: Frames, other: Frames, called: str, region: Mask | None = None) -> Measured:
    """SSIM, -1 to 1, higher is better: the mean over frames of the mean SSIM of their luma.

    Wang, Bovik, Sheikh and Simoncelli (2004): Gaussian windows of 11 by 11 with σ 1.5, K1 0.01, K2 0.03, only windows
    that lie wholly in the frame, no downsampling. In a `region` only windows that lie wholly in it count, so that the
    edit does not leak into what is measured around it.

    Raises:
        MetricError: LENGTH, SIZE, EMPTY_REGION (no whole window in it), TOO_SMALL (frames smaller than a window).
    """
    check_alike(edit, other, called)
    if region is not None:
        check_region(edit, region)
    if min(edit.shape[1:3]) < WINDOW:
        said = f"frames of {edit.shape[2]}x{edit.shape[1]} are smaller than SSIM's window of {WINDOW}x{WINDOW}"
        raise MetricError(Failure.TOO_SMALL, said)

    def one(index: int) -> float | None:
        return _mean_ssim(luma(edit[index]), luma(other[index]), _of(region, index))

    frames = tuple(over_frames(one, len(edit)))
    value = mean_of(frames)
    if value is None:
        said = f"the region to measure holds no whole window of {WINDOW}x{WINDOW} pixels"
        raise MetricError(Failure.EMPTY_REGION, said)
    return Measured(name, value, "-1 to 1", "higher", frames)


def ssim_map(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """SSIM of each window that lies wholly in the frame: [H, W] twice -> [H - 10, W - 10]."""
    one, other = first.astype(np.float32) - _MIDDLE, second.astype(np.float32) - _MIDDLE
    mean_one, mean_other = _windowed(one), _windowed(other)
    products = mean_one * mean_other
    squares = mean_one * mean_one + mean_other * mean_other
    covariance = _windowed(one * other) - products
    variances = _windowed(one * one + other * other) - squares
    # Means come back to levels of 0-255; what lies under the squares does not change by a shift.
    shift = _MIDDLE * (mean_one + mean_other) + _MIDDLE**2
    numerator = (2 * (products + shift) + _C1) * (2 * covariance + _C2)
    denominator = (squares + 2 * shift + _C1) * (variances + _C2)
    return np.asarray(numerator / denominator, np.float32)


def _windowed(values: NDArray[np.float32]) -> NDArray[np.float32]:
    edge = WINDOW // 2
    blurred = cv2.GaussianBlur(values, (WINDOW, WINDOW), SIGMA)
    return np.asarray(blurred, np.float32)[edge:-edge, edge:-edge]


def _mean_ssim(first: NDArray[np.uint8], second: NDArray[np.uint8], region: NDArray[np.bool_] | None) -> float | None:
    if region is None:
        return float(ssim_map(first, second).mean(dtype=np.float64))
    edge = WINDOW // 2
    whole = cv2.erode(region.astype(np.uint8), np.ones((WINDOW, WINDOW), np.uint8))[edge:-edge, edge:-edge] > 0
    if not whole.any():
        return None
    return float(ssim_map(first, second)[whole].mean(dtype=np.float64))


def _squared_error(
    first: NDArray[np.uint8], second: NDArray[np.uint8], region: NDArray[np.bool_] | None
) -> tuple[float, int]:
    """The sum of squared differences over three channels, in squared levels, and the pixels that it is over."""
    if region is None:
        return float(cv2.norm(first, second, cv2.NORM_L2SQR)), first.shape[0] * first.shape[1]
    inside = np.ascontiguousarray(region).view(np.uint8)
    return float(cv2.norm(first, second, cv2.NORM_L2SQR, inside)), int(np.count_nonzero(inside))


def _of(region: Mask | None, index: int) -> NDArray[np.bool_] | None:
    return None if region is None else region[index]
