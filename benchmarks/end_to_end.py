"""Time per task of a run, and the share that orchestration takes, against the same functions in one process.

    python benchmarks/end_to_end.py [--workdir DIR] [--set KEY=VALUE]... [--out FILE]

Runs `kiwi run` in an empty folder; then the same functions, one after the other, in this process in another one.
What the pipeline adds beside its tasks' own work: a process and its imports a task, KFP, and the runner's start.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kiwi.configuration import RunConfiguration
from kiwi.dataset.schema import CURATION_STAGES
from kiwi.presets import build
from kiwi.tracking import read_records, silent
from kiwi.workspace import Workspace, read_json, write_json


def pipeline_times(workdir: Path, overrides: list[str]) -> dict:
    """Runs the pipeline; seconds of the whole, of each task's own work, and of the time with no task at work."""
    options = [part for override in overrides for part in ("--set", override)]
    started = time.time()
    subprocess.run([sys.executable, "-m", "kiwi", "run", "--workdir", str(workdir), *options], check=True)
    whole = time.time() - started
    attempt = read_json(Workspace(workdir).run_record)["id"]
    records = read_records(workdir, attempt)
    covered = busy([(record.started, record.finished) for record in records])
    return {
        "seconds": round(whole, 2),
        "tasks": {record.label: round(record.seconds, 2) for record in records},
        "between_tasks": round(whole - covered, 2),
        "between_tasks_share": round((whole - covered) / whole, 4),
        "tasks_run": len(records),
    }


def busy(spans: list[tuple[float, float]]) -> float:
    """Seconds covered by at least one of the (start, end) spans."""
    total, reached = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def process_times(configuration: RunConfiguration) -> dict:
    """The same functions in this process, shards one after the other."""
    steps = list(doors(configuration))
    times: dict[str, float] = {}
    began = time.perf_counter()
    for name, call in steps:
        started = time.perf_counter()
        call()
        times[name] = round(time.perf_counter() - started, 2)
    return {"seconds": round(time.perf_counter() - began, 2), "tasks": times}


def doors(configuration: RunConfiguration):
    """(name, call) of every task, in the pipeline's order. Imports count: each call does its own."""
    from kiwi.benchmark.judge import judge_edits
    from kiwi.curation.deduplicate import deduplicate
    from kiwi.curation.plan import plan_shards
    from kiwi.curation.stages import run_stage
    from kiwi.dataset.assemble import assemble
    from kiwi.lineage import publish_dataset
    from kiwi.registry import decide, hold_candidate, promote_candidate, register
    from kiwi.registry.contest import benchmark_with_champion
    from kiwi.reports import write_report
    from kiwi.training import cache_latents as cache
    from kiwi.training import train_stage

    task = silent()
    shards = plan_shards(configuration, task)
    for stage in CURATION_STAGES[:-1]:
        for shard in shards:
            yield f"{stage}-{shard}", lambda stage=stage, shard=shard: run_stage(configuration, stage, shard, task)
    yield "deduplicate", lambda: deduplicate(configuration, task)
    yield (
        "publish_dataset",
        lambda: publish_dataset(configuration, Path(assemble(configuration, task)["path"]), task),
    )
    yield "cache_latents", lambda: cache(configuration, task)
    for stage in configuration.stages:
        yield f"train_{stage.name}", lambda stage=stage: train_stage(configuration, stage.name, task)
    yield "run_benchmark", lambda: benchmark_with_champion(configuration, task)
    yield "judge", lambda: judge_edits(configuration, task)
    yield "register_model", lambda: register(configuration, task)
    verdict = {"promote": promote_candidate, "hold": hold_candidate}
    yield "decide", lambda: verdict[decide(configuration, task)](configuration, task)
    yield "report", lambda: write_report(configuration, task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=None, help="an empty folder; default: a temporary one")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("end_to_end.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kiwi-benchmark-") as temporary:
        root = (arguments.workdir or Path(temporary)).absolute()
        piped = pipeline_times(root / "pipeline", arguments.overrides)
        direct = root / "process" / "run"
        configuration = build(
            "tiny",
            workspace=direct,
            tracking_uri=f"sqlite:///{root / 'process' / 'mlflow.db'}",
            overrides=arguments.overrides,
        )
        write_json(direct / "configuration.json", configuration.model_dump(mode="json"))
        write_json(direct / "run.json", {"id": "process", "started": time.time(), "finished": None, "backend": "none"})
        plain = process_times(configuration)
    result = {
        "machine": {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()},
        "overrides": arguments.overrides,
        "pipeline": piped,
        "one_process": plain,
    }
    write_json(arguments.out, result)
    print(f"{'task':<20} {'pipeline':>9} {'process':>9}")
    for name, seconds in piped["tasks"].items():
        print(f"{name:<20} {seconds:>9.2f} {plain['tasks'].get(name, float('nan')):>9.2f}")
    print(f"{'whole':<20} {piped['seconds']:>9.2f} {plain['seconds']:>9.2f}")
    print(f"with no task at work: {piped['between_tasks']:.1f} s, {piped['between_tasks_share']:.1%} of the run")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
