"""The squared error between clips, over the frame or a region, and its PSNR."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kiwi.benchmark.rubric import FailedMeasurement, Frames, Mask, MeasurementError

HIGHEST_PSNR = 60.0


def channel_mean(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean over the last axis of three, [T, H, W, 3] -> [T, H, W]; NumPy's reduction over so short an axis is slow."""
    import cv2

    flat = values.reshape(-1, values.shape[-2], 3)
    return np.asarray(cv2.transform(flat, np.full((1, 3), 1 / 3, np.float32))).reshape(values.shape[:-1])


def squared_error(first: Frames, second: Frames) -> npt.NDArray[np.float32]:
    """Mean squared difference over the three channels, [T, H, W], in squared levels of 0-255."""
    difference = first.astype(np.float32)
    difference -= second
    difference *= difference
    return channel_mean(difference)


def mean_inside(error: npt.NDArray[np.float32], mask: Mask | None = None) -> float:
    """Mean of an error map, over `mask` if given. Raises MeasurementError(EMPTY_REGION) for a mask without pixels."""
    inside = error if mask is None else error[mask]
    if inside.size == 0:
        raise MeasurementError(FailedMeasurement.EMPTY_REGION, "the region to measure holds no pixel")
    return float(inside.mean(dtype=np.float64))


def decibels(mean_squared_error: float) -> float:
    """PSNR in dB of a mean squared error in squared levels: 10 log10(255^2 / mse), at most 60."""
    if mean_squared_error <= 0:
        return HIGHEST_PSNR
    return min(HIGHEST_PSNR, float(10 * np.log10(255.0**2 / mean_squared_error)))


def psnr(edit: Frames, truth: Frames, mask: Mask | None = None) -> float:
    """PSNR in dB over all pixels of all frames, or over those of `mask`; higher is better, identical gives 60."""
    return decibels(mean_inside(squared_error(edit, truth), mask))
