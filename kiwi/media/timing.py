"""When frames are shown: the even grid that a variable rate is laid on, and the frames that a sampling rate wants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


def even_grid(times: Sequence[float], rate: float, most: int) -> list[int] | None:
    """Indices of frames, at most `most`, that lay a variable rate on an even grid of `rate`.

    None where the frames lie on one already, or where their times say nothing.
    """
    clock = np.asarray(times) - times[0]
    if len(times) < 3 or not np.all(np.isfinite(clock)) or np.any(np.diff(clock) <= 0):
        return None
    if np.max(np.abs(clock - np.arange(len(clock)) / rate)) <= 0.75 / rate:
        return None
    ticks = (np.arange(min(round(float(clock[-1]) * rate) + 1, most)) + 0.5) / rate
    return [int(index) for index in np.searchsorted(clock, ticks, side="right") - 1]


@dataclass
class Sampler:
    """The frames nearest to the instants 0, 1/sample_fps, 2/sample_fps, … seconds of a clip of `rate` frames a second.

    Whether the rate varies is known only at the end. So `wants` keeps, besides the frame that is a sample by its
    number, the one that is on the screen at that tick of the even grid: one pass decodes, and no more frames are
    scaled than twice the samples. A `sample_fps` above `rate` gives every frame once.
    """

    rate: float
    sample_fps: float
    _numbered: int = field(default=0, init=False)  # samples that have gone by, by number
    _shown: int = field(default=0, init=False)  # and by the clock

    def wants(self, index: int, after: float) -> bool:
        """Whether frame `index` may be a sample; the next is shown `after` seconds from the first.

        The last frame, which has no next, always may: it stays on the screen.
        """
        wanted = False
        if self._place(self._numbered) == index:
            self._numbered += 1
            wanted = True
        while (self._place(self._shown) + 0.5) / self.rate < after:
            self._shown += 1
            wanted = True
        return wanted

    def places(self, total: int) -> list[int]:
        """The samples among `total` frames on the even grid."""
        found: list[int] = []
        while self._place(len(found)) < total:
            found.append(self._place(len(found)))
        return found

    def _place(self, sample: int) -> int:
        return math.floor(sample * max(1.0, self.rate / self.sample_fps) + 0.5)


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of `count` positions, evenly spread from the first to the last, each once."""
    return sorted({int(place) for place in np.rint(np.linspace(0, count - 1, min(count, most)))})
