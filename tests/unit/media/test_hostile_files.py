"""Files as they come from the wild: unusual ones decode correctly, and whatever cannot is told by a typed error."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from kiwi.media import Limits, MediaError, decode, encode_video, opening, png_bytes, probe


def smooth(frames: int, height: int, width: int) -> np.ndarray:
    """Soft colours that a lossy codec keeps, each frame a little brighter."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([40 + 120 * columns / width, 40 + 120 * rows / height, 100 + 0 * rows], axis=2)
    return np.stack([picture + 4 * index for index in range(frames)]).astype(np.uint8)


def mux(
    frames: np.ndarray,
    *,
    container: str = "matroska",
    codec: str = "ffv1",
    pixels: str = "bgr0",
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.options = options or {}
        prepare(stream)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
            frame.pts, frame.time_base = (times[index] if times else index), Fraction(1, 10)
            file.mux(stream.encode(frame.reformat(format=pixels)))
        file.mux(stream.encode())
    return buffer.getvalue()


def refusal(source: Path | bytes, **options: object) -> tuple[str, str]:
    """The reason and the message of the refusal; the message is one line and comes with a remedy or says it all."""
    with pytest.raises(MediaError) as caught:
        decode(source, **options)  # type: ignore[arg-type]
    assert "\n" not in caught.value.message
    return caught.value.reason, caught.value.message


def error(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def test_one_frame_is_a_clip_of_one_frame() -> None:
    video = smooth(1, 48, 64)
    clip = decode(encode_video(None, video, 8, lossless=True))
    assert np.array_equal(clip.frames, video)
    assert not clip.truncated


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (3, 1), (47, 63)])
def test_the_smallest_and_the_oddest_sizes_come_back_bit_by_bit(height: int, width: int) -> None:
    video = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    data = mux(video, container="avi", codec="rawvideo", pixels="bgr24")
    assert np.array_equal(decode(data).frames, video)
    assert (probe(data).height, probe(data).width) == (height, width)


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv420p12le", "yuv444p10le", "yuv422p", "gbrp10le", "gray"])
def test_deeper_and_other_colour_formats_decode_to_the_same_picture(pixels: str) -> None:
    video = smooth(3, 48, 64)
    if pixels == "gray":
        video = np.repeat(video[..., :1], 3, axis=3)
    assert error(decode(mux(video, pixels=pixels)).frames, video) < 1.5


def test_full_range_colour_is_not_stretched() -> None:
    video = smooth(3, 48, 64)
    clip = decode(mux(video, container="avi", codec="mjpeg", pixels="yuvj420p", options={"q": "2"}))
    assert error(clip.frames, video) < 2.5


def test_transparency_is_laid_on_white() -> None:
    video = np.zeros((2, 48, 64, 4), np.uint8)
    video[..., 0] = 200
    video[:, :, :32, 3], video[:, :, 32:48, 3] = 255, 128
    frames = decode(mux(video, pixels="bgra")).frames
    assert np.array_equal(frames[0, 0, 0], [200, 0, 0])
    assert np.array_equal(frames[0, 0, 40], [(200 * 128 + 255 * 127 + 127) // 255, 127, 127])
    assert np.array_equal(frames[0, 0, 60], [255, 255, 255])


@pytest.mark.parametrize(
    ("shape", "width"), [(Fraction(2, 1), 128), (Fraction(1, 2), 32), (Fraction(8, 9), 57), (Fraction(405, 404), 64)]
)
def test_pixels_that_are_not_square_are_squared(shape: Fraction, width: int) -> None:
    video = smooth(3, 48, 64)

    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = shape

    data = mux(video, container="mp4", codec="libx264", pixels="yuv420p", prepare=prepare, options={"crf": "4"})
    clip, found = decode(data), probe(data)
    assert clip.frames.shape[1:3] == clip.source_size == (found.height, found.width) == (48, width)
    assert error(clip.frames, np.stack([cv2.resize(frame, (width, 48)) for frame in video])) < 3.0


def test_a_rotated_clip_is_squared_along_its_stored_width() -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.set_display_rotation(90)

    data = mux(smooth(2, 48, 64), container="mp4", codec="libx264", pixels="yuv420p", prepare=prepare)
    assert decode(data).source_size == (128, 48)


def test_pixels_of_an_absurd_shape_are_refused() -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    data = bytearray(mux(smooth(2, 48, 64), container="mp4", codec="libx264", pixels="yuv420p", prepare=prepare))
    place = data.index(b"pasp") + 4
    data[place : place + 8] = struct.pack(">II", 100, 1)
    reason, message = refusal(bytes(data))
    assert reason == "unreadable"
    assert "100:1" in message


def annexb(frames: np.ndarray) -> bytes:
    return mux(frames, container="h264", codec="libx264", pixels="yuv420p", options={"crf": "4"})


def test_a_change_of_size_in_mid_stream_is_followed_where_it_keeps_the_aspect() -> None:
    data = annexb(smooth(4, 96, 128)) + annexb(smooth(4, 48, 64))
    clip = decode(data)
    assert clip.frames.shape == (8, 96, 128, 3)
    assert error(clip.frames[4:], clip.frames[:4]) < 4.0


def test_a_change_of_shape_in_mid_stream_is_refused() -> None:
    reason, message = refusal(annexb(smooth(4, 96, 128)) + annexb(smooth(4, 128, 96)))
    assert reason == "unreadable"
    assert "from 128x96 to 96x128 at frame 4" in message


def test_a_stream_that_grows_beyond_the_limits_is_refused() -> None:
    data = annexb(smooth(4, 48, 64)) + annexb(smooth(4, 480, 640))
    assert refusal(data, limits=Limits(max_pixels=48 * 64))[0] in ("over_limits", "unreadable")
    assert refusal(data, limits=Limits(max_pixels=480 * 640 // 3))[0] == "over_limits"


@pytest.mark.parametrize(("container", "reason"), [("avi", "empty"), ("mp4", "no_video"), ("matroska", "unreadable")])
def test_a_file_without_frames_is_told_as_such(container: str, reason: str) -> None:
    """What a recorder leaves that was stopped at once: a header and nothing more."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        file.start_encoding()
    assert refusal(buffer.getvalue())[0] == reason


def flac_with_cover() -> bytes:
    """A sound file whose only picture is its cover: a FLAC header, a silent block, and an attached PNG."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as file:
        stream = file.add_stream("flac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    sound, cover = buffer.getvalue(), png_bytes(smooth(1, 48, 64)[0])
    kind = b"image/png"
    picture = struct.pack(">II", 3, len(kind)) + kind + struct.pack(">IIIIII", 0, 64, 48, 24, 0, len(cover)) + cover
    block = bytes([6]) + len(picture).to_bytes(3, "big") + picture
    first_block_ends = 4 + 4 + 34  # "fLaC", then the STREAMINFO block
    return sound[:first_block_ends] + block + sound[first_block_ends:]


def test_a_cover_picture_is_no_video() -> None:
    data = flac_with_cover()
    with av.open(io.BytesIO(data)) as container:
        assert len(container.streams.video) == 1, "the cover is there to be taken for a video"
    assert refusal(data)[0] == "no_video"
    with pytest.raises(MediaError):
        probe(data)


def test_a_tiny_file_that_declares_a_huge_frame_is_refused_before_it_is_decoded() -> None:
    huge = bytearray(mux(smooth(2, 48, 64), container="avi", codec="rawvideo", pixels="bgr24"))
    place = huge.index(b"strf") + 12  # BITMAPINFOHEADER: its size, then width and height
    huge[place : place + 8] = struct.pack("<ii", 5000, 5000)
    reason, message = refusal(bytes(huge))
    assert reason == "over_limits"
    assert "5000x5000" in message
    huge[place : place + 8] = struct.pack("<ii", 60_000, 30_000)  # FFmpeg will not even hear of it
    reason, message = refusal(bytes(huge))
    assert reason == "unreadable"
    assert "no frame size" in message


def with_png_size(data: bytes, width: int, height: int) -> bytes:
    """The PNG in `data` with another size in its header, and the header's checksum made to fit."""
    changed, place = bytearray(data), data.index(b"IHDR")
    changed[place + 4 : place + 12] = struct.pack(">II", width, height)
    changed[place + 17 : place + 21] = struct.pack(">I", zlib.crc32(changed[place : place + 17]))
    return bytes(changed)


def test_a_huge_frame_inside_a_small_declaration_is_never_unpacked() -> None:
    """The container says 64x48; the picture in it is of 200 million pixels, and compresses to next to nothing."""
    small = mux(smooth(1, 48, 64), container="avi", codec="png", pixels="rgb24")
    reason, _ = refusal(with_png_size(small, 16_000, 12_500))
    assert reason in ("unreadable", "over_limits")


def test_a_still_image_that_declares_a_huge_frame_is_over_the_limits() -> None:
    assert refusal(with_png_size(png_bytes(smooth(1, 48, 64)[0]), 60_000, 60_000))[0] == "over_limits"
    assert refusal(with_png_size(png_bytes(smooth(1, 48, 64)[0]), 9000, 100))[0] == "over_limits"


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi", "mpegts"])
def test_a_damaged_header_is_a_typed_error_or_a_clip_and_nothing_else(container: str) -> None:
    """Bytes of the header are overwritten at sixty places. Any exception but MediaError fails the test."""
    data = mux(smooth(5, 48, 64), container=container, codec="mpeg4", pixels="yuv420p")
    rng = np.random.default_rng(5)
    outcomes = set()
    for _ in range(60):
        broken = bytearray(data)
        start = int(rng.integers(0, 600))
        broken[start : start + 8] = rng.bytes(8)
        try:
            outcomes.add(decode(bytes(broken), limits=Limits(max_decode_seconds=5.0, max_pixels=10**6)).frames.shape[3])
        except MediaError as caught:
            outcomes.add(caught.reason)
    assert "unreadable" in outcomes


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_a_file_whose_first_bytes_are_gone_is_unreadable(container: str) -> None:
    data = mux(smooth(5, 48, 64), container=container, codec="mpeg4", pixels="yuv420p")
    assert refusal(bytes(64) + data[64:])[0] == "unreadable"


def test_a_clip_whose_clock_leaps_is_not_laid_on_a_grid_without_end() -> None:
    """Three frames, the last after eleven days: neither a million repeated frames nor the memory for them."""
    data = mux(smooth(3, 48, 64), container="mpegts", codec="mpeg4", pixels="yuv420p", times=[0, 1, 600_000])
    assert refusal(data)[0] == "over_limits"
    slow = mux(smooth(3, 48, 64), container="matroska", times=[0, 1, 5000])
    assert refusal(slow, limits=Limits(max_decoded_bytes=100 * 48 * 64 * 3))[0] == "over_limits"
    assert len(decode(slow, max_frames=40).frames) == 40


def test_the_time_limit_holds_from_the_opening_on() -> None:
    reason, message = refusal(encode_video(None, smooth(3, 48, 64), 8), limits=Limits(max_decode_seconds=0.0))
    assert reason == "over_limits"
    assert "0 s of decoding" in message


def test_a_file_that_is_read_and_read_and_gives_nothing_runs_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is a fake that moves on by a second at every look, for the test must not wait for a real one.

    The file is a transport stream of nothing but padding, which FFmpeg reads to the end before it gives up.
    """
    padding = (b"\x47\x1f\xff\x10" + bytes(184)) * 40_000
    assert refusal(padding)[0] == "unreadable"
    monkeypatch.setattr(opening.time, "monotonic", itertools.count().__next__)
    assert refusal(padding, limits=Limits(max_decode_seconds=5.0))[0] == "over_limits"


def test_errors_call_a_file_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "zwölf äpfel.mp4"
    path.write_bytes(b"\0" * 500)
    assert str(path) in refusal(path)[1]
    assert refusal(path, name="clips/12.mp4")[1].startswith("clips/12.mp4: ")


def test_shrinking_keeps_forty_decibels_of_the_area_average() -> None:
    """Against the area average of the full-size RGB, with no shift of brightness: neither may training pixels have."""
    rng = np.random.default_rng(2)
    picture = cv2.resize(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8), (640, 352), interpolation=cv2.INTER_CUBIC)
    data = mux(picture[None], pixels="yuv420p")
    whole = decode(data).frames[0]
    assert np.abs((whole.astype(float) - picture).mean(axis=(0, 1))).max() < 0.5
    small = decode(data, pixel_budget=90_000).frames[0]
    wanted = cv2.resize(whole, (small.shape[1], small.shape[0]), interpolation=cv2.INTER_AREA).astype(float)
    assert 10 * np.log10(255**2 / np.mean((small - wanted) ** 2)) > 40.0
    assert np.abs((small - wanted).mean(axis=(0, 1))).max() < 0.5
