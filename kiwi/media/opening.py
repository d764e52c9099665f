"""Opens a video file that nobody vouches for: plain containers only, within the limits, and not for too long.

The wall-clock limit is looked at whenever FFmpeg asks for bytes, before each packet and before each frame. What it
cannot do is to end the decoding of one single packet; that is bounded by the pixels a frame may have instead (FFmpeg
is told, and refuses to allocate more), which keeps it to seconds. Whoever runs a shard sets a time limit for all of it.
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
from typing import IO

import av
import av.container
import av.error
import av.video.stream

from kiwi.media.limits import Limits, MediaError

Source = Path | str | bytes

# Containers that hold their own media. FFmpeg would also read playlists (hls, concat, dash), which open other paths.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,asf,h264,hevc,m4v,ivf,wav,mp3,flac,aac"
_SMALL_FRAME = 320 * 320
_GUARD = 4  # frames of so many times the permitted pixels are refused by name; FFmpeg itself refuses larger ones
_READ = 1 << 18
_SQUARE = 0.01  # pixels whose sides differ by no more count as square; encoders round
_SHAPE = 8  # pixels more oblong than this are an error of the file


@dataclass(frozen=True)
class Deadline:
    """When the time for one file is up."""

    name: str
    seconds: float
    end: float

    @classmethod
    def starting(cls, name: str, seconds: float) -> Deadline:
        return cls(name, seconds, time.monotonic() + seconds)

    def check(self) -> None:
        """Raises MediaError(over_limits) once the time is up."""
        if time.monotonic() > self.end:
            raise MediaError(
                "over_limits", f"{self.name}: more than {self.seconds:.0f} s of decoding", "cut it to a clip"
            )


@dataclass(frozen=True)
class Opened:
    """A container, the stream of pictures in it, and the time that is left for reading them."""

    container: av.container.InputContainer
    stream: av.video.stream.VideoStream
    deadline: Deadline
    name: str

    @property
    def rate(self) -> float:
        """Frames a second; a stream that declares nothing usable counts as 25."""
        for rate in (self.stream.average_rate, self.stream.guessed_rate, self.stream.base_rate):
            if rate and 0 < rate <= 1000:
                return float(rate)
        return 25.0

    @property
    def duration(self) -> float:
        """Seconds of playing time as declared, 0 where nothing is."""
        if self.stream.duration is not None and self.stream.time_base is not None:
            return float(self.stream.duration * self.stream.time_base)
        if self.container.duration is not None:
            return float(self.container.duration / 1_000_000)
        return self.stream.frames / self.rate if self.stream.frames else 0.0

    @property
    def pixel_shape(self) -> Fraction:
        """Width over height of a pixel; 1 where it is square, nearly so, or not declared."""
        shape = self.stream.sample_aspect_ratio or Fraction(1)
        if not Fraction(1, _SHAPE) <= shape <= _SHAPE:
            declared = f"{self.name}: declares pixels of {shape.numerator}:{shape.denominator}"
            raise MediaError("unreadable", declared, "set its sample aspect ratio")
        return Fraction(1) if abs(shape - 1) <= _SQUARE else shape

    def frames(self) -> Iterator[av.VideoFrame]:
        """Frames in the order of showing. Raises MediaError: unreadable where the stream breaks off, over_limits."""
        try:
            for packet in self.container.demux(self.stream):
                self.deadline.check()
                for frame in packet.decode():
                    self.deadline.check()
                    if isinstance(frame, av.VideoFrame):
                        yield frame
        except av.error.FFmpegError as error:
            broken = f"{self.name}: breaks off while decoding ({error.strerror})"
            raise MediaError("unreadable", broken, "fetch the file again") from error


@contextmanager
def opened(source: Source, limits: Limits, name: str, threads: int) -> Iterator[Opened]:
    """The video stream of a file, checked against `limits` as far as its headers go. Raises MediaError."""
    deadline = Deadline.starting(name, limits.max_decode_seconds)
    with _raw(source, name) as raw:
        try:
            container = av.open(
                _Timed(raw, deadline),
                "r",
                container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "-"},
                options={"max_pixels": str(_GUARD * limits.max_pixels)},
                buffer_size=_READ,
            )
        except (av.error.FFmpegError, ValueError, OSError) as error:
            said = getattr(error, "strerror", None) or type(error).__name__
            raise MediaError(
                "unreadable", f"{name}: no readable video ({said})", "give a complete video file"
            ) from error
        with container:
            stream = _video_stream(container)
            if stream is None:
                raise MediaError("no_video", f"{name}: holds no video stream", "give a file with pictures in it")
            found = Opened(container, stream, deadline, name)
            limits.check_size(name, stream.codec_context.width, stream.codec_context.height)
            limits.check_duration(name, found.duration)
            _prepare(stream, limits, threads)
            yield found


def squared(height: int, width: int, shape: Fraction) -> tuple[int, int]:
    """(height, width) at which pixels of `shape` are square: the width changes, as in players."""
    return height, max(1, round(width * shape))


class _Timed:
    """A file that stops giving bytes when the time is up, for FFmpeg may read long before it hands anything back."""

    def __init__(self, file: IO[bytes], deadline: Deadline) -> None:
        self._file, self._deadline = file, deadline
        self.name = deadline.name

    def read(self, size: int) -> bytes:
        self._deadline.check()
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def _raw(source: Source, name: str) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    try:
        file = open(os.fspath(source), "rb")  # noqa: SIM115 (closed below; only the opening may be told as unreadable)
    except OSError as error:
        raise MediaError("unreadable", f"{name}: {error.strerror or error}", "check the path and its rights") from error
    with file:
        yield file


def _prepare(stream: av.video.stream.VideoStream, limits: Limits, threads: int) -> None:
    """Decoder threads for all but small frames, and the pixels that a decoder may allocate."""
    context = stream.codec_context
    context.options = {"max_pixels": str(_GUARD * limits.max_pixels)}
    small = context.width * context.height <= _SMALL_FRAME
    context.thread_count = 1 if small else threads
    if not small:
        stream.thread_type = "AUTO"


def _video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream | None:
    """The first video stream that is not a cover picture of a sound file."""
    for stream in container.streams.video:
        cover = bool(stream.disposition & stream.disposition.attached_pic)
        if not cover and stream.codec_context is not None:
            return stream
    return None
