"""Video in, frame by frame: what `decode` does to a whole clip, for files of any length in a few frames of memory.

A first pass over the packets, without decoding, counts the frames and tells whether their rate varies; the second
decodes. The frames are those of `decode`: upright, square pixels, transparency on white, on an even grid in time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from kiwi.media.images import decode_image, image_size, is_still_image
from kiwi.media.limits import Limits, MediaError
from kiwi.media.opening import Opened, opened, squared
from kiwi.media.resizing import Image, resize_frames
from kiwi.media.scaling import FrameScaler
from kiwi.media.timing import even_grid

# Memory does not grow with the length here, so only a frame's size is bounded as elsewhere.
STREAMING_LIMITS = Limits(max_duration=12 * 3600.0, max_bytes=1 << 42, max_decode_seconds=math.inf)
_SHORT = 20  # one frame in so many may be missing at the end, as `decode` allows
_ASPECT = 0.02  # a change of size in mid-stream is followed if it keeps the aspect to this share


@dataclass(frozen=True)
class Reel:
    """A file as it will be read.

    Attributes:
        height, width: pixels, upright and square.
        frames: how many `read_frames` gives.
        fps: frames a second, exactly; 0 for a still image.
        start: seconds in the file's own clock at which the first frame is shown.
        uneven: whether the rate varies, so that frames are repeated or left out to lie on an even grid.
        audio_tracks: number of them.
    """

    path: Path
    height: int
    width: int
    frames: int
    fps: Fraction
    start: float = 0.0
    uneven: bool = False
    audio_tracks: int = 0

    @property
    def is_still(self) -> bool:
        return self.fps == 0


def survey(path: Path, limits: Limits = STREAMING_LIMITS) -> Reel:
    """Reads the headers, one frame, and the times of all. Raises MediaError as `probe` does."""
    if is_still_image(_head(path, limits)):
        height, width, _ = image_size(path.read_bytes(), limits=limits, name=str(path))
        return Reel(path, height, width, 1, Fraction(0))
    with opened(path, limits, str(path), threads=1) as video:
        tracks, rate = len(video.container.streams.audio), video.rate
        times = _packet_times(video)
    with opened(path, limits, str(path), threads=1) as video:
        first = next(video.frames(), None)
        if first is None:
            raise MediaError("empty", f"{path}: no frame in the video stream")
        height, width = shown_size(first, video.pixel_shape, limits, str(path))
        first_time = first.time
        if times is None:
            times = [float("nan") if first_time is None else first_time]
            times += [float("nan") if frame.time is None else frame.time for frame in video.frames()]
    even = even_grid(times, rate, 1 << 31)
    start = times[0] if math.isfinite(times[0]) else 0.0
    fps = Fraction(rate).limit_denominator(1001)
    return Reel(path, height, width, len(times) if even is None else len(even), fps, start, even is not None, tracks)


def read_frames(
    reel: Reel, size: tuple[int, int] | None = None, limits: Limits = STREAMING_LIMITS, threads: int = 2
) -> Iterator[Image]:
    """The reel's frames in order, RGB uint8 [H, W, 3], each at `size` (height, width) or at its own.

    A file that gives fewer frames than it announced, by one in twenty at most, repeats its last.

    Raises MediaError: unreadable (damaged, breaks off, turns to another shape), over_limits.
    """
    height, width = size or (reel.height, reel.width)
    if reel.is_still:
        image = decode_image(reel.path.read_bytes(), limits=limits, name=str(reel.path))
        yield resize_frames(image[None], height, width)[0]
        return
    given, last = 0, None
    with opened(reel.path, limits, str(reel.path), threads) as video:
        for last in _on_the_grid(video, reel, height, width, limits):
            given += 1
            yield last
            if given == reel.frames:
                return
    if last is None or reel.frames - given > max(2, reel.frames // _SHORT):
        said = f"{reel.path}: breaks off after {given} of {reel.frames} frames"
        raise MediaError("unreadable", said, "fetch the file again")
    for _ in range(reel.frames - given):
        yield last


def shown_size(frame: av.VideoFrame, shape: Fraction, limits: Limits, name: str) -> tuple[int, int]:
    """(height, width) in square pixels, upright. Raises MediaError as `Limits.check_size` does."""
    limits.check_size(name, frame.width, frame.height)
    height, width = squared(frame.height, frame.width, shape)
    limits.check_size(name, width, height)
    return (width, height) if _turns(frame) % 2 else (height, width)


def _on_the_grid(video: Opened, reel: Reel, height: int, width: int, limits: Limits) -> Iterator[Image]:
    """Frames as they come, or, where the rate varies, the one on the screen at each tick, as `even_grid` lays them."""
    scaler, rate = FrameScaler(video.name), video.rate
    held: av.VideoFrame | None = None
    tick, first = 0, None
    for count, frame in enumerate(video.frames()):
        _check(frame, count, video, reel, limits)
        if not reel.uneven:
            yield _upright(frame, scaler, height, width)
            continue
        time = float(frame.time or 0.0)
        first = time if first is None else first
        if held is not None and (tick + 0.5) / rate < time - first:
            pixels = _upright(held, scaler, height, width)
            while (tick + 0.5) / rate < time - first:
                tick += 1
                yield pixels
        held = frame
    while held is not None and tick < reel.frames:
        tick += 1
        yield _upright(held, scaler, height, width)


def _check(frame: av.VideoFrame, count: int, video: Opened, reel: Reel, limits: Limits) -> None:
    if frame.is_corrupt:
        raise MediaError("unreadable", f"{video.name}: frame {count} is damaged", "fetch the file again")
    height, width = shown_size(frame, video.pixel_shape, limits, video.name)
    if abs(height * reel.width - width * reel.height) > _ASPECT * height * reel.width:
        said = f"{video.name}: turns from {reel.width}x{reel.height} to {width}x{height} at frame {count}"
        raise MediaError("unreadable", said, "cut it there")


def _upright(frame: av.VideoFrame, scaler: FrameScaler, height: int, width: int) -> NDArray[np.uint8]:
    turns = _turns(frame)
    stored = np.empty((width, height, 3) if turns % 2 else (height, width, 3), np.uint8)
    scaler.rgb(frame, stored.shape[0], stored.shape[1], stored)
    return np.ascontiguousarray(np.rot90(stored, turns)) if turns else stored


def _turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that bring a frame upright."""
    return round(float(frame.rotation) / 90) % 4


def _packet_times(video: Opened) -> list[float] | None:
    """When each frame is shown, from the packets alone; None where they do not say."""
    base = video.stream.time_base
    if base is None:
        return None
    stamps: list[int] = []
    try:
        for packet in video.container.demux(video.stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                return None
            stamps.append(packet.pts)
    except av.error.FFmpegError as error:
        broken = f"{video.name}: breaks off ({error.strerror})"
        raise MediaError("unreadable", broken, "fetch the file again") from error
    if not stamps or len(set(stamps)) < len(stamps):
        return None
    return [float(stamp * base) for stamp in sorted(stamps)]


def _head(path: Path, limits: Limits) -> bytes:
    """The first bytes of a file that is there and neither empty nor too large."""
    try:
        limits.check_bytes(str(path), path.stat().st_size)
        with path.open("rb") as file:
            return file.read(32)
    except OSError as error:
        raise MediaError("unreadable", f"{path}: {error.strerror or error}", "check the path and its rights") from error
