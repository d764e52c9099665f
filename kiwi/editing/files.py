"""Edits files: decoding streams into the editor and the editor into the encoder, so that no length fills the memory.

A video becomes an mp4 of its size, rate and length with its sound; a still image a still image with its transparency.
A variable rate is laid on an even grid of the file's average rate, as everywhere in kiwi: nothing is cut or sped up,
and frames repeat where the file had pauses. Transparency of videos is laid on white.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kiwi.editing.errors import EditError
from kiwi.editing.geometry import Frames
from kiwi.editing.request import FileRequest, check_request, reference_image
from kiwi.editing.streams import Progress, StreamEditor, StreamRequest
from kiwi.errors import KiwiError
from kiwi.media.audio import Handling, handling
from kiwi.media.resizing import Image, resize_frames
from kiwi.media.stills import alpha_of, write_still
from kiwi.media.streaming import Reel, read_frames
from kiwi.media.writing import VideoWriter, check_writable, video_writer

COMPARISON_WIDTH = 3840  # pixels of source and result side by side, at most


@dataclass(frozen=True)
class EditedFile:
    """What an edit came to. Sizes in pixels; `model_size` is (height, width) as the model saw the frames."""

    out: Path
    compare: Path | None
    height: int
    width: int
    frames: int
    fps: float
    windows: int
    model_size: tuple[int, int]
    audio: Handling
    uneven_rate: bool


def edit_files(
    editor: StreamEditor, requests: Sequence[FileRequest], progress: Progress | None = None
) -> Iterator[tuple[int, EditedFile | KiwiError]]:
    """Edits files together and hands back (number, what came of it) as each is done.

    Outputs appear whole or not at all. A file that fails is told as its error; the others go on.

    Args:
        progress: called with (steps done, steps in all).
    """
    jobs: dict[int, _Job] = {}
    with ExitStack() as outputs:
        for number, request in enumerate(requests):
            try:
                jobs[number] = outputs.enter_context(_Job.opened(number, request, editor))
            except KiwiError as error:
                yield number, error
        order = list(jobs)
        for place, finished in editor.edit([jobs[number].stream for number in order], progress):
            job = jobs[order[place]]
            outcome: EditedFile | KiwiError | None
            if isinstance(finished, KiwiError):
                job.abandon(finished)
                outcome = finished
            else:
                outcome = job.written(finished)
            if outcome is not None:
                yield job.number, outcome


@dataclass
class _Job:
    """One file under way: where its frames come from and go to."""

    number: int
    request: FileRequest
    reel: Reel
    stream: StreamRequest
    windows: int
    _outputs: ExitStack = field(default_factory=ExitStack)
    _result: VideoWriter | None = None
    _comparison: VideoWriter | None = None
    _sources: Iterator[Image] | None = None
    _count: int = 0
    _failed: bool = False

    @classmethod
    def opened(cls, number: int, request: FileRequest, editor: StreamEditor) -> _Job:
        """Surveys the file and opens its outputs, so that a place that cannot be written fails before any work."""
        reel = check_request(request)
        editor.pipeline.check_clip(reel.frames, reel.height, reel.width, request.reference is not None)
        reference = None if request.reference is None else reference_image(request.reference)
        subject = editor.pipeline.subject(
            number, request.prompt, (reel.height, reel.width), reference, reference, request.seed
        )
        stream = StreamRequest(read_frames(reel, subject.size), reel.frames, subject)
        job = cls(number, request, reel, stream, len(editor.starts(reel.frames)))
        with ExitStack() as outputs:
            job._open(outputs)
            job._outputs = outputs.pop_all()
        return job

    def __enter__(self) -> _Job:
        return self

    def __exit__(self, *error: Any) -> None:
        """Whatever is still open when the work ends was not finished."""
        if self._count < self.reel.frames and not self._failed:
            self.abandon(EditError("the work was given up"))

    def abandon(self, error: BaseException) -> None:
        """Removes what was begun."""
        self._failed = True
        try:
            self._outputs.__exit__(type(error), error, error.__traceback__)
        except type(error):
            return

    def written(self, frames: Frames) -> EditedFile | KiwiError | None:
        """Writes the next frames of the result; what came of the file once it is whole."""
        if self._failed:
            return None
        try:
            for frame in frames:
                self._write(resize_frames(frame[None], self.reel.height, self.reel.width)[0])
            if self._count < self.reel.frames:
                return None
            self._outputs.close()
        except KiwiError as error:
            self.abandon(error)
            return error
        return self._edited_file()

    def _open(self, outputs: ExitStack) -> None:
        reel, request = self.reel, self.request
        if reel.is_still:
            for path in (request.out, request.compare):
                if path is not None:
                    check_writable(path)
            return
        self._result = outputs.enter_context(
            video_writer(request.out, reel.height, reel.width, reel.fps, sound_of=reel)
        )
        if request.compare is not None:
            height, width = comparison_size(reel.height, reel.width)
            self._sources = read_frames(reel, (height, width // 2))
            self._comparison = outputs.enter_context(
                video_writer(request.compare, height, width, reel.fps, sound_of=reel)
            )

    def _write(self, frame: Image) -> None:
        self._count += 1
        if self.reel.is_still:
            write_still(self.request.out, frame, alpha_of(self.request.video))
            if self.request.compare is not None:
                write_still(self.request.compare, np.hstack([next(read_frames(self.reel)), frame]))
            return
        assert self._result is not None
        self._result.write(frame)
        if self._comparison is not None and self._sources is not None:
            source = next(self._sources)
            self._comparison.write(np.hstack([source, resize_frames(frame[None], *source.shape[:2])[0]]))

    def _edited_file(self) -> EditedFile:
        reel, request = self.reel, self.request
        return EditedFile(
            request.out, request.compare, reel.height, reel.width, reel.frames, float(reel.fps), self.windows,
            self.stream.subject.size, handling(reel), reel.uneven,
        )  # fmt: skip


def comparison_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of source and result side by side: even, and at most COMPARISON_WIDTH wide."""
    scale = min(1.0, COMPARISON_WIDTH / (2 * width))
    return max(2, 2 * round(height * scale / 2)), 2 * max(2, 2 * round(width * scale / 2))
