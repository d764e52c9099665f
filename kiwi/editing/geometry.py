"""Fits clips to what the editor can see, and its results back: sizes, lengths, and windows that blend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Edited = npt.NDArray[np.float32]  # frames as the model gives them, 0-255 and not yet rounded


def causal_length(frames: int, stride: int = 4) -> int:
    """The shortest length stride·k + 1 that holds `frames` frames."""
    return 1 + stride * math.ceil(max(0, frames - 1) / stride)


def nearest_length(frames: int, stride: int = 4) -> int:
    """The length stride·k + 1 that diffusers' Wan pipelines round a number of frames to: 7 -> 5, 12 -> 13."""
    return frames // stride * stride + 1


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
        ramp = _ramp(length)
        total[start : start + length] += part[:length] * ramp
        weight[start : start + length] += ramp
    return (total / weight).astype(np.float32)


def cut(frames: Iterable[Frames], starts: Sequence[int], length: int, stride: int) -> Iterator[tuple[int, Frames]]:
    """Windows of a clip that comes frame by frame: (first frame, [L, H, W, 3]), padded to stride·k + 1 frames.

    Holds one window at a time. `starts` is what `windows` gave.
    """
    coming, held, first = iter(frames), list[Frames](), 0
    for start in starts:
        held, first = held[start - first :], start
        for frame in coming:
            held.append(frame)
            if len(held) == length:
                break
        if held:
            yield start, padded(np.stack(held), causal_length(len(held), stride))


@dataclass
class Blending:
    """`blend` for windows that come one by one: hands frames back as soon as no later window reaches them.

    Attributes:
        starts: first frames of all windows.
        frames: of the whole clip.
    """

    starts: Sequence[int]
    frames: int
    _first: int = 0  # frame of the clip at which the sums begin
    _total: Edited | None = None
    _weight: Edited = field(default_factory=lambda: np.zeros((0, 1, 1, 1), np.float32))

    def add(self, index: int, part: Edited) -> Frames:
        """Takes window number `index` and returns the frames that are finished by it, uint8 [n, H, W, 3]."""
        start = self.starts[index]
        part = part[: self.frames - start]
        if len(self.starts) == 1:
            return rounded(part)
        self._reach(start + len(part), part)
        place = slice(start - self._first, start - self._first + len(part))
        ramp = _ramp(len(part))
        assert self._total is not None
        self._total[place] += part * ramp
        self._weight[place] += ramp
        last = index + 1 == len(self.starts)
        done = (self.frames if last else self.starts[index + 1]) - self._first
        finished = rounded(self._total[:done] / self._weight[:done])
        self._first, self._total, self._weight = self._first + done, self._total[done:], self._weight[done:]
        return finished

    def _reach(self, end: int, like: Edited) -> None:
        """Makes room up to frame `end` of the clip."""
        if self._total is None:
            self._total = np.zeros((0, *like.shape[1:]), np.float32)
        more = end - self._first - len(self._total)
        self._total = np.concatenate([self._total, np.zeros((more, *like.shape[1:]), np.float32)])
        self._weight = np.concatenate([self._weight, np.zeros((more, 1, 1, 1), np.float32)])


def rounded(frames: Edited) -> Frames:
    """Whole grey levels, 0-255."""
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def _ramp(length: int) -> Edited:
    """Weights that rise and fall linearly, [length, 1, 1, 1]."""
    return np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float32)[:, None, None, None]
