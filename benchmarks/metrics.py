"""All metrics of one edit of 81 frames at 1280x720 on two cores, metric by metric, each file decoded once.

    taskset -c 0,1 python benchmarks/metrics.py [--frames N] [--rounds N] [--ffmpeg PROGRAM] [--out FILE]

The clips are drawn here (a textured picture that pans, with a moving square that the edit recolours) and written as
H.264, so that it needs no data. CLIP is a ViT-B/32 with random weights: its figures mean nothing and its work is that
of the released one. VMAF is measured where --ffmpeg has libvmaf, and else left out and said.

Recorded are the best and the median seconds of each metric over the rounds, what it is in units of decoding the edit
and the source in the same round (so that a busy machine slows both), and the total. Fails where a metric that should
have a figure has none, where a file was decoded more than once, or where the classical metrics (all but CLIP and VMAF)
take more than FLOOR times the decoding.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import cv2
import numpy as np
from machine import machine
from numpy.typing import NDArray

from kiwi.configuration import WeightsSettings
from kiwi.media import encode_video
from kiwi.metrics import files as reading
from kiwi.metrics.clip import ClipFeatures, clip_features
from kiwi.metrics.edit import METRICS, EditReport
from kiwi.metrics.files import EditFiles, measure_files
from kiwi.metrics.vmaf import has_vmaf
from kiwi.workspace import write_json

HEIGHT, WIDTH = 720, 1280
FLOOR = 20.0
NOT_CLASSICAL = ("decode", "vmaf", "clip_text", "clip_image", "clip_consistency")


def drawn(frames: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Source, edit and mask [T, H, W, 3]."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH + 2 * frames, 3), dtype=np.uint8)
    large = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 20, 235, cv2.NORM_MINMAX)
    source = np.stack([large[:, 2 * at : 2 * at + WIDTH] for at in range(frames)])
    edit, mask = source.copy(), np.zeros_like(source)
    for at in range(frames):
        left = 100 + 8 * at
        edit[at, 200:440, left : left + 240] = 255 - edit[at, 200:440, left : left + 240]
        mask[at, 200:440, left : left + 240] = 255
    return source, edit, mask


def written(folder: Path, frames: int) -> EditFiles:
    source, edit, mask = drawn(frames)
    for name, clip in (("source", source), ("target", edit), ("mask", mask)):
        encode_video(folder / f"{name}.mp4", clip, 25)
    encode_video(folder / "edit.mp4", edit, 25, crf=30)
    cv2.imwrite(str(folder / "reference.png"), edit[0, 200:440, 100:340, ::-1])
    named = {name: folder / f"{name}.mp4" for name in ("edit", "source", "target", "mask")}
    return EditFiles(**named, reference=folder / "reference.png")


def random_clip(folder: Path) -> ClipFeatures:
    """A CLIP of the released size (ViT-B/32) with random weights and a tokenizer of single letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    words = {word: place for place, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    CLIPTokenizer(vocab=words, merges=[]).save_pretrained(folder)
    CLIPModel(CLIPConfig()).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return clip_features(WeightsSettings(model=str(folder), device="cpu", dtype="float32", batch=16))


def check(report: EditReport, decoded: list[str], wanted: list[str]) -> None:
    """Ends where a figure is missing or a file was decoded twice: the times would be of something else."""
    if report.unmeasured:
        missing = report.unmeasured[0]
        raise SystemExit(f"{missing.name} has no figure: {missing.message}")
    if {each.name for each in report.measured} != set(wanted):
        raise SystemExit("not every metric was measured")
    if len(decoded) != len(set(decoded)):
        raise SystemExit(f"decoded more than once: {sorted(decoded)}")


def measured(files: EditFiles, clip: ClipFeatures, wanted: list[str], rounds: int, ffmpeg: str) -> list[EditReport]:
    real, decoded, reports = reading.decode, [], []

    def counted(path: Path) -> object:
        decoded.append(path.name)
        return real(path)

    reading.decode = counted  # type: ignore[assignment]
    clip.loaded()  # loading weights is no part of measuring
    for _ in range(rounds):
        decoded.clear()
        reports.append(measure_files(files, "a square of another colour", clip, wanted, ffmpeg))
        check(reports[-1], decoded, wanted)
    return reports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ffmpeg", default="ffmpeg")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "metrics.json")
    arguments = parser.parse_args()
    cv2.setNumThreads(len(os.sched_getaffinity(0)))
    vmaf = has_vmaf(arguments.ffmpeg)
    wanted = [name for name in METRICS if name != "vmaf" or vmaf]
    with tempfile.TemporaryDirectory(prefix="kiwi-") as temporary:
        folder = Path(temporary)
        files = written(folder, arguments.frames)
        clip = random_clip(folder / "clip")
        reports = measured(files, clip, wanted, arguments.rounds, arguments.ffmpeg)
    names = ["decode", *wanted]
    seconds = {name: [report.seconds[name] for report in reports] for name in names}
    figures = {
        name: {
            "best_seconds": round(min(each), 3),
            "median_seconds": round(statistics.median(each), 3),
            "times_decoding": round(statistics.median(np.divide(each, seconds["decode"])), 2),
        }
        for name, each in seconds.items()
    }
    totals = [sum(report.seconds.values()) for report in reports]
    classical = [sum(r.seconds[name] for name in wanted if name not in NOT_CLASSICAL) for r in reports]
    ratio = round(float(np.min(np.divide(classical, seconds["decode"]))), 2)
    print(f"{'metric':<28} {'best s':>8} {'median s':>9} {'x decoding':>11}")
    for name, each in figures.items():
        print(f"{name:<28} {each['best_seconds']:>8} {each['median_seconds']:>9} {each['times_decoding']:>11}")
    print(f"{'total':<28} {min(totals):>8.2f} {statistics.median(totals):>9.2f}")
    write_json(
        arguments.out,
        {
            "machine": {**machine(), "load_average": round(os.getloadavg()[0], 1)},
            "frames": arguments.frames,
            "size": [WIDTH, HEIGHT],
            "rounds": arguments.rounds,
            "vmaf": "measured" if vmaf else "left out: no ffmpeg with libvmaf",
            "clip": "ViT-B/32, random weights, float32",
            "metrics": figures,
            "total_seconds": {"best": round(min(totals), 2), "median": round(statistics.median(totals), 2)},
            "classical_times_decoding": {"best": ratio, "at_most": FLOOR},
        },
    )
    print(f"written to {arguments.out.name}")
    if ratio > FLOOR:
        raise SystemExit(f"the classical metrics take {ratio} times the decoding, at most {FLOOR} are allowed")


if __name__ == "__main__":
    main()
