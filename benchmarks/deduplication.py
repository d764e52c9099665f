"""Exact deduplication of unit vectors against the bare products of all with all, in one run; and against brute force.

    taskset -c 2,3 python benchmarks/deduplication.py [--rows N] [--width N] [--threads N] [--memory GB] [--out FILE]

The vectors are random and as alike as those of pictures are: any two have a cosine of about a half. One in a hundred
is another one with noise, at cosines on both sides of the threshold. The bare products are numpy's, of the same
blocks into a buffer that is used again. Each is done right before or after the one that is measured, by turns, so that
a busy machine slows both. The memory is what the process held at its peak above what it held before, the fingerprints,
less the buffers of the bare products.

Brute force on 20,000 rows is another program: all cosines in float64, and a plain loop that keeps the first.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from machine import machine
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from kiwi.curation.curators import nearest
from kiwi.curation.curators.nearest import Matrix
from kiwi.workspace import write_json

SIMILARITY = 0.95
BRUTE_ROWS = 20_000
NEAR_SHARE = 0.01


def prints_of(rows: int, width: int, seed: int) -> list[bytes]:
    """Fingerprints as the curator stores them: float16 vectors of length 1."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(width, np.float32)
    common *= np.sqrt(width) / np.linalg.norm(common)
    prints: list[bytes] = []
    for start in range(0, rows, 8192):
        count = min(8192, rows - start)
        part = rng.standard_normal((count, width), np.float32) + common
        for place in np.flatnonzero(rng.random(count) < NEAR_SHARE):
            earlier = int(rng.integers(0, start + place)) if start + place else 0
            model = np.frombuffer(prints[earlier], "<f2") if earlier < start else part[earlier - start]
            model = model.astype(np.float32) / np.linalg.norm(model.astype(np.float32))
            part[place] = model + rng.choice([0.0, 0.1, 0.3, 0.33, 0.4]) * rng.standard_normal(width) / np.sqrt(width)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        prints.extend(vector.tobytes() for vector in part.astype("<f2"))
    return prints


def brute_force(prints: list[bytes], similarity: float) -> NDArray[np.int64]:
    values = np.frombuffer(b"".join(prints), "<f2").reshape(len(prints), -1).astype(np.float64)
    lengths = np.einsum("ij,ij->i", values, values)
    repeats = np.full(len(prints), -1, np.int64)
    for start in range(0, len(prints), 1000):
        stop = min(start + 1000, len(prints))
        cosines = values[start:stop] @ values[:stop].T
        same = cosines >= similarity * np.sqrt(lengths[start:stop, None] * lengths[None, :stop])
        for row in range(start, stop):
            earlier = np.flatnonzero(same[row - start, :row] & (repeats[:row] < 0))
            if len(earlier):
                repeats[row] = earlier[0]
    return repeats


class WatchedArithmetic(nearest.NumpyArithmetic):
    """Does every product a second time with nothing but `numpy.matmul`, before or after ours by turns."""

    seconds = 0.0
    multiplied = 0
    turns = 0

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(rows, columns)
        self._bare = np.zeros(rows * columns, np.float32)

    def product(self, rows: Matrix, columns: Matrix) -> Matrix:
        WatchedArithmetic.turns += 1
        if WatchedArithmetic.turns % 2:
            self._multiply(rows, columns)
            return super().product(rows, columns)
        product = super().product(rows, columns)
        self._multiply(rows, columns)
        return product

    def _multiply(self, rows: Matrix, columns: Matrix) -> None:
        out = self._bare[: len(rows) * len(columns)].reshape(len(rows), len(columns))
        started = time.perf_counter()
        np.matmul(rows, columns.T, out=out)
        WatchedArithmetic.seconds += time.perf_counter() - started
        WatchedArithmetic.multiplied += len(rows) * len(columns)


def resident(field: str) -> float:
    """GB of VmRSS (now) or VmHWM (at the peak)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"/proc/self/status has no {field}: this benchmark measures memory on Linux")
    return int(found[1]) * 1024 / 1e9


def measured(rows: int, width: int, memory: float) -> dict[str, object]:
    """Ours and the bare products, product by product."""
    prints = prints_of(rows, width, seed=0)
    block = nearest.block_rows(width, rows, memory)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    held = resident("VmRSS")
    watched = 4 * block * (block + nearest.STRIP) / 1e9
    with mock.patch.object(nearest, "NumpyArithmetic", WatchedArithmetic):
        started = time.perf_counter()
        repeats = nearest.keep_first([prints], SIMILARITY, memory)
        whole = time.perf_counter() - started
    bare = WatchedArithmetic.seconds
    return {
        "rows": rows,
        "width": width,
        "block": block,
        "memory_setting_gb": memory,
        "peak_memory_gb": round(resident("VmHWM") - held - watched, 3),
        "kept": int((repeats < 0).sum()),
        "multiplied_of_all_pairs": round(WatchedArithmetic.multiplied / (rows * (rows - 1) / 2), 4),
        "seconds": round(whole - bare, 2),
        "bare_seconds": round(bare, 2),
        "bare_gflops": round(2e-9 * WatchedArithmetic.multiplied * width / bare, 1),
        "over_bare": round((whole - bare) / bare, 3),
    }


def equality(width: int) -> dict[str, object]:
    """Whether brute force finds the same, for several memory settings (that is, blocks)."""
    prints = prints_of(BRUTE_ROWS, width, seed=1)
    wanted = brute_force(prints, SIMILARITY)
    memories = (0.03, 0.1, 2.0)
    same = {
        str(memory): bool(np.array_equal(nearest.keep_first([prints], SIMILARITY, memory), wanted))
        for memory in memories
    }
    return {"rows": BRUTE_ROWS, "dropped": int((wanted >= 0).sum()), "equal_by_memory_gb": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "deduplication.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        brute = equality(arguments.width)
        print(f"brute force on {brute['rows']:,} rows: equal {brute['equal_by_memory_gb']}", flush=True)
        found = measured(arguments.rows, arguments.width, arguments.memory)
    print(
        f"{found['rows']:,} rows: {found['seconds']} s, bare products {found['bare_seconds']} s "
        f"(x{found['over_bare']}), {found['peak_memory_gb']} GB at the peak"
    )
    load = round(os.getloadavg()[1], 1)
    write_json(arguments.out, {"machine": machine(), "load": load, "brute_force": brute, "all_with_all": found})
    print(f"written to {arguments.out.name}")
    if not all(brute["equal_by_memory_gb"].values()):  # type: ignore[attr-defined]
        raise SystemExit("brute force found something else")


if __name__ == "__main__":
    main()
