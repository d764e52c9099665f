"""Rows a second and peak memory of listing a million generated rows: Ditto-1M's JSON and an OpenVE-3M CSV.

Each measurement is a process of its own, so that its peak memory is its own. Beside each stands the floor: the same
file read whole by `json.load`, or line by line by `csv.reader`, with nothing made of it.

    python benchmarks/listing.py [--rows 1000000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "listing.json"
WORDS = (
    *("replace", "the", "small", "red", "cup", "on", "the", "wooden", "table", "with", "a", "tall", "glass", "of"),
    *("water", "that", "catches", "the", "light"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], Path(options.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), options.rows)
        found = {what: best(what, folder, options.repeats) for what in MEASUREMENTS}
    for what, floor in (("ditto-1m", "json.load"), ("openve-3m", "csv.reader")):
        found[what]["times_the_floor"] = round(found[what]["seconds"] / found[floor]["seconds"], 2)
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    RESULTS.write_text(json.dumps({"machine": machine, "rows": options.rows, "found": found}, indent=1) + "\n")
    print(RESULTS.read_text())


def generate(folder: Path, rows: int) -> None:
    """The two listings, with instructions of OpenVE-3M's average length (40.6 words, by its authors)."""
    (folder / "training_metadata").mkdir()
    instruction = " ".join((WORDS * 3)[:41])
    with open(folder / "training_metadata" / "local.json", "w") as file:
        file.write("[")
        for number in range(rows):
            entry = {
                "source_path": f"source/{number:08d}.mp4",
                "edited_path": f"local/{number:08d}.mp4",
                "instruction": f"{instruction} {number}",
                "source_caption": instruction,
            }
            file.write((",\n" if number else "\n") + json.dumps(entry))
        file.write("\n]\n")
    with open(folder / "local_change.csv", "w") as file:
        file.write("original_video;video;prompt\n")
        for number in range(rows):
            file.write(f"original/{number:08d}.mp4;local_change/{number:08d}.mp4;{instruction}, {number}\n")


def measured(what: str, folder: Path) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    rows = sum(1 for _ in MEASUREMENTS[what](folder))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": rows,
        "seconds": round(seconds, 2),
        "peak_mb": round(peak / 1024),
        "at_start_mb": round(before / 1024),
    }


def best(what: str, folder: str, repeats: int) -> dict[str, float]:
    """The fastest of several: the others were disturbed by what else ran."""
    command = [sys.executable, __file__, "--one", what, folder]
    runs = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(repeats)]
    fastest: dict[str, float] = min(runs, key=lambda run: float(run["seconds"]))
    return {**fastest, "rows_a_second": round(fastest["rows"] / fastest["seconds"])}


def adapter(name: str) -> Callable[[Path], Iterator[object]]:
    def entries(folder: Path) -> Iterator[object]:
        from kiwi.configuration import CollectionSettings, SourceSettings
        from kiwi.sources.listing import iterate_pairs

        collection = CollectionSettings(adapter=name, location=str(folder))
        return iterate_pairs(SourceSettings(kind="collections", collections=(collection,)))

    return entries


def json_load(folder: Path) -> Iterator[object]:
    with open(folder / "training_metadata" / "local.json") as file:
        yield from json.load(file)


def csv_reader(folder: Path) -> Iterator[object]:
    import csv

    with open(folder / "local_change.csv", newline="") as file:
        reader = csv.reader(file, delimiter=";")
        next(reader)
        yield from reader


MEASUREMENTS: dict[str, Callable[[Path], Iterator[object]]] = {
    "ditto-1m": adapter("ditto-1m"),
    "json.load": json_load,
    "openve-3m": adapter("openve-3m"),
    "csv.reader": csv_reader,
}


if __name__ == "__main__":
    main()
