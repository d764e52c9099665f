"""Cutting 3.7 million stored rows again at other thresholds: seconds and memory of the command itself.

    taskset -c 0,1 python benchmarks/funnel.py [--rows N] [--folder DIR] [--out FILE]

The rows are invented from a seed, written as a dataset's parts are (zstd, 8,192 rows a part), with every column that a
dataset has but for the references, and with the repetitions, failures and gaps that stages leave. Then `kiwi data
funnel` runs as a process of its own with POLARS_MAX_THREADS=2: the funnel as it is, a cut upwards, a cut downwards
that brings rows back, one by a stored measure, and one split by source. Recorded for each: seconds from start to end,
the interpreter's own start included; seconds of processor time, which say more where other work shares the cores; and
the peak of its resident memory. Beside them, in the same run: the same columns counted row by row as Python
dictionaries, for a hundredth of the rows. `--folder` keeps the rows for another time. It fails where a command takes
more than 5 s or 1.5 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from kiwi.configuration import CurationSettings
from kiwi.dataset.manifest import FORMAT
from kiwi.dataset.rows import conform, write_rows
from kiwi.workspace import write_json

ROWS, PER_PART = 3_700_000, 8_192
SECONDS, BYTES = 5.0, 1_500_000_000
CASES: dict[str, list[str]] = {
    "as it is": [],
    "upwards": ["--set", "score.overall=8", "--set", "verify.consistency=0.7"],
    "downwards": ["--set", "score.overall=4", "--set", "ground.smallest=0"],
    "by a measure": ["--set", "score.sharpness>=0.5", "--set", "score.flicker<=3"],
    "split by source": ["--set", "score.overall=8", "--by", "source_dataset"],
}
SOURCES = (("Ditto-1M", "CC BY-NC-SA 4.0"), ("ReCo", "CC BY-NC-SA 4.0"), ("OpenVE-3M", "CC BY-NC 4.0"))
TASKS = ("local_change", "local_add", "local_remove", "background_change", "global_style")
ELIGIBLE = (True, True, False, True, False)


def invented(start: int, count: int) -> pl.DataFrame:
    """`count` rows from position `start` on; the same for the same arguments."""
    rng = np.random.default_rng([7, start])
    position = np.arange(start, start + count)
    source, task = rng.integers(0, 3, count), rng.integers(0, 5, count)
    score, area = np.round(10 * rng.beta(4, 2, count), 4), np.round(rng.beta(1, 4, count), 5)
    consistency = np.round(rng.beta(5, 2, count), 4)
    draw, repeats = rng.random(count), rng.random(count) < 0.02
    stages = [
        (draw < 0.004, "failed", "ingest", "source_unreadable"),
        (draw < 0.02, "rejected", "score", "size_mismatch"),
        (score < 6, "rejected", "score", "score_below_threshold"),
        (~np.array(ELIGIBLE)[task], "rejected", "ground", "task_not_eligible"),
        (area < 0.002, "rejected", "ground", "region_too_small"),
        (area > 0.85, "rejected", "ground", "region_too_large"),
        (draw > 0.99, "rejected", "segment", "mask_degenerate"),
        (consistency < 0.5, "rejected", "verify", "reference_inconsistent"),
        (repeats & (position % PER_PART > 0), "rejected", "deduplicate", "duplicate_reference"),
    ]
    place = np.select([each[0] for each in stages], np.arange(len(stages)), len(stages))
    kept = place == len(stages)
    words = np.array([list(each[1:]) for each in stages] + [["kept", "deduplicate", ""]])
    status, stage, reason = (words[place, column] for column in range(3))
    scored, grounded, verified = place > 1, (place > 3), (place > 6)
    iid = [f"{value:016x}{number:08x}" for value, number in zip(rng.integers(0, 1 << 63, count), position, strict=True)]
    first_kept = iid[int(np.argmax(kept))]
    fit = (status == "rejected") & (score >= 6) & (reason != "size_mismatch")

    def measured(values: Any, there: Any) -> pl.Series:
        return pl.Series(values, dtype=pl.Float64).set(pl.Series(~there), None)

    made: dict[str, Any] = {
        "position": position, "iid": iid, "pair_id": [f"clip-{number}" for number in position],
        "source_dataset": np.array([name for name, _ in SOURCES])[source],
        "license": np.array([name for _, name in SOURCES])[source], "edit_type": np.array(TASKS)[task],
        "task": np.array(TASKS)[task], "media": ["video"] * count,
        "prompt": [f"Replace the object number {number % 9973} by what fits the scene" for number in position],
        "needs_reference": [False] * count, "src_video": [f"media/media-{start // 99:05d}.tar::{one}" for one in iid],
        "tgt_video": [f"media/media-{start // 99:05d}.tar::{one}-t" for one in iid],
        "src_sha256": [one * 2 for one in iid], "tgt_sha256": [one[::-1] * 2 for one in iid], "width": [1280] * count,
        "height": [720] * count,
        "frames": rng.integers(49, 121, count), "fps": [16.0] * count, "status": status, "stage": stage,
        "reason": reason, "detail": [f"score {value}" for value in score],
        "trains_as": np.select([kept, fit], ["quadruplet", "instruction"], "nothing"),
        "split": ["train"] * count, "ref_origin": np.where(kept, "crop_classical", ""),
        "curator": ['{"score":"editscore-1"}'] * count, "parameters_hash": ["0123456789abcdef"] * count,
        "dup_of": np.where(reason == "duplicate_reference", first_kept, ""),
        "score_overall": measured(score, scored), "score_name": ["editscore"] * count,
        "region_area": measured(area, grounded), "region_kind": np.where(grounded, "object", ""),
        "verify_consistency": measured(consistency, verified),
    }  # fmt: skip
    for name in ("present", "outside", "related", "sharpness", "steadiness", "changed_share"):
        made[f"score_{name}"] = measured(np.round(rng.beta(8, 1, count), 4), scored)
    made["score_flicker"] = measured(np.round(rng.exponential(1, count), 4), scored)
    for name in ("colour", "novelty", "cleanness", "layout"):
        made[f"verify_{name}"] = measured(np.round(rng.beta(5, 2, count), 4), verified)
    return conform(pl.DataFrame(made))


def write_invented(folder: Path, rows: int) -> None:
    """A dataset's folder of invented rows, without media; one that is there is used again."""
    if (folder / "manifest.json").exists():
        return
    files = []
    for number, start in enumerate(range(0, rows, PER_PART)):
        path = folder / "rows" / f"part-{number:05d}.parquet"
        write_rows(invented(start, min(PER_PART, rows - start)), path)
        files.append({"path": f"rows/{path.name}", "bytes": path.stat().st_size, "sha256": "", "entries": PER_PART})
    curation = CurationSettings().model_dump(mode="json")
    columns = {name: str(kind) for name, kind in pl.read_parquet_schema(path).items()}
    said = {"format": FORMAT, "files": files, "curators": {}, "parameters": {"curation": curation}, "pairs": rows}
    write_json(folder / "manifest.json", {**said, "columns": columns})


def measured_command(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Runs `kiwi data funnel` on its own: seconds, those of the processors, peak resident bytes, and rows kept."""
    command = [sys.executable, "-m", "kiwi", "data", "funnel", "--dataset", str(folder), "--json", *arguments]
    with tempfile.TemporaryFile("w+") as out:
        started = time.perf_counter()
        process = os.posix_spawn(
            command[0], command, os.environ | {"POLARS_MAX_THREADS": "2"},
            file_actions=[(os.POSIX_SPAWN_DUP2, out.fileno(), 1)],
        )  # fmt: skip
        _, status, used = os.wait4(process, 0)
        seconds = time.perf_counter() - started
        out.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        said = json.load(out)
    books = said if isinstance(said, list) else said["after"]
    worked = round(used.ru_utime + used.ru_stime, 2)
    found = {"seconds": round(seconds, 2), "cpu_seconds": worked, "peak_bytes": used.ru_maxrss * 1024}
    found["kept"] = books[-1]["kept"]
    return found | {"unmeasured": sum(entry.get("unmeasured", 0) for entry in books)}


def row_by_row(folder: Path, share: float) -> float:
    """Seconds for all rows if they were counted as dictionaries, measured on a share of them."""
    from kiwi.dataset.reader import read_rows
    from kiwi.dataset.statistics import funnel_of_counts

    rows = read_rows(folder, ["status", "stage", "reason", "score_overall"])
    some = rows.head(int(rows.height * share))
    started = time.perf_counter()
    counts: dict[tuple[str, str, str], int] = {}
    for row in some.iter_rows(named=True):
        left = row["score_overall"] is not None and row["score_overall"] < 8
        key = ("rejected", "score", "x") if left else (row["status"], row["stage"], row["reason"])
        counts[key] = counts.get(key, 0) + 1
    funnel_of_counts([(*key, count) for key, count in counts.items()])
    return (time.perf_counter() - started) / share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "funnel.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kiwi-funnel-") as temporary:
        folder = arguments.folder or Path(temporary)
        started = time.perf_counter()
        write_invented(folder, arguments.rows)
        print(f"{arguments.rows:,} rows after {time.perf_counter() - started:.0f} s")
        size = sum(path.stat().st_size for path in (folder / "rows").glob("*"))
        cases = {}
        for name, asked in CASES.items():
            found = cases[name] = measured_command(folder, asked)
            took = f"{found['seconds']:>6.2f} s, {found['cpu_seconds']:>5.2f} s of processors"
            print(f"{name:<16} {took} {found['peak_bytes'] / 1e9:>6.2f} GB {found['kept']:>10,} kept")
        slow = row_by_row(folder, 0.01)
        print(f"{'row by row':<16} {slow:>6.2f} s (reckoned from a hundredth, reading apart)")
    from machine import machine

    said = {"rows": arguments.rows, "bytes_on_disk": size, "limits": {"seconds": SECONDS, "bytes": BYTES}}
    said |= {
        "load_average": round(os.getloadavg()[0], 1),
        "cases": cases,
        "row_by_row_seconds": round(slow, 2),
        "polars": pl.__version__,
        "polars_threads": 2,
    }
    write_json(arguments.out, {"machine": machine(), **said})
    print(f"written to {arguments.out.name}")
    over = [name for name, found in cases.items() if found["seconds"] > SECONDS or found["peak_bytes"] > BYTES]
    if over:
        raise SystemExit(f"over {SECONDS:g} s or {BYTES / 1e9:g} GB: {', '.join(over)}")


if __name__ == "__main__":
    main()
