"""Frames one by one: their luma, and work on all of them in a few threads without a copy of the clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from kiwi.metrics.results import Image

THREADS = 2
Found = TypeVar("Found")


def luma(frame: Image) -> NDArray[np.uint8]:
    """BT.601 luma (0.299 R + 0.587 G + 0.114 B), rounded: uint8 [H, W]."""
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def over_frames(measure: Callable[[int], Found], count: int, threads: int = THREADS) -> list[Found]:
    """`measure` of each index below `count`, in order; OpenCV and NumPy let go of the interpreter while they work."""
    if threads == 1 or count < 2:
        return [measure(index) for index in range(count)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(measure, range(count)))


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of what was measured; None where nothing was."""
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None
