"""Video in: probe and decode with limits, so that no file a source lists can stall, crash or fill the machine.

Traps that are handled here: files that are empty, truncated or no video at all; sound with a cover picture; playlists
that would make FFmpeg open other files or addresses (only plain containers are admitted); rotation metadata; odd
sizes; sizes that change in mid-stream; an hour, or 8K; variable frame rates (frames are laid on an even grid).
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import av.video.reformatter
import av.video.stream
import numpy as np
from numpy.typing import NDArray

from kiwi.media.images import decode_image, image_size, is_still_image
from kiwi.media.limits import DEFAULT_LIMITS, Limits, MediaError
from kiwi.media.resizing import Frames, budget_size, resize_frames

Source = Path | str | bytes

# Containers that hold their own media. FFmpeg would also read playlists (hls, concat, dash), which open other paths.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,asf,h264,hevc,m4v,ivf,wav,mp3,flac,aac"
_SMALL_FRAME = 320 * 320


@dataclass(frozen=True)
class Probe:
    """What a file declares of itself. Sizes in pixels after rotation; duration in seconds; fps in frames a second.

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
        frames: RGB uint8 [T,H,W,3], evenly spaced in time.
        fps: frames a second; 0 for a still image.
        source_size: (height, width) of the file after rotation, before any resizing.
        truncated: whether the file goes on after `max_frames`.
    """

    frames: Frames
    fps: float
    source_size: tuple[int, int]
    truncated: bool = False


def probe(source: Source, limits: Limits = DEFAULT_LIMITS, *, name: str = "") -> Probe:
    """Reads headers and one frame. Raises MediaError (unreadable, over_limits, no_video, empty), calling it `name`."""
    name = name or _name(source)
    head = _check_bytes(source, limits, name)
    if is_still_image(head):
        height, width, codec = image_size(_bytes(source), limits=limits, name=name)
        return Probe(width, height, 1, 0.0, 0.0, codec, False)
    with _opened(source, limits, name, threads=1) as (container, stream):
        first = next(_frames(container, stream, name), None)
        if first is None:
            raise MediaError("empty", f"{name}: no frame in the video stream")
        limits.check_size(name, first.width, first.height)
        turned = _quarter_turns(first) % 2 == 1
        width, height = (first.height, first.width) if turned else (first.width, first.height)
        has_audio = len(container.streams.audio) > 0
        rate, duration = float(_rate(stream)), _duration(container, stream)
        return Probe(width, height, stream.frames, rate, duration, stream.codec.name, has_audio)


def decode(
    source: Source,
    *,
    pixel_budget: int | None = None,
    size: tuple[int, int] | None = None,
    max_frames: int | None = None,
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
        threads: decoder threads for large frames (they run while this one scales); small frames take one.
        name: what errors call it; the path where none is given.

    Raises:
        MediaError: unreadable (also when the stream breaks off), over_limits, no_video, empty.
    """
    name = name or _name(source)
    head = _check_bytes(source, limits, name)
    if is_still_image(head):
        image = decode_image(_bytes(source), limits=limits, name=name)
        height, width = image.shape[:2]
        target = size or (budget_size(height, width, pixel_budget) if pixel_budget else (height, width))
        return Clip(resize_frames(image[None], *target), 0.0, (height, width))
    with _opened(source, limits, name, threads) as (container, stream):
        frames, times, source_size, truncated = _decode_stream(
            container, stream, name, pixel_budget, size, max_frames, limits
        )
        if not truncated and stream.frames > 0 and len(frames) < stream.frames - max(2, stream.frames // 20):
            broken = f"{name}: breaks off after {len(frames)} of {stream.frames} frames"
            raise MediaError("unreadable", broken, "fetch the file again")
        rate = float(_rate(stream))
    even = _even_grid(times, rate)
    if even is not None:
        frames = frames[even[: max_frames or len(even)]]
    return Clip(frames, rate, source_size, truncated)


def _decode_stream(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    name: str,
    pixel_budget: int | None,
    size: tuple[int, int] | None,
    max_frames: int | None,
    limits: Limits,
) -> tuple[Frames, list[float], tuple[int, int], bool]:
    """Frames at their final size with their times in seconds, the size before resizing, and whether more would come."""
    converter = av.video.reformatter.VideoReformatter()
    out = np.empty((0, 0, 0, 3), np.uint8)
    times: list[float] = []
    source_size, target = (0, 0), (0, 0)
    deadline = time.monotonic() + limits.max_decode_seconds
    for frame in _frames(container, stream, name):
        count = len(times)
        if count == max_frames:
            return out[:count], times, source_size, True
        limits.check_size(name, frame.width, frame.height)
        if frame.is_corrupt:
            raise MediaError("unreadable", f"{name}: frame {count} is damaged", "fetch the file again")
        turns = _quarter_turns(frame)
        if count == 0:
            source_size = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
            target = size or (budget_size(*source_size, pixel_budget) if pixel_budget else source_size)
            room = limits.max_decoded_bytes // (target[0] * target[1] * 3)
            out = np.empty((max(1, min(stream.frames or 64, max_frames or room, room)), *target, 3), np.uint8)
        if count >= room or time.monotonic() > deadline:
            bound = f"{room} frames of this size" if count >= room else f"{limits.max_decode_seconds:.0f} s of decoding"
            raise MediaError("over_limits", f"{name}: more than {bound}", "cut it to a clip")
        if count == len(out):
            out = np.concatenate([out, np.empty_like(out[: max(1, room - count)])])
        pixels = _rgb(frame, converter, target[::-1] if turns % 2 else target)
        out[count] = np.rot90(pixels, turns) if turns else pixels
        times.append(frame.time if frame.time is not None else float("nan"))
    if not times:
        raise MediaError("empty", f"{name}: no frame in the video stream")
    return out[: len(times)], times, source_size, False


def _rgb(
    frame: av.VideoFrame, converter: av.video.reformatter.VideoReformatter, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """RGB uint8 [H,W,3] of a frame at `size`; one converter a clip, for setting it up costs more than a small frame."""
    height, width = size
    same = (frame.height, frame.width) == size
    if same and frame.format.name == "gbrp":
        return np.asarray(frame.to_ndarray())
    smaller = height <= frame.height and width <= frame.width
    kernel = av.video.reformatter.Interpolation.AREA if smaller else av.video.reformatter.Interpolation.BICUBIC
    converted = converter.reformat(frame, width=width, height=height, format="rgb24", interpolation=kernel, threads=1)
    return np.asarray(converted.to_ndarray())


def _frames(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, name: str
) -> Iterator[av.VideoFrame]:
    try:
        yield from container.decode(stream)
    except av.error.FFmpegError as error:
        broken = f"{name}: breaks off while decoding ({error.strerror})"
        raise MediaError("unreadable", broken, "fetch the file again") from error


@contextmanager
def _opened(
    source: Source, limits: Limits, name: str, threads: int
) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    options = {"format_whitelist": _CONTAINERS}
    if not isinstance(source, bytes):
        options["protocol_whitelist"] = "file"
        file = f"file:{os.path.abspath(str(source))}"
    try:
        container = av.open(file, "r", container_options=options)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        said = getattr(error, "strerror", None) or type(error).__name__
        raise MediaError("unreadable", f"{name}: no readable video ({said})", "give a complete video file") from error
    with container:
        stream = _video_stream(container)
        if stream is None:
            raise MediaError("no_video", f"{name}: holds no video stream", "give a file with pictures in it")
        limits.check_size(name, stream.codec_context.width, stream.codec_context.height)
        limits.check_duration(name, _duration(container, stream))
        small = stream.codec_context.width * stream.codec_context.height <= _SMALL_FRAME
        stream.codec_context.thread_count = 1 if small else threads
        if not small:
            stream.thread_type = "AUTO"
        yield container, stream


def _video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream | None:
    """The first video stream that is not a cover picture of a sound file."""
    for stream in container.streams.video:
        cover = bool(stream.disposition & stream.disposition.attached_pic)
        if not cover and stream.codec_context is not None:
            return stream
    return None


def _duration(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None:
        return float(container.duration / 1_000_000)
    return float(stream.frames / _rate(stream)) if stream.frames else 0.0


def _rate(stream: av.video.stream.VideoStream) -> Fraction:
    """Frames a second; a stream that declares nothing usable counts as 25."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= 1000:
            return Fraction(rate)
    return Fraction(25)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that bring a frame upright."""
    return round(float(frame.rotation) / 90) % 4


def _even_grid(times: list[float], rate: float) -> list[int] | None:
    """Indices that lay frames of a variable rate on an even grid of `rate`; None where they lie on one already."""
    clock = np.asarray(times) - times[0]
    if len(times) < 3 or not np.all(np.isfinite(clock)) or np.any(np.diff(clock) <= 0):
        return None
    if np.max(np.abs(clock - np.arange(len(clock)) / rate)) <= 0.75 / rate:
        return None
    ticks = np.arange(round(float(clock[-1]) * rate) + 1) / rate
    return [int(index) for index in np.searchsorted(clock, ticks + 0.5 / rate, side="right") - 1]


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
