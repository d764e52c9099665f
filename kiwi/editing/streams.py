"""Edits clips that come frame by frame, of any length, several at once: window by window, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kiwi.editing.errors import EditError
from kiwi.editing.geometry import Blending, Edited, Frames, causal_length, cut, windows
from kiwi.editing.options import SamplingOptions, completed
from kiwi.editing.pipeline import KiwiEditPipeline, Sampling, Subject, Window
from kiwi.editing.placement import out_of_memory
from kiwi.editing.step_cache import StepCaching
from kiwi.errors import KiwiError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StreamRequest:
    """A clip to edit.

    Attributes:
        frames: its frames in order, uint8 [h, w, 3], at `subject.size`; read as they are needed.
        count: how many there are.
    """

    frames: Iterable[npt.NDArray[np.uint8]]
    count: int
    subject: Subject


@dataclass
class _Job:
    """A request under way."""

    number: int
    request: StreamRequest
    starts: list[int]
    pieces: Iterator[tuple[int, Frames]]
    blending: Blending
    taken: int = 0
    joined: int = 0
    last: tuple[int, Edited] = field(default_factory=lambda: (0, np.zeros((0, 1, 1, 3), np.float32)))


class StreamEditor:
    """Edits streams with one model and one choice of options.

    Args:
        pipeline: holds the model; its window, size and overlap are those of `options`.
        options: with a value for everything (see `completed`).
    """

    def __init__(self, pipeline: KiwiEditPipeline, options: SamplingOptions) -> None:
        self.pipeline = pipeline
        self.options = options
        self._caching = StepCaching(options.step_cache)

    @classmethod
    def of(cls, pipeline: KiwiEditPipeline, options: SamplingOptions) -> StreamEditor:
        """With the model's own values for options that are None. The pipeline takes over window and size."""
        full = completed(options, pipeline.model.defaults)
        pipeline.frames, pipeline.side = full.window or pipeline.frames, full.size or pipeline.side
        pipeline.overlap = full.overlap or 0
        return cls(pipeline, full)

    def starts(self, count: int) -> list[int]:
        """First frames of the windows of a clip of `count` frames."""
        return windows(count, self.pipeline.frames, self.pipeline.overlap)

    def edit(
        self, requests: Sequence[StreamRequest], progress: Progress | None = None
    ) -> Iterator[tuple[int, Frames | KiwiError]]:
        """Hands back (number of the request, its next finished frames at the model's size) as they come.

        A request that fails is handed back as its error, once; the others go on. Held at any moment are `batch_size`
        windows, and of each clip one window more.

        Args:
            progress: called with (steps done, steps in all), one step being one window's.
        """
        jobs = {number: self._job(number, request) for number, request in enumerate(requests)}
        steps = self.options.steps or 1
        total, done = steps * sum(len(job.starts) for job in jobs.values()), 0

        def on_step(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        sampling = Sampling(steps, self.options.sampler, self._caching, on_step, self.pipeline.shift)
        while jobs:
            batch, failed = self._next_batch(list(jobs.values()))
            yield from self._without(jobs, failed)
            yield from self._edited(batch, jobs, sampling)
            for number in [job.number for job in jobs.values() if job.joined == len(job.starts)]:
                del jobs[number]

    def _job(self, number: int, request: StreamRequest) -> _Job:
        starts = self.starts(request.count)
        stride = self.pipeline.model.codec.temporal_stride
        pieces = cut(request.frames, starts, self.pipeline.frames, stride)
        return _Job(number, request, starts, pieces, Blending(starts, request.count))

    def _next_batch(self, jobs: list[_Job]) -> tuple[list[Window], dict[int, KiwiError]]:
        """Windows in turn from every clip, `batch_size` of them; one of each where windows build on one another."""
        batch: list[Window] = []
        failed: dict[int, KiwiError] = {}
        size = self.options.batch_size or 1
        while len(batch) < size:
            before = len(batch)
            for job in jobs:
                if len(batch) == size or job.number in failed or job.taken == len(job.starts):
                    continue
                try:
                    batch.append(self._window(job))
                except KiwiError as error:
                    failed[job.number] = error
            if len(batch) == before or self.options.carry:
                break
        return batch, failed

    def _window(self, job: _Job) -> Window:
        try:
            piece = next(job.pieces, None)
        except MemoryError as error:
            raise out_of_memory((self.pipeline.frames, *job.request.subject.size), self.pipeline.placement) from error
        if piece is None:
            said = f"the clip ends after window {job.taken} of {len(job.starts)}"
            raise EditError(said, "is it being written? try again when it is whole")
        start, frames = piece
        job.taken += 1
        return Window(job.number, start, frames, job.request.subject, self._before(job, start))

    def _before(self, job: _Job, start: int) -> Edited | None:
        """The edit of the first frames of a window that begins at `start`, as many as the codec takes at once."""
        if not self.options.carry or job.taken == 1:
            return None
        first, edit = job.last
        shared = edit[start - first :]
        stride = self.pipeline.model.codec.temporal_stride
        whole = causal_length(len(shared) - stride + 1, stride) if len(shared) > stride else 1
        return shared[:whole] if len(shared) else None

    def _edited(
        self, batch: list[Window], jobs: dict[int, _Job], sampling: Sampling
    ) -> Iterator[tuple[int, Frames | KiwiError]]:
        batch = [window for window in batch if window.request in jobs]
        try:
            edits = self.pipeline.edit_windows(batch, sampling, self.options.batch_size or 1)
        except KiwiError as error:
            yield from self._without(jobs, {window.request: error for window in batch})
            return
        for window, edit in zip(batch, edits, strict=True):
            job = jobs[window.request]
            finished = job.blending.add(job.joined, edit)
            job.joined += 1
            job.last = (window.start, edit)
            yield window.request, finished

    @staticmethod
    def _without(jobs: dict[int, _Job], failed: dict[int, KiwiError]) -> Iterator[tuple[int, KiwiError]]:
        for number, error in failed.items():
            del jobs[number]
            yield number, error
