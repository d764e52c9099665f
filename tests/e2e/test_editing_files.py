"""`kiwi edit` as a person calls it: real clips, their sound, a batch that is killed, and wrong use."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from kiwi.configuration import ModelSettings
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.media import decode, encode_video
from kiwi.media.streaming import survey
from kiwi.training.start import initial_model

REPOSITORY = Path(__file__).resolve().parents[2]
PAIRS = Path(os.environ.get("KIWI_REAL_PAIRS", REPOSITORY.parent / "shared" / "data" / "real"))
RATE = 44100


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An editor of random weights: what is looked at here are the files, not the pictures."""
    folder = tmp_path_factory.mktemp("model") / "model"
    KiwiEditPipeline(initial_model(ModelSettings())).save_pretrained(folder, "# random weights\n")
    return folder


@pytest.fixture(scope="module")
def real_clips() -> list[Path]:
    clips = sorted((PAIRS / "videos").glob("*_source.mp4"))[:3]
    if len(clips) < 3:
        pytest.skip("no real clips: set KIWI_REAL_PAIRS to a folder with videos/*_source.mp4")
    return clips


def started(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KIWI_", "MLFLOW_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "kiwi", "edit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "2"},
    )


def kiwi_edit(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    process = started(*arguments, cwd=cwd)
    out, said = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, out, said)


def with_sound(source: Path, out: Path) -> Path:
    """The clip with a beep a second beside it, as AAC."""
    with av.open(str(source)) as given, av.open(str(out), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        track = container.add_stream("aac", rate=RATE)
        track.codec_context.layout = "mono"
        length = 0.0
        for packet in given.demux(video=0):
            if packet.dts is not None:
                length = max(length, float((packet.pts + packet.duration) * packet.time_base))
                packet.stream = stream
                container.mux(packet)
        for start in range(0, int(length * RATE) - 1024, 1024):
            place = np.arange(start, start + 1024)
            wave = (np.sin(place / 8) * (place % RATE < 4000) * 20000).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return out


def sound(path: Path) -> list[tuple[float, bytes]]:
    """(seconds from the first picture, packet) of the audio track."""
    with av.open(str(path)) as container:
        start = float(next(container.decode(video=0)).time)
    with av.open(str(path)) as container:
        return [(float(p.pts * p.time_base) - start, bytes(p)) for p in container.demux(audio=0) if p.size]


def test_real_clips_keep_size_rate_length_and_sound(real_clips: list[Path], model: Path, tmp_path: Path) -> None:
    with_sound(real_clips[0], tmp_path / "sounding.mp4")
    for clip in (tmp_path / "sounding.mp4", *real_clips[1:]):
        out = tmp_path / f"out-{clip.name}"
        done = kiwi_edit(clip, "--prompt", "make it blue", "--out", out, "--model", model, "--steps", 1, "--json",
                         cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        before, after, said = survey(clip), survey(out), json.loads(done.stdout)
        assert (after.height, after.width, after.fps, after.frames, after.audio_tracks) == (
            before.height, before.width, before.fps, before.frames, before.audio_tracks,
        )  # fmt: skip
        assert (said["height"], said["width"], said["frames"]) == (before.height, before.width, before.frames)
    here, there = sound(tmp_path / "sounding.mp4"), sound(tmp_path / "out-sounding.mp4")
    assert [packet for _, packet in here] == [packet for _, packet in there]
    assert np.allclose([time for time, _ in here], [time for time, _ in there], atol=1e-3)


def test_a_killed_batch_resumes_and_does_only_what_is_left(model: Path, tmp_path: Path) -> None:
    with (tmp_path / "requests.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "prompt"])
        for index in range(6):
            encode_video(tmp_path / f"{index}.mp4", np.full((24 + index, 48, 64, 3), 40 * index, np.uint8), 10.0)
            writer.writerow([f"{index}.mp4", "make it blue"])
        writer.writerow(["gone.mp4", "make it blue"])
    command = ("--batch", tmp_path / "requests.csv", "--out", tmp_path / "out", "--model", model, "--steps", 8,
               "--batch-size", 1, "--json")  # fmt: skip
    process = started(*command, cwd=tmp_path)
    while process.poll() is None and len(list((tmp_path / "out").glob("0*.mp4"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0*.mp4")}
    recorded = [line for line in read(tmp_path / "out" / "results.csv") if line["status"] == "done"]
    assert 1 <= len(recorded) < 6, "the kill came too late to show anything"
    done = kiwi_edit(*command, cwd=tmp_path)
    said = json.loads(done.stdout)
    assert (said["rows"], said["done"], said["failed"], said["skipped"]) == (7, 6, 1, len(recorded))
    assert done.returncode == 1
    assert "1 of 7 rows failed" in done.stderr
    for line in recorded:
        assert (tmp_path / "out" / line["out"]).stat().st_mtime_ns == kept[line["out"]]
    for index in range(6):
        assert len(decode(tmp_path / "out" / f"{index + 1:04d}-{index}.mp4").frames) == 24 + index


def test_ctrl_c_is_told_in_a_line_and_leaves_what_was_there(model: Path, tmp_path: Path) -> None:
    encode_video(tmp_path / "a.mp4", np.zeros((200, 48, 64, 3), np.uint8), 10.0)
    (tmp_path / "b.mp4").write_bytes(b"before")
    process = started("a.mp4", "--prompt", "x", "--model", model, "--out", "b.mp4", "--steps", 1000, "--window", 7,
                      cwd=tmp_path)  # fmt: skip
    assert process.stderr is not None
    said = [process.stderr.readline(), process.stderr.readline()]
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    assert said[0] == "--window 7 is rounded to 5: 4k + 1 frames are taken\n"
    assert re.fullmatch(r"editing: \d+%, [\d:. s]+ left\n", said[1])
    assert rest.splitlines()[-1] == "Stopped. Nothing was written."
    assert (process.returncode, out) == (130, "")
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4"}
    assert (tmp_path / "b.mp4").read_bytes() == b"before"


def test_a_still_has_no_rate_and_the_model_is_said_by_its_folder(model: Path, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    done = kiwi_edit("a.png", "--prompt", "x", "--model", model, "--out", "b.png", "--window", 7, "--offload", "model",
                     "--json", cwd=tmp_path)  # fmt: skip
    said = json.loads(done.stdout)
    assert (said["fps"], said["window"], said["frames"]) == (None, 5, 1)
    assert said["model"] == {"name": None, "version": None, "folder": str(model)}
    assert "--offload model does nothing on the CPU" in done.stderr


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def wrong_uses(folder: Path, model: Path) -> dict[str, tuple[list[object], int]]:
    """By what is said: the arguments, and the exit code."""
    encode_video(folder / "a.mp4", np.zeros((5, 32, 32, 3), np.uint8), 10.0)
    (folder / "text.mp4").write_text("no video")
    (folder / "bad.csv").write_text("video,words\na.mp4,x\n")
    (folder / "other").mkdir()
    good = ["--prompt", "x", "--model", model]
    return {
        "no file gone.mp4": (["gone.mp4", *good, "--out", "b.mp4"], 2),
        "text.mp4: no readable video": (["text.mp4", *good, "--out", "b.mp4"], 1),
        "the reference text.mp4 is no image": (["a.mp4", *good, "--out", "b.mp4", "--reference", "text.mp4"], 2),
        "the instruction is empty": (["a.mp4", "--prompt", " ", "--model", model, "--out", "b.mp4"], 2),
        "is the input itself": (["a.mp4", *good, "--out", "a.mp4"], 2),
        "does not end in .mp4": (["a.mp4", *good, "--out", "b.mkv"], 2),
        "cannot be written": (["a.mp4", *good, "--out", "text.mp4/b.mp4"], 1),
        "no --out": (["a.mp4", *good], 2),
        "no video or no --prompt": (["--out", "b.mp4"], 2),
        "no --sampler 'heun'": (["a.mp4", *good, "--out", "b.mp4", "--sampler", "heun"], 2),
        "has no column prompt": (["--batch", "bad.csv", "--out", "o", "--model", model], 2),
        "--batch takes videos": (["a.mp4", "--batch", "bad.csv", "--out", "o"], 2),
        "other is no model folder": (["a.mp4", "--prompt", "x", "--model", "other", "--out", "b.mp4"], 1),
        "no device 'gpu'": (["a.mp4", *good, "--out", "b.mp4", "--device", "gpu"], 2),
        "no device 'tpu'": (["a.mp4", *good, "--out", "b.mp4", "--device", "tpu"], 2),
        "an overlap of 9 frames": (["a.mp4", *good, "--out", "b.mp4", "--window", "5", "--overlap", "9"], 2),
        "an overlap of 12 frames in windows of 9": (["a.mp4", *good, "--out", "b.mp4", "--overlap", "12"], 2),
        "--size 1028 or less": (["a.mp4", *good, "--out", "b.mp4", "--size", "2048"], 2),
        "--compare-to without --compare": (["a.mp4", *good, "--out", "b.mp4", "--compare-to", "c.mp4"], 2),
        "no model 'nosuch'": (["a.mp4", "--prompt", "x", "--model", "nosuch", "--out", "b.mp4"], 2),
    }


def test_wrong_use_is_told_in_a_line_and_a_remedy_and_changes_nothing(model: Path, tmp_path: Path) -> None:
    cases = wrong_uses(tmp_path, model)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for said, (arguments, code) in cases.items():
        done = kiwi_edit(*arguments, cwd=tmp_path)
        assert (said in done.stderr, done.returncode) == (True, code), (said, done.returncode, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 2
        assert not done.stdout
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
