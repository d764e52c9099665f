"""Video out: H.264 for viewing, whole or frame by frame with its sound, and a lossless form for clips in shards."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, overload

import av
import av.container
import av.error
import numpy as np
from numpy.typing import NDArray

from kiwi.media.audio import Soundtrack, soundtrack
from kiwi.media.limits import MediaError
from kiwi.media.resizing import Frames, Image
from kiwi.media.streaming import Reel

# What swscale's conversion from RGB is, written into the stream: players take an unmarked HD picture for BT.709.
_BT601, _BT709, _LIMITED_RANGE = 6, 1, 1


@overload
def encode_video(path: None, frames: Frames, fps: float, *, lossless: bool = ..., crf: int = ...) -> bytes: ...
@overload
def encode_video(path: Path | str, frames: Frames, fps: float, *, lossless: bool = ..., crf: int = ...) -> None: ...


def encode_video(
    path: Path | str | None, frames: Frames, fps: float, *, lossless: bool = False, crf: int = 18
) -> bytes | None:
    """Writes RGB frames uint8 [T,H,W,3] as an mp4; one thread, so the same frames give the same bytes.

    Args:
        path: where to write (atomically), or None to get the bytes back.
        fps: frames a second.
        lossless: bit-exact RGB (libx264rgb, qp 0; players other than FFmpeg's may not show it). Otherwise H.264 in
            yuv420p, which browsers play: odd sizes are padded by repeating the last row or column.
        crf: quality of the lossy form; lower is better.

    Raises:
        MediaError: empty for no frames, unreadable for a shape that is no video.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise MediaError("unreadable", f"frames of shape {frames.shape} and type {frames.dtype} are no RGB video")
    if 0 in frames.shape:
        raise MediaError("empty", f"no frames to encode (shape {frames.shape})")
    if lossless:
        data = _encode(frames, fps, "libx264rgb", "rgb24", {"qp": "0", "preset": "ultrafast"})
    else:
        data = _for_players(_pad_to_even(frames), fps, crf)
    if path is None:
        return data
    destination = Path(path)
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, destination)
    return None


def _for_players(frames: Frames, fps: float, crf: int) -> bytes:
    """H.264 whose index lies in front, so that a browser plays it while it loads; FFmpeg needs a file to move it."""
    options = {"crf": str(crf), "preset": "veryfast"}
    with tempfile.TemporaryDirectory(prefix="kiwi-") as folder:
        path = Path(folder) / "clip.mp4"
        _encode(frames, fps, "libx264", "yuv420p", options, path)
        return path.read_bytes()


def _encode(
    frames: Frames, fps: float, codec: str, pixels: str, options: dict[str, str], path: Path | None = None
) -> bytes:
    """Encodes to `path` with the index in front, or to the bytes that are returned."""
    buffer = io.BytesIO()
    container_options = {"fflags": "+bitexact", **({"movflags": "+faststart"} if path else {})}
    rate = Fraction(fps).limit_denominator(1001)
    try:
        with av.open(
            str(path) if path else buffer, "w", format="mp4", container_options=container_options
        ) as container:
            stream = container.add_stream(codec, rate=rate if rate > 0 else Fraction(1))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = pixels
            stream.options = {"threads": "1", **options}
            stream.codec_context.thread_count = 1
            for pixels_of_frame in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_of_frame), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except av.error.FFmpegError as error:
        shape = f"{frames.shape[0]} frames of {frames.shape[2]}x{frames.shape[1]}"
        raise MediaError("unreadable", f"{shape} do not encode as {codec}: {error}") from error
    return buffer.getvalue()


def _pad_to_even(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = frames.shape[1:3]
    if height % 2 == 0 and width % 2 == 0:
        return frames
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


@dataclass
class VideoWriter:
    """An mp4 that is being written: pictures one by one, their sound beside them."""

    container: av.container.OutputContainer
    stream: Any
    sound: Soundtrack | None
    rate: Fraction
    frames: int = 0

    def write(self, pixels: Image) -> None:
        """Adds a frame, RGB uint8 [H, W, 3]."""
        if self.sound is not None:
            self.sound.mux_until(float(self.frames / self.rate), self.container)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = self.frames, 1 / self.rate
        self.container.mux(self.stream.encode(frame))
        self.frames += 1

    def finish(self) -> None:
        """Writes what the encoder still holds and the rest of the sound."""
        self.container.mux(self.stream.encode())
        if self.sound is not None:
            self.sound.mux_until(math.inf, self.container)


@contextmanager
def video_writer(
    path: Path, height: int, width: int, fps: Fraction, *, sound_of: Reel | None = None, crf: int = 18
) -> Iterator[VideoWriter]:
    """An mp4 of exactly `height` by `width` that appears whole when the block ends, and not at all if it fails.

    Even sizes are H.264 in yuv420p, which everything plays. An odd side has no 4:2:0 form in H.264, so such a size is
    written in yuv444p, which FFmpeg's players and Chrome show and some others do not.

    Args:
        fps: frames a second, above 0.
        sound_of: a file whose audio tracks come along.

    Raises:
        MediaError: empty for no frames, unreadable where the encoder or the disk refuses.
    """
    with appearing_whole(path) as temporary:
        try:
            options = {"fflags": "+bitexact", "movflags": "+faststart"}
            with av.open(str(temporary), "w", format="mp4", container_options=options) as container:
                stream = _h264(container, height, width, fps, crf)
                with soundtrack(sound_of, container) if sound_of else _silence() as sound:
                    writer = VideoWriter(container, stream, sound, fps)
                    yield writer
                    if not writer.frames:
                        raise MediaError("empty", f"{path}: no frames to encode")
                    writer.finish()
        except av.error.FFmpegError as error:
            raise MediaError("unreadable", f"{path} cannot be written: {error}", "look at the disk") from error


@contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` that takes its place at the end, or vanishes on a failure.

    Raises MediaError(unreadable) where the folder cannot be written, before any work.
    """
    temporary = _begun(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raises MediaError(unreadable) where nothing can be written to `path`."""
    _begun(path).unlink()


def _begun(path: Path) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        said = f"{path} cannot be written: {error.strerror or error}"
        raise MediaError("unreadable", said, "name a place that you may write to") from error
    return temporary


@contextmanager
def _silence() -> Iterator[None]:
    yield None


def _h264(container: av.container.OutputContainer, height: int, width: int, fps: Fraction, crf: int) -> Any:
    stream: Any = container.add_stream("libx264", rate=fps)
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
    stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
    context = stream.codec_context
    context.thread_count = 1
    context.time_base = 1 / fps
    context.colorspace, context.color_range = _BT601, _LIMITED_RANGE
    context.color_primaries, context.color_trc = _BT709, _BT709
    return stream
