"""The report of a run with 110 judged samples: writing it, against 10 seconds, and opening it, against 1 second.

    taskset -c 0,1 python benchmarks/report.py [--samples N] [--rounds N] [--out FILE]

The run is made up (tests/unit/reports/conftest.py), but for its media, which are real files: every sample has a source,
a result, a champion's result and a reference of 81 frames of 480x832, H.264. Written is everything: index.html with
its media and first frames, the dataset's page, and the one file for Kubeflow. Each round starts with an empty report
folder; the second figure is that of writing it once more over the first, as the exit task does. Opened is each page in
a headless Chromium, each time in a new browser context: from navigation to the end of the load event. The fastest and
the median of the rounds are recorded: other work may share the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kiwi.media import encode_video, png_bytes
from kiwi.reports import ONE_FILE, write_report
from kiwi.tracking import silent
from kiwi.workspace import read_json, write_json
from tests.integration.chromium import Browser, Page, missing
from tests.unit.reports.conftest import KINDS, MadeUpRun

WRITE_FLOOR, OPEN_FLOOR = 10.0, 1.0  # seconds
FRAMES, HEIGHT, WIDTH, FPS = 81, 480, 832, 16.0
DISTINCT = 6
LOADED = "performance.getEntriesByType('navigation')[0]?.loadEventEnd"  # milliseconds since navigation
SAID = (
    "load_average", "megabytes", "write_seconds", "write_processor_seconds", "open_seconds", "within_floors",
)  # fmt: skip


def made_clips(folder: Path) -> list[Path]:
    """A few clips of moving shapes on a moving gradient with grain, as large as a real model's."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    paths = []
    for number in range(DISTINCT):
        grain = draw.normal(0, 6, (HEIGHT, WIDTH, 3))
        frames = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
        for place in range(FRAMES):
            wave = np.stack([np.sin(columns / (40 + 9 * number) + place / 9 + shift) for shift in range(3)], -1)
            frames[place] = np.clip(128 + 70 * wave + 20 * np.sin(rows / 50)[..., None] + grain, 0, 255)
            left = 40 + place * 8
            frames[place, 180:300, left : left + 120] = (240, 40 * number, 60)
        paths.append(folder / f"{number}.mp4")
        encode_video(paths[-1], frames, FPS)
    (folder / "reference.png").write_bytes(png_bytes(frames[0, :, :HEIGHT]))
    return paths


def made_run(root: Path, samples: int) -> MadeUpRun:
    """A whole run whose benchmark has `samples` samples, each with all its media."""
    run = MadeUpRun(root / "workspace").everything()
    clips = made_clips(root / "clips")
    home = run.root / "benchmark" / "made-up-key" / "gallery"
    shutil.rmtree(home)
    edits, scores = read_json(run.root / "benchmark" / "edits.json"), read_json(run.root / "benchmark" / "scores.json")
    template, listed, judged = edits["samples"][0], [], []
    for number in range(samples):
        kind = KINDS[number % len(KINDS)]
        name = f"{kind}-{number:03d}"
        (home / name).mkdir(parents=True)
        files = {}
        for place, role in enumerate(("source", "result", "champion")):
            shutil.copyfile(clips[(number + place) % DISTINCT], home / name / f"{role}.mp4")
            files[role] = f"made-up-key/gallery/{name}/{role}.mp4"
        shutil.copyfile(root / "clips" / "reference.png", home / name / "reference.png")
        files["reference"] = f"made-up-key/gallery/{name}/reference.png"
        gain = (number * 37 % 100) / 10
        listed.append(template | {"id": name, "kind": kind, "files": files, "psnr_edit": 10 + gain})
        judged.append({"id": name, "kind": kind, "overall": 1 + gain / 2.5, "champion_overall": 2.5, "criteria": {}})
    write_json(run.root / "benchmark" / "edits.json", edits | {"samples": listed})
    write_json(run.root / "benchmark" / "scores.json", scores | {"samples": samples, "per_sample": judged})
    return run


def written(run: MadeUpRun, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of writing into an empty folder, and of writing again; and of the processor, all threads together."""
    seconds: dict[str, list[float]] = {"first": [], "again": []}
    processor: dict[str, list[float]] = {"first": [], "again": []}
    for _ in range(rounds):
        shutil.rmtree(run.root / "report", ignore_errors=True)
        for name in ("first", "again"):
            started, used = time.perf_counter(), time.process_time()
            write_report(run.configuration, silent())
            seconds[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
    return seconds, processor


def opened(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds from navigation to the end of the load event, of both pages in turn."""
    seconds: dict[str, list[float]] = {"index.html": [], ONE_FILE: []}
    browser = Browser()
    for _ in range(rounds):
        for name, found in seconds.items():
            page = Page(browser)
            page.go(f"file://{folder / name}")
            page.wait(
                "performance.getEntriesByType('navigation')[0]?.loadEventEnd > 0 && !!document.querySelector('h1')"
            )
            found.append(page.value("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000)
            assert page.value("document.querySelectorAll('[data-card]').length") >= 3 * len(KINDS)
            browser.call("Target.disposeBrowserContext", browserContextId=page.context)
    browser.close()
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"fastest": round(min(values), 3), "median": round(statistics.median(values), 3)}


def measure(samples: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="kiwi-report-") as folder:
        run = made_run(Path(folder), samples)
        report = run.root / "report"
        seconds, processor = written(run, rounds)
        writing = {name: spread(values) for name, values in seconds.items()}
        opening = {name: spread(values) for name, values in opened(report, rounds).items()}
        sizes = {name: round((report / name).stat().st_size / 1e6, 2) for name in ("index.html", ONE_FILE)}
        media = sum(path.stat().st_size for path in (report / "media").iterdir())
    return {
        "samples": samples,
        "kinds": len(KINDS),
        "clip": f"{FRAMES} frames of {HEIGHT}x{WIDTH}",
        "rounds": rounds,
        "load_average": round(os.getloadavg()[0], 1),
        "megabytes": sizes | {"media": round(media / 1e6, 2)},
        "write_seconds": writing,
        "write_processor_seconds": {name: spread(values) for name, values in processor.items()},
        "write_floor_seconds": WRITE_FLOOR,
        "open_seconds": opening,
        "open_floor_seconds": OPEN_FLOOR,
        "within_floors": all(each["median"] <= WRITE_FLOOR for each in writing.values())
        and all(each["median"] <= OPEN_FLOOR for each in opening.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=110)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "report.json")
    arguments = parser.parse_args()
    if why := missing():
        sys.exit(f"no page can be opened here: {why}")
    os.environ.pop("KIWI_RUN_ID", None)
    result = measure(arguments.samples, arguments.rounds)
    write_json(arguments.out, {"machine": machine(), **result})
    print(
        json.dumps(
            {
                name: result[name]
                for name in (
                    "load_average",
                    "megabytes",
                    "write_seconds",
                    "write_processor_seconds",
                    "open_seconds",
                    "within_floors",
                )
            }
        )
    )


if __name__ == "__main__":
    main()
