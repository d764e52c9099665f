"""Video in: probe and decode with limits, so that no file a source lists can stall, crash or fill the machine.

Traps that are handled here: files that are empty, truncated or no video at all; sound with a cover picture; playlists
that would make FFmpeg open other files or addresses (only plain containers are admitted); rotation metadata; pixels
that are not square; odd sizes; sizes that change in mid-stream; an hour, or 8K; transparency; variable frame rates
(frames are laid on an even grid). High dynamic range is not tone-mapped: its frames come out as they are coded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from kiwi.media.images import decode_image, image_size, is_still_image
from kiwi.media.limits import DEFAULT_LIMITS, Limits, MediaError
from kiwi.media.opening import Opened, Source, opened, squared
from kiwi.media.resizing import Frames, budget_size, resize_frames
from kiwi.media.scaling import FrameScaler
from kiwi.media.timing import Sampler, even_grid

_ASPECT = 0.02  # a change of size in mid-stream is followed if it keeps the aspect to this share
_FIRST_ROOM = 64  # frames that are made room for at first, where the file does not say how many it has
_MOST_ON_TRUST = 1024  # and at most so many on the word of the file; more once they have come


@dataclass(frozen=True)
class Probe:
    """What a file declares of itself. Sizes in square pixels after rotation; duration in seconds; fps, frames a second.

    `frames` is the container's own count, or 0 where it declares none.
    """

    width: int
    height: int
    frames: int
    fps: float
    duration: float
    codec: str
    has_audio: bool


@dataclass(frozen=True)
class Clip:
    """Decoded frames.

    Attributes:
        frames: RGB uint8 [T,H,W,3], evenly spaced in time; only samples of the clip where `sample_fps` asked for them.
        fps: frames a second of the whole clip, sampled or not; 0 for a still image.
        source_size: (height, width) of the file after rotation and squaring of its pixels, before any resizing.
        truncated: whether the file goes on after `max_frames`.
        total_frames: frames of the whole clip on the even grid, within `max_frames`; T where nothing was sampled.
    """

    frames: Frames
    fps: float
    source_size: tuple[int, int]
    truncated: bool
    total_frames: int


@dataclass(frozen=True)
class _Wanted:
    """What the caller asked for, as `decode` takes it."""

    pixel_budget: int | None
    size: tuple[int, int] | None
    max_frames: int | None

    def target(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the frames handed back."""
        return self.size or (budget_size(*source_size, self.pixel_budget) if self.pixel_budget else source_size)


def probe(source: Source, limits: Limits = DEFAULT_LIMITS, *, name: str = "") -> Probe:
    """Reads headers and one frame. Raises MediaError (unreadable, over_limits, no_video, empty), calling it `name`."""
    name = name or _name(source)
    head = _check_bytes(source, limits, name)
    if is_still_image(head):
        height, width, codec = image_size(_bytes(source), limits=limits, name=name)
        return Probe(width, height, 1, 0.0, 0.0, codec, False)
    with opened(source, limits, name, threads=1) as video:
        first = next(video.frames(), None)
        if first is None:
            raise MediaError("empty", f"{name}: no frame in the video stream")
        height, width = _shown_size(first, video.pixel_shape, limits, name)
        has_audio = len(video.container.streams.audio) > 0
        codec = video.stream.codec.name
        return Probe(width, height, video.stream.frames, video.rate, video.duration, codec, has_audio)


def decode(
    source: Source,
    *,
    pixel_budget: int | None = None,
    size: tuple[int, int] | None = None,
    max_frames: int | None = None,
    sample_fps: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
    threads: int = 3,
    name: str = "",
) -> Clip:
    """Decodes a clip (or a still image, as a clip of one frame) to RGB.

    Args:
        source: a path, or the file's bytes.
        pixel_budget: frames of more pixels are scaled down, aspect kept.
        size: exact (height, width); overrides the budget.
        max_frames: stop after so many frames (`Clip.truncated` says that there were more).
        sample_fps: hand back only the frames nearest to 0, 1/sample_fps, 2/sample_fps, … seconds, each once. All are
            decoded, for frames build on one another, but the others are neither scaled nor kept.
        threads: decoder threads for large frames (they run while this one scales); small frames take one.
        name: what errors call it; the path where none is given.

    Raises:
        MediaError: unreadable (also when the stream breaks off), over_limits, no_video, empty.
        ValueError: a `sample_fps` that is not above 0.
    """
    if sample_fps is not None and not sample_fps > 0:
        raise ValueError(f"sample_fps is {sample_fps}, and must be above 0")
    name = name or _name(source)
    head = _check_bytes(source, limits, name)
    wanted = _Wanted(pixel_budget, size, max_frames)
    if is_still_image(head):
        image = decode_image(_bytes(source), limits=limits, name=name)
        height, width = image.shape[:2]
        return Clip(resize_frames(image[None], *wanted.target((height, width))), 0.0, (height, width), False, 1)
    with opened(source, limits, name, threads) as video:
        sampler = Sampler(video.rate, sample_fps) if sample_fps else None
        declared, rate = video.stream.frames, video.rate
        reel = _Reel(name, wanted, video.pixel_shape, limits, declared if sampler is None else 0)
        truncated = _read(video, reel, sampler)
    count = len(reel.times)
    if not truncated and declared > 0 and count < declared - max(2, declared // 20):
        raise MediaError("unreadable", f"{name}: breaks off after {count} of {declared} frames", "fetch the file again")
    longest = reel.room + 1 if sampler is None else int(limits.max_duration * rate) + 2
    even = even_grid(reel.times, rate, max_frames or longest)
    total = count if even is None else len(even)
    places = range(total) if sampler is None else sampler.places(total)
    return Clip(reel.laid(places, even), rate, reel.source_size, truncated, total)


class _Reel:
    """The frames of one clip that are kept, at their final size, and the times of all."""

    def __init__(self, name: str, wanted: _Wanted, shape: Fraction, limits: Limits, declared: int) -> None:
        self._name, self._wanted, self._shape, self._limits = name, wanted, shape, limits
        self._first_room = min(declared or _FIRST_ROOM, _MOST_ON_TRUST)
        self._scaler = FrameScaler(name)
        self._rows: dict[int, int] = {}  # row in _out by the frame's number
        self._out: Frames = np.empty((0, 0, 0, 3), np.uint8)
        self.times: list[float] = []
        self.source_size = (0, 0)
        self.room = 0

    def full(self) -> bool:
        """Whether no more frames are wanted."""
        return len(self.times) == self._wanted.max_frames

    def pass_by(self, frame: av.VideoFrame) -> None:
        """Counts a frame and checks it. Raises MediaError: unreadable (damaged, another shape), over_limits."""
        count, limits = len(self.times), self._limits
        size = _shown_size(frame, self._shape, limits, self._name)
        if frame.is_corrupt:
            raise MediaError("unreadable", f"{self._name}: frame {count} is damaged", "fetch the file again")
        if count == 0:
            self.source_size = size
            height, width = self._wanted.target(size)
            self.room = limits.max_decoded_bytes // (height * width * 3)
        elif size != self.source_size and not _same_aspect(size, self.source_size):
            (before_height, before_width), (height, width) = self.source_size, size
            said = f"{self._name}: turns from {before_width}x{before_height} to {width}x{height} at frame {count}"
            raise MediaError("unreadable", said, "cut it there")
        self.times.append(frame.time if frame.time is not None else float("nan"))
        limits.check_duration(self._name, self.times[-1] - self.times[0])

    def keep(self, index: int, frame: av.VideoFrame) -> None:
        """Scales frame number `index` into its place."""
        row = len(self._rows)
        self._make_room(row)
        turns = _quarter_turns(frame)
        height, width = self._out.shape[1:3]
        if turns:
            height, width = (width, height) if turns % 2 else (height, width)
            stored = np.empty((height, width, 3), np.uint8)
            self._scaler.rgb(frame, height, width, stored)
            self._out[row] = np.rot90(stored, turns)
        else:
            self._scaler.rgb(frame, height, width, self._out[row])
        self._rows[index] = row

    def laid(self, places: Sequence[int], even: list[int] | None) -> Frames:
        """The frames at `places` of the even grid."""
        if len(places) > self.room:
            raise self._too_long()
        rows = [self._rows[even[place] if even else place] for place in places]
        return self._out[: len(rows)] if rows == list(range(len(rows))) else self._out[rows]

    def _make_room(self, row: int) -> None:
        if row >= self.room:
            raise self._too_long()
        if row == len(self._out):
            most = min(self.room, self._wanted.max_frames or self.room)
            count = min(max(self._first_room, 2 * row), most)
            more = np.empty((count, *self._wanted.target(self.source_size), 3), np.uint8)
            if row:
                more[:row] = self._out
            self._out = more

    def _too_long(self) -> MediaError:
        return MediaError("over_limits", f"{self._name}: more than {self.room} frames of this size", "cut it to a clip")


def _read(video: Opened, reel: _Reel, sampler: Sampler | None) -> bool:
    """Runs the clip through the reel; whether there was more than the reel wanted.

    With a sampler each frame is held until the next has come, for the time of that one decides.
    """
    held: av.VideoFrame | None = None
    for frame in video.frames():
        if reel.full():
            break
        reel.pass_by(frame)
        index = len(reel.times) - 1
        if sampler is None:
            reel.keep(index, frame)
        elif held is not None and sampler.wants(index - 1, reel.times[-1] - reel.times[0]):
            reel.keep(index - 1, held)
        held = frame
    if held is None:
        raise MediaError("empty", f"{video.name}: no frame in the video stream")
    if sampler is not None:
        reel.keep(len(reel.times) - 1, held)  # the last frame stays on the screen
    return frame is not held


def _shown_size(frame: av.VideoFrame, shape: Fraction, limits: Limits, name: str) -> tuple[int, int]:
    """(height, width) in square pixels, upright. Raises MediaError as `Limits.check_size` does."""
    limits.check_size(name, frame.width, frame.height)
    height, width = squared(frame.height, frame.width, shape)
    limits.check_size(name, width, height)
    return (width, height) if _quarter_turns(frame) % 2 else (height, width)


def _same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(one[0] * other[1] - one[1] * other[0]) <= _ASPECT * one[0] * other[1]


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that bring a frame upright."""
    return round(float(frame.rotation) / 90) % 4


def _name(source: Source) -> str:
    return f"{len(source)} bytes in memory" if isinstance(source, bytes) else str(source)


def _bytes(source: Source) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _check_bytes(source: Source, limits: Limits, name: str) -> bytes:
    """The first bytes of a file that is there and neither empty nor too large."""
    if isinstance(source, bytes):
        limits.check_bytes(name, len(source))
        return source[:32]
    try:
        limits.check_bytes(name, os.path.getsize(source))
        with open(source, "rb") as file:
            return file.read(32)
    except OSError as error:
        raise MediaError("unreadable", f"{name}: {error.strerror or error}", "check the path and its rights") from error
