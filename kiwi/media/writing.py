"""Video out: H.264 for viewing, and a lossless form for the small procedural clips in shards."""

from __future__ import annotations

import io
import os
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import overload

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from kiwi.media.limits import MediaError
from kiwi.media.resizing import Frames


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
