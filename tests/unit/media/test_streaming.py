"""Reading frame by frame and writing with sound, on files made here: turned, uneven, odd, long, silent or not."""

from __future__ import annotations

import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from kiwi.media import MediaError, decode
from kiwi.media.audio import handling
from kiwi.media.streaming import Reel, read_frames, survey
from kiwi.media.writing import video_writer

RATE = 16000


def made(
    path: Path,
    frames: int = 20,
    *,
    height: int = 48,
    width: int = 64,
    times: list[int] | None = None,
    sound: str | None = None,
    sound_from: float = 0.0,
    codec: str = "libx264",
    pixels: str = "yuv420p",
) -> Path:
    """A clip of 10 frames a second that brightens; `times` in hundredths of a second; a click a second as sound."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = Fraction(1, 100)
        track = container.add_stream(sound, rate=RATE) if sound else None
        if track is not None:
            track.codec_context.layout = "mono"
        for index in range(frames):
            picture = np.full((height, width, 3), 40 + 4 * (index % 40), np.uint8)
            picture[: height // 2, : width // 2] = (200, 60, 30)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (times[index] if times else index * 10), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            for start in range(0, frames * RATE // 10 - 1024, 1024):
                wave = (np.arange(start, start + 1024) % RATE < 800) * 20000
                frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
                frame.sample_rate, frame.pts = RATE, start + round(sound_from * RATE)
                frame.time_base = Fraction(1, RATE)
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return path


def written(source: Path, out: Path) -> tuple[Reel, Reel]:
    """Copies a file through the reader and the writer. Returns what both files are."""
    reel = survey(source)
    with video_writer(out, reel.height, reel.width, reel.fps, sound_of=reel) as writer:
        for frame in read_frames(reel):
            writer.write(frame)
    return reel, survey(out)


def clicks(path: Path) -> list[float]:
    """Seconds at which the sound turns loud, from the first picture on."""
    with av.open(str(path)) as container:
        start = next(container.decode(video=0)).time
    values, first = [], None
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            first = frame.time if first is None else first
            values.append(
                frame.to_ndarray().astype(np.float64).mean(0) if frame.format.is_planar else frame.to_ndarray()[0]
            )
        rate = frame.sample_rate
    wave = np.concatenate(values)
    loud = np.abs(wave) > 0.5 * np.abs(wave).max()
    quiet_before = [index for index in np.flatnonzero(loud) if not loud[max(0, index - rate // 4) : index].any()]
    return [first + index / rate - start for index in quiet_before]


def test_streamed_frames_are_those_of_decode(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mp4")
    reel = survey(path)
    whole = decode(path, size=(24, 32))
    assert np.array_equal(np.stack(list(read_frames(reel, (24, 32)))), whole.frames)
    assert (reel.height, reel.width, float(reel.fps)) == (*whole.source_size, whole.fps)


def test_an_uneven_rate_is_laid_on_the_grid_that_decode_lays(tmp_path: Path) -> None:
    times = [0, 10, 20, 55, 60, 65, 70, 75, 130, 140, 150, 160]
    path = made(tmp_path / "uneven.mp4", len(times), times=times)
    reel = survey(path)
    assert reel.uneven
    whole = decode(path)
    assert reel.frames == len(whole.frames)
    assert np.array_equal(np.stack(list(read_frames(reel))), whole.frames)


def test_a_long_file_is_read_with_a_few_frames_in_memory(tmp_path: Path) -> None:
    reel = survey(made(tmp_path / "long.mp4", 400))
    alive, most, count = 0, 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    for frame in read_frames(reel):
        weakref.finalize(frame, gone)
        alive, count = alive + 1, count + 1
        most = max(most, alive)
    assert count == 400
    assert most <= 2


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (48, 63)])
def test_any_size_is_written_exactly_with_its_colours(tmp_path: Path, size: tuple[int, int]) -> None:
    reel = survey(made(tmp_path / "a.mp4"))
    frames = list(read_frames(reel, size))
    with video_writer(tmp_path / "b.mp4", *size, Fraction(30000, 1001)) as writer:
        for frame in frames:
            writer.write(frame)
    back = decode(tmp_path / "b.mp4")
    assert back.source_size == size
    assert Fraction(back.fps).limit_denominator(1001) == Fraction(30000, 1001)
    assert np.abs(back.frames.astype(int) - np.stack(frames)).mean() < 3


@pytest.mark.parametrize(
    ("name", "sound", "handled"),
    [("a.mp4", "aac", "copied"), ("a.mp4", "libmp3lame", "copied"), ("a.mkv", "pcm_s16le", "encoded"),
     ("a.ts", "aac", "copied")],
)  # fmt: skip
def test_sound_comes_along_in_step(tmp_path: Path, name: str, sound: str, handled: str) -> None:
    source = made(tmp_path / name, 40, sound=sound, codec="libx264")
    assert handling(survey(source)) == handled
    before, after = written(source, tmp_path / "out.mp4")
    assert (after.frames, after.fps, after.audio_tracks) == (before.frames, before.fps, 1)
    here, there = clicks(source), clicks(tmp_path / "out.mp4")
    assert len(here) == len(there) >= 3
    assert np.abs(np.array(here) - there).max() < 0.03


def test_copied_sound_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    source = made(tmp_path / "a.mp4", 40, sound="aac")
    written(source, tmp_path / "out.mp4")
    assert packets(source) == packets(tmp_path / "out.mp4")


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_sound_that_begins_late_still_does(tmp_path: Path) -> None:
    source = made(tmp_path / "a.mkv", 40, sound="aac", sound_from=0.7)
    written(source, tmp_path / "out.mp4")
    assert np.abs(np.array(clicks(source)) - clicks(tmp_path / "out.mp4")).max() < 0.03


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"before")
    with pytest.raises(ValueError), video_writer(out, 48, 64, Fraction(10)) as writer:
        writer.write(np.zeros((48, 64, 5), np.uint8))
    assert out.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["out.mp4"]


def test_no_frames_are_no_video(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no frames"), video_writer(tmp_path / "out.mp4", 48, 64, Fraction(10)):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_that_breaks_off_is_told(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mkv", 100)
    reel = survey(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match=r"breaks off"):
        list(read_frames(reel))


def test_files_that_are_no_video_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError) as text:
        survey(tmp_path / "text.mp4")
    assert text.value.reason == "unreadable"
    with pytest.raises(MediaError) as missing:
        survey(tmp_path / "nothing.mp4")
    assert missing.value.reason == "unreadable"
    sound = tmp_path / "sound.m4a"
    with av.open(str(sound), "w", format="mp4") as container:
        track = container.add_stream("aac", rate=RATE)
        track.codec_context.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    with pytest.raises(MediaError) as alone:
        survey(sound)
    assert alone.value.reason == "no_video"
