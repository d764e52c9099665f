"""Decoding real clips to a pixel budget, against plain readers and the bare decoder, in one run on the same clips.

    taskset -c 0,1 python benchmarks/decoding.py [--pairs FOLDER] [--rounds N] [--clips N] [--out FILE]

Every reader takes every clip in turn, so that a busy machine slows all of them. Recorded are frames a second over the
whole run and with each clip's best time, the processor's time a frame (of all threads), and kiwi's reader against each:

    kiwi         kiwi.media.decode at the budget, frames in one array
    kiwi_2fps    the same with `sample_fps=2`; counts the frames of the clip, not the samples
    imageio_pil  imageio's frames one by one, Pillow's resize (left out where imageio is not installed)
    pyav_cv2     PyAV's frames one by one, to_ndarray, cv2.resize as it comes (bilinear), np.stack
    floor        the decoder alone with two threads: no RGB, no resizing

Fails where kiwi's reader is not faster than every plain reader, or makes fewer than FLOOR frames a second although the
machine was not busy with other work (told by the processor's time a frame, which would allow more on two cores).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import PIL.Image
from machine import machine

from kiwi.media import budget_size, decode
from kiwi.workspace import write_json

BUDGET = 360_000
FLOOR = 220.0
PAIRS = Path(os.environ.get("KIWI_REAL_PAIRS", "../shared/data/real"))


def kiwi(path: Path) -> int:
    return len(decode(path, pixel_budget=BUDGET).frames)


def kiwi_2fps(path: Path) -> int:
    return decode(path, pixel_budget=BUDGET, sample_fps=2.0).total_frames


def imageio_pil(path: Path) -> int:
    import imageio.v3

    frames = []
    for pixels in imageio.v3.imiter(path, plugin="pyav"):
        height, width = budget_size(*pixels.shape[:2], BUDGET)
        frames.append(np.asarray(PIL.Image.fromarray(pixels).resize((width, height))))
    return len(np.stack(frames))


def pyav_cv2(path: Path) -> int:
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            height, width = budget_size(frame.height, frame.width, BUDGET)
            frames.append(cv2.resize(frame.to_ndarray(format="rgb24"), (width, height)))
    return len(np.stack(frames))


def floor(path: Path) -> int:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 2
        stream.thread_type = "AUTO"
        return sum(1 for _ in container.decode(stream))


READERS: dict[str, Callable[[Path], int]] = {
    "kiwi": kiwi,
    "kiwi_2fps": kiwi_2fps,
    "imageio_pil": imageio_pil,
    "pyav_cv2": pyav_cv2,
    "floor": floor,
}


def measured(clips: list[Path], readers: dict[str, Callable[[Path], int]], rounds: int) -> dict[str, dict[str, float]]:
    """By reader: frames a second over all rounds, with each clip's best time, and processor time a frame."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in readers}
    worked, frames = dict.fromkeys(readers, 0.0), dict.fromkeys(readers, 0)
    for place, clip in enumerate(clips):
        for name in readers:
            seconds[name].append([])
        for turn in range(rounds):
            names = list(readers)
            first = (place + turn) % len(names)
            for name in names[first:] + names[:first]:
                started, at_work = time.perf_counter(), time.process_time()
                frames[name] += readers[name](clip)
                seconds[name][-1].append(time.perf_counter() - started)
                worked[name] += time.process_time() - at_work
    return {
        name: {
            "frames_per_second": round(frames[name] / sum(map(sum, each)), 1),
            "best": round(frames[name] / rounds / sum(map(min, each)), 1),
            "processor_ms_a_frame": round(1e3 * worked[name] / frames[name], 2),
        }
        for name, each in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, default=PAIRS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=0, help="only so many clips (0: all)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decoding.json")
    arguments = parser.parse_args()
    clips = sorted(arguments.pairs.glob("videos/*.mp4"))[: arguments.clips or None]
    if not clips:
        raise SystemExit(f"no clips in {arguments.pairs}/videos: give --pairs, or set KIWI_REAL_PAIRS")
    readers = {
        name: one for name, one in READERS.items() if name != "imageio_pil" or importlib.util.find_spec("imageio")
    }
    cv2.setNumThreads(len(os.sched_getaffinity(0)))
    found = measured(clips, readers, arguments.rounds)
    ratios = {name: round(found["kiwi"]["best"] / found[name]["best"], 2) for name in found}
    print(f"{'reader':<12} {'frames/s':>9} {'best':>7} {'cpu ms':>7} {'kiwi is':>8}")
    for name, figures in found.items():
        print(f"{name:<12} {' '.join(f'{value:>8}' for value in figures.values())} {ratios[name]:>7}x")
    said = {"clips": len(clips), "rounds": arguments.rounds, "pixel_budget": BUDGET, "required": FLOOR}
    write_json(
        arguments.out,
        {
            "machine": {**machine(), "load_average": round(os.getloadavg()[0], 1)},
            **said,
            "readers": found,
            "kiwi_against": ratios,
        },
    )
    print(f"written to {arguments.out.name}")
    slower = [name for name in ("imageio_pil", "pyav_cv2") if name in found and ratios[name] <= 1.0]
    if slower:
        raise SystemExit(f"not faster than {', '.join(slower)}")
    if found["kiwi"]["best"] < FLOOR:
        busy = 2000 / found["kiwi"]["processor_ms_a_frame"] > FLOOR
        said_so = (
            "on two cores of its own it would make more: the machine is busy" if busy else "the reader is too slow"
        )
        print(f"{found['kiwi']['best']} frames a second, {FLOOR:.0f} required; {said_so}")
        raise SystemExit(0 if busy else 1)


if __name__ == "__main__":
    main()
