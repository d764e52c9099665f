"""What a dataset version costs: publishing linked against copied, publishing again, and comparing rows; in one run.

    taskset -c 2,3 python benchmarks/versions.py [--megabytes N] [--rows N] [--rounds N] [--out FILE]

Each round publishes the same number of new random bytes twice into fresh workspaces: once from the workspace's own
folder, which is linked, once from elsewhere, which is copied (or cloned, where the file system can). The floor is one
pass of SHA-256 over the bytes. Publishing again finds the hashes that it made, and compares sizes and times of change.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from machine import machine

from kiwi.configuration import RunConfiguration, StageSettings
from kiwi.lineage import describe, publish_dataset
from kiwi.lineage.differences import compare_rows
from kiwi.tracking import silent
from kiwi.workspace import write_json

SHARD = 128_000_000


def publish_once(root: Path, megabytes: int, linked: bool) -> dict[str, float]:
    """Seconds of a first publication and of a second one of the same files, and of hashing them."""
    stage = StageSettings(name="s", steps=1, mix={"image": 1.0}, learning_rate=1e-3, mllm_learning_rate=1e-3)
    configuration = RunConfiguration(
        preset="tiny", workspace=str(root / "work"), tracking_uri=f"sqlite:///{root}/t.db", stages=(stage,)
    )
    folder = root / "work" / "curation" / "dataset" if linked else root / "elsewhere"
    folder.mkdir(parents=True)
    random = np.random.default_rng()
    for number, start in enumerate(range(0, megabytes * 1_000_000, SHARD)):
        size = min(SHARD, megabytes * 1_000_000 - start)
        path = folder / f"media-{number:05d}.tar"
        path.write_bytes(random.bytes(size))
        os.utime(path, (time.time() - 3600,) * 2)
    seconds = {"hash": timed(lambda: describe(folder))}
    seconds["publish"] = timed(lambda: publish_dataset(configuration, folder, silent()))
    seconds["again"] = timed(lambda: publish_dataset(configuration, folder, silent()))
    return seconds


def compare_once(rows: int) -> float:
    """Rows of both versions compared in a second; one in ten changed, one in a hundred gone."""
    numbers = np.arange(rows)
    table = pl.DataFrame(
        {
            "position": numbers,
            "iid": [f"{number:024x}" for number in numbers],
            "pair_id": [f"pair-{number}" for number in numbers],
            "prompt": "make it blue",
            "score_overall": np.random.default_rng(0).random(rows),
        }
    ).with_columns(
        pl.lit(text).alias(name)
        for name, text in {"status": "kept", "stage": "", "reason": "", "trains_as": "quadruplet", "split": ""}.items()
    )
    other = table.with_columns(
        pl.when(pl.col("position") % 10 == 0).then(pl.lit("rejected")).otherwise("status").alias("status")
    ).filter(pl.col("position") % 100 != 1)
    return 2 * rows / timed(lambda: compare_rows(table, other))


def timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=int, default=1000)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "versions.json")
    asked = options.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {"linked": [], "copied": []}
    for number in range(asked.rounds):
        for kind in ("linked", "copied") if number % 2 else ("copied", "linked"):
            with tempfile.TemporaryDirectory() as root:
                rounds[kind].append(publish_once(Path(root), asked.megabytes, kind == "linked"))
    medians = {
        kind: {what: round(statistics.median(one[what] for one in measured), 2) for what in measured[0]}
        for kind, measured in rounds.items()
    }
    write_json(
        asked.out,
        {
            "machine": machine(),
            "megabytes": asked.megabytes,
            "rounds": asked.rounds,
            "median_seconds": medians,
            "copied_to_linked": round(medians["copied"]["publish"] / medians["linked"]["publish"], 2),
            "again_to_hash": round(medians["linked"]["again"] / medians["linked"]["hash"], 2),
            "rows": asked.rows,
            "rows_compared_per_second": round(statistics.median(compare_once(asked.rows) for _ in range(3))),
        },
    )
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
