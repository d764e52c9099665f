"""Video in: what is measured of good files, and how every kind of bad file is told."""

from __future__ import annotations

import io
import os
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kiwi.media import Limits, MediaError, decode, encode_video, png_bytes, probe


def moving_square(frames: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    """A white square on grey that moves two pixels a frame; its place tells which frame it is."""
    video = np.full((frames, height, width, 3), 60, np.uint8)
    for index in range(frames):
        video[index, 4:12, 4 + 2 * index : 12 + 2 * index] = 255
    return video


def reason_of(source: Path | bytes, **options: object) -> str:
    with pytest.raises(MediaError) as caught:
        decode(source, **options)  # type: ignore[arg-type]
    return caught.value.reason


def mux(frames: np.ndarray, times: list[int] | None = None, rotation: int = 0, rate: int = 10) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "10", "bf": "0"}
        if rotation:
            stream.set_display_rotation(rotation)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (times[index] if times else index), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return buffer.getvalue()


def test_a_lossless_clip_comes_back_bit_by_bit() -> None:
    rng = np.random.default_rng(1)
    video = rng.integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
    clip = decode(encode_video(None, video, 8, lossless=True))
    assert np.array_equal(clip.frames, video)
    assert clip.fps == 8
    assert clip.source_size == (64, 64)


def test_the_same_frames_encode_to_the_same_bytes() -> None:
    video = moving_square()
    assert encode_video(None, video, 8, lossless=True) == encode_video(None, video, 8, lossless=True)
    assert encode_video(None, video, 8) == encode_video(None, video, 8)


def test_odd_sizes_are_padded_for_players_and_kept_when_lossless() -> None:
    video = moving_square(3, 47, 63)
    assert decode(encode_video(None, video, 8)).frames.shape == (3, 48, 64, 3)
    assert decode(encode_video(None, video, 8, lossless=True)).frames.shape == (3, 47, 63, 3)


def test_a_file_written_for_viewing_looks_like_its_frames(tmp_path: Path) -> None:
    video = moving_square()
    encode_video(tmp_path / "made" / "clip.mp4", video, 12.5)
    found = probe(tmp_path / "made" / "clip.mp4")
    assert (found.width, found.height, found.frames, found.codec, found.has_audio) == (64, 48, 9, "h264", False)
    assert found.fps == pytest.approx(12.5)
    error = decode(tmp_path / "made" / "clip.mp4").frames.astype(int) - video
    assert np.abs(error).mean() < 4
    assert os.listdir(tmp_path / "made") == ["clip.mp4"]


def test_a_pixel_budget_shrinks_and_never_enlarges() -> None:
    data = encode_video(None, moving_square(3, 96, 128), 8)
    small = decode(data, pixel_budget=3000)
    assert small.frames.shape[1] * small.frames.shape[2] <= 3000
    assert small.source_size == (96, 128)
    assert decode(data, pixel_budget=10**6).frames.shape[1:3] == (96, 128)
    assert decode(data, size=(20, 30)).frames.shape == (3, 20, 30, 3)


def test_max_frames_stops_early_and_says_so() -> None:
    data = encode_video(None, moving_square(9), 8)
    cut = decode(data, max_frames=4)
    assert (len(cut.frames), cut.truncated) == (4, True)
    assert not decode(data, max_frames=9).truncated


@pytest.mark.parametrize(
    ("rotation", "shape", "corner"), [(90, (64, 48), "bottom"), (180, (48, 64), "right"), (270, (64, 48), "top")]
)
def test_rotation_metadata_is_applied(rotation: int, shape: tuple[int, int], corner: str) -> None:
    video = np.full((3, 48, 64, 3), 40, np.uint8)
    video[:, :16, :16] = 250  # a mark at the top left of the stored picture
    data = mux(video, rotation=rotation)
    clip = decode(data)
    found = probe(data)
    assert clip.frames.shape[1:3] == shape == (found.height, found.width) == clip.source_size
    bright = np.argwhere(clip.frames[0].mean(axis=2) > 150).mean(axis=0)
    top, left = bright[0] < shape[0] / 2, bright[1] < shape[1] / 2
    # counter-clockwise by 90: top left goes to the bottom left; by 270: to the top right
    assert (top, left) == {"bottom": (False, True), "right": (False, False), "top": (True, False)}[corner]


def test_a_variable_rate_is_laid_on_an_even_grid() -> None:
    video = moving_square(6, 48, 64)
    clip = decode(mux(video, times=[0, 1, 2, 12, 13, 14]))
    lefts = [int(np.argwhere(frame[8, :, 0] > 150)[0, 0]) for frame in clip.frames]
    steps = np.array(lefts)
    assert (np.diff(steps) >= 0).all()
    # the third frame was on screen for most of the time, and still is
    third = np.sum(np.abs(steps - 8) <= 1) / len(steps)
    assert third > 0.5
    even = decode(mux(video)).frames
    assert len(even) == 6


def test_an_empty_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert reason_of(tmp_path / "empty.mp4") == "empty"
    assert reason_of(b"") == "empty"


def test_text_and_noise_are_unreadable(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    assert reason_of(tmp_path / "text.mp4") == "unreadable"
    assert reason_of(tmp_path / "noise.mp4") == "unreadable"
    assert reason_of(tmp_path / "absent.mp4") == "unreadable"
    assert reason_of(tmp_path) == "unreadable"


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("lossless", [True, False])
def test_a_truncated_file_is_unreadable_never_a_shorter_clip(kept: float, lossless: bool) -> None:
    rng = np.random.default_rng(0)
    data = encode_video(None, rng.integers(0, 256, (24, 64, 64, 3), dtype=np.uint8), 8, lossless=lossless)
    assert reason_of(data[: int(len(data) * kept)]) == "unreadable"


def test_a_clip_with_damaged_frames_is_unreadable_never_smeared() -> None:
    rng = np.random.default_rng(0)
    data = bytearray(encode_video(None, rng.integers(0, 256, (24, 64, 64, 3), dtype=np.uint8), 8))
    with av.open(io.BytesIO(bytes(data))) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for place, size in packets[6:12]:  # inside the pictures, so that their lengths still fit
        data[place + size // 4 : place + size - size // 4] = rng.bytes(size - 2 * (size // 4))
    with pytest.raises(MediaError, match="damaged") as caught:
        decode(bytes(data))
    assert caught.value.reason == "unreadable"


def test_sound_alone_is_no_video() -> None:
    assert reason_of(sound()) == "no_video"


def test_a_playlist_cannot_open_other_files(tmp_path: Path) -> None:
    encode_video(tmp_path / "secret.mp4", moving_square(), 8)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n"
    (tmp_path / "listed.m3u8").write_text(playlist)
    (tmp_path / "listed.mp4").write_text(playlist)
    (tmp_path / "joined.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    for name in ("listed.m3u8", "listed.mp4", "joined.mp4"):
        assert reason_of(tmp_path / name) == "unreadable"
        assert reason_of((tmp_path / name).read_bytes()) == "unreadable"


def test_frames_over_the_limit_are_refused_before_they_are_decoded() -> None:
    data = encode_video(None, moving_square(2, 256, 512), 8)
    assert reason_of(data, limits=Limits(max_pixels=100_000)) == "over_limits"
    assert reason_of(data, limits=Limits(max_side=400)) == "over_limits"
    with pytest.raises(MediaError):
        probe(data, Limits(max_side=400))


def test_eight_k_is_over_the_default_limits() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 7680, 4320, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame(7680, 4320, "yuvj420p")))
        container.mux(stream.encode())
    assert reason_of(buffer.getvalue(), pixel_budget=360_000) == "over_limits"


def test_an_hour_is_over_the_default_limits() -> None:
    hour = mux(moving_square(4, 32, 32), times=[0, 10, 20, 3600], rate=1)
    assert reason_of(hour) == "over_limits"
    assert len(decode(hour, max_frames=4, limits=Limits(max_duration=7200)).frames) == 4


def test_decoded_frames_are_bounded_in_memory_and_time() -> None:
    data = encode_video(None, moving_square(9), 8)
    assert reason_of(data, limits=Limits(max_decoded_bytes=4 * 48 * 64 * 3)) == "over_limits"
    assert reason_of(data, limits=Limits(max_decode_seconds=0.0)) == "over_limits"
    assert reason_of(data, limits=Limits(max_bytes=100)) == "over_limits"


def test_a_still_image_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    image = moving_square(1)[0]
    (tmp_path / "still.png").write_bytes(png_bytes(image))
    clip = decode(tmp_path / "still.png")
    assert np.array_equal(clip.frames, image[None])
    assert clip.fps == 0
    found = probe(tmp_path / "still.png")
    assert (found.width, found.height, found.frames, found.codec) == (64, 48, 1, "png")


def test_no_frames_or_no_pictures_cannot_be_encoded() -> None:
    with pytest.raises(MediaError, match="no frames"):
        encode_video(None, np.zeros((0, 8, 8, 3), np.uint8), 8)
    with pytest.raises(MediaError, match="no RGB video"):
        encode_video(None, np.zeros((8, 8, 3), np.uint8), 8)


def test_a_real_clip_decodes_upright_at_the_budget(real_pairs: Path) -> None:
    tall = sorted(real_pairs.glob("videos/*_source.mp4"))
    sizes = set()
    for path in tall[:12]:
        clip = decode(path, pixel_budget=360_000, max_frames=2)
        height, width = clip.frames.shape[1:3]
        assert height * width <= 360_000
        assert abs(height / width - clip.source_size[0] / clip.source_size[1]) < 0.02
        sizes.add(clip.source_size)
    assert {(704, 1280), (1280, 704)} <= sizes
