"""Frames at a sampling rate are frames of the whole clip, the nearest to each instant, whatever the file's own rate."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from kiwi.media import Limits, MediaError, decode, encode_video, png_bytes


def numbered(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Every frame plain and brighter than the one before, so that its grey says which it is."""
    return np.stack([np.full((height, width, 3), 20 + 4 * index, np.uint8) for index in range(frames)])


def at_times(frames: np.ndarray, times: list[int], rate: int) -> bytes:
    """Frames shown from `times` on, in units of 1/rate seconds."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264rgb", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        stream.options = {"qp": "0", "bf": "0"}
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(("rate", "sample_fps"), [(10, 2.0), (15, 2.0), (12.5, 3.0), (24, 7.0), (8, 0.5)])
def test_samples_are_the_frames_nearest_to_each_instant(rate: float, sample_fps: float) -> None:
    data = encode_video(None, numbered(31), rate, lossless=True)
    whole, clip = decode(data), decode(data, sample_fps=sample_fps)
    instants = np.arange(0.0, 31 / rate, 1 / sample_fps)
    nearest = [int(np.floor(instant * rate + 0.5 + 1e-9)) for instant in instants]
    expected = [place for place in nearest if place < 31]
    assert np.array_equal(clip.frames, whole.frames[expected])
    assert (clip.total_frames, whole.total_frames, clip.fps) == (31, 31, rate)


def test_a_sampling_rate_above_the_clips_own_gives_every_frame_once() -> None:
    data = encode_video(None, numbered(9), 8, lossless=True)
    assert np.array_equal(decode(data, sample_fps=60.0).frames, decode(data).frames)


def test_samples_of_a_variable_rate_are_frames_of_its_even_grid() -> None:
    rng = np.random.default_rng(3)
    for _ in range(6):
        times = np.cumsum(np.concatenate([[0], rng.choice([1, 1, 2, 9], 19)])).tolist()
        data = at_times(numbered(20), times, 10)
        for sample_fps in (0.7, 2.0, 3.0):
            whole, clip = decode(data), decode(data, sample_fps=sample_fps)
            step = whole.fps / sample_fps
            places = [int(np.floor(index * step + 0.5)) for index in range(len(whole.frames))]
            kept = [place for place in places if place < len(whole.frames)]
            assert np.array_equal(clip.frames, whole.frames[kept if step > 1 else slice(None)])
            assert clip.total_frames == len(whole.frames)


def test_samples_stop_where_max_frames_does() -> None:
    data = encode_video(None, numbered(30), 10, lossless=True)
    clip = decode(data, sample_fps=2.0, max_frames=12)
    assert (len(clip.frames), clip.total_frames, clip.truncated) == (3, 12, True)
    assert not decode(data, sample_fps=2.0, max_frames=30).truncated
    times = [*range(15), *range(40, 55)]
    varied = at_times(numbered(30), times, 10)
    assert decode(varied, sample_fps=2.0, max_frames=12).total_frames == len(decode(varied, max_frames=12).frames)


def test_frames_between_samples_take_no_memory() -> None:
    """A limit that holds a tenth of the clip refuses all of it and admits its samples."""
    data = encode_video(None, numbered(50), 10, lossless=True)
    tight = Limits(max_decoded_bytes=7 * 48 * 64 * 3)
    assert len(decode(data, sample_fps=1.0, limits=tight).frames) == 5
    with pytest.raises(MediaError, match="more than 7 frames"):
        decode(data, limits=tight)


def test_the_length_of_a_clip_does_not_depend_on_the_room_for_its_samples() -> None:
    varied = at_times(numbered(30), [*range(15), *range(60, 75)], 10)
    tight = Limits(max_decoded_bytes=25 * 48 * 64 * 3)
    whole = decode(varied)
    clip = decode(varied, sample_fps=1.0, limits=tight)
    assert clip.total_frames == len(whole.frames) > 25
    assert np.array_equal(clip.frames[-1], whole.frames[int(np.floor((len(clip.frames) - 1) * whole.fps + 0.5))])


def test_a_long_clip_of_undeclared_length_comes_whole() -> None:
    """Raw H.264 declares no number of frames; room is made for them as they come."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"crf": "4", "bf": "0"}
        for picture in numbered(50).repeat(3, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    frames = decode(buffer.getvalue()).frames
    assert np.abs(frames.mean(axis=(1, 2, 3)) - numbered(50).repeat(3, axis=0).mean(axis=(1, 2, 3))).max() < 2.0


def test_a_still_image_is_its_own_only_sample() -> None:
    clip = decode(png_bytes(numbered(1)[0]), sample_fps=2.0)
    assert (len(clip.frames), clip.total_frames) == (1, 1)


@pytest.mark.parametrize("sample_fps", [0.0, -1.0, float("nan")])
def test_a_sampling_rate_that_is_none_is_refused(sample_fps: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        decode(encode_video(None, numbered(2), 8), sample_fps=sample_fps)
