"""Fits clips to what the editor can see, and its results back: sizes, lengths, and windows that blend."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]


def causal_length(frames: int, stride: int = 4) -> int:
    """The shortest length stride·k + 1 that holds `frames` frames."""
    return 1 + stride * math.ceil(max(0, frames - 1) / stride)


def padded(clip: Frames, length: int) -> Frames:
    """Repeats the last frame up to `length`. [T, H, W, 3] -> [length, H, W, 3]."""
    missing = length - len(clip)
    return clip if missing <= 0 else np.concatenate([clip, np.repeat(clip[-1:], missing, axis=0)])


def windows(frames: int, length: int, overlap: int) -> list[int]:
    """First frames of windows of `length` that cover `frames`, each sharing at least `overlap` with the one before."""
    if frames <= length:
        return [0]
    count = math.ceil((frames - overlap) / (length - overlap))
    return [round(index * (frames - length) / (count - 1)) for index in range(count)]


def blend(parts: list[tuple[int, npt.NDArray[np.float32]]], frames: int) -> npt.NDArray[np.float32]:
    """Joins overlapping windows with weights that rise and fall linearly, so that no seam shows.

    Args:
        parts: (first frame, [L, H, W, 3]) of each window.
    """
    shape = parts[0][1].shape[1:]
    total = np.zeros((frames, *shape), np.float32)
    weight = np.zeros((frames, 1, 1, 1), np.float32)
    for start, part in parts:
        length = min(len(part), frames - start)
        ramp = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float32)[:, None, None, None]
        total[start : start + length] += part[:length] * ramp
        weight[start : start + length] += ramp
    return (total / weight).astype(np.float32)
