"""What orchestration adds to a run: subprocesses and containers against the same functions in one process.

    python benchmarks/orchestration.py [--backend local]... [--set KEY=VALUE]... [--folder DIR] [--out FILE]

One run of each backend in an empty folder, then the same functions one after the other in a process of their own.
Recorded for each: the whole, the time with no task at work, and from `kiwi` to the first task's first line. Besides:
how long a component's process needs until its work starts (interpreter, KFP's executor and the imports of its body),
and how long compiling takes. `docker` wants the image of this checkout (`make images`) or KIWI_IMAGE.
"""

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine

from kiwi.configuration import RunConfiguration
from kiwi.dataset.schema import CURATION_STAGES
from kiwi.presets import build
from kiwi.tracking import read_records, silent
from kiwi.workspace import Workspace, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["source.clips=60", "source.images=60", "benchmark.samples_per_kind=2", "benchmark.sampling_steps=2"]
SMALL += [f"stages.stage{number}.steps=4" for number in (1, 2, 3)]
EXECUTOR = "import kfp\nfrom kfp import dsl\nfrom kfp.dsl import *\nimport kfp.dsl.executor_main\n"
REPEATS = 3


def pipeline_times(backend: str, workdir: Path, overrides: list[str]) -> dict:
    """Runs the pipeline; seconds of the whole, until the first task's first line, and with no task at work."""
    options = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "kiwi", "run", "--backend", backend, "--workdir", str(workdir), *options]
    started = time.time()
    subprocess.run(command, check=True)
    whole = time.time() - started
    records = read_records(workdir, read_json(Workspace(workdir).run_record)["id"])
    covered = busy([(record.started, record.finished) for record in records])
    return {
        "seconds": round(whole, 2),
        "first_line": round(records[0].started - started, 2),
        "no_task_at_work": round(whole - covered, 2),
        "no_task_at_work_per_task": round((whole - covered) / len(records), 2),
        "tasks": len(records),
        "task_seconds": {record.label: round(record.seconds, 2) for record in records},
    }


def busy(spans: list[tuple[float, float]]) -> float:
    """Seconds covered by at least one of the (start, end) spans."""
    total, reached = 0.0, 0.0
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def process_times(workdir: Path, overrides: list[str]) -> dict:
    """The same functions in one new process, shards one after the other; its interpreter's start counts."""
    command = [sys.executable, __file__, "--in-process", str(workdir)]
    started = time.time()
    options = [part for override in overrides for part in ("--set", override)]
    done = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True)
    return {"seconds": round(time.time() - started, 2), "task_seconds": json.loads(done.stdout)}


def in_process(workdir: Path, overrides: list[str]) -> dict[str, float]:
    configuration = build(
        "tiny", workspace=workdir, tracking_uri=f"sqlite:///{workdir.parent / 'mlflow.db'}", overrides=overrides
    )
    write_json(workdir / "configuration.json", configuration.model_dump(mode="json"))
    write_json(workdir / "run.json", {"id": "process", "started": time.time(), "finished": None, "backend": "none"})
    times: dict[str, float] = {}
    for name, call in doors(configuration):
        started = time.perf_counter()
        call()
        times[name] = round(time.perf_counter() - started, 2)
    return times


def doors(configuration: RunConfiguration):
    """(name, call) of every task, in the pipeline's order. Imports count: each call does its own."""
    from kiwi.benchmark.judge import judge_edits
    from kiwi.curation.deduplicate import deduplicate
    from kiwi.curation.finished import assemble
    from kiwi.curation.plan import plan_shards
    from kiwi.curation.stages import run_stage
    from kiwi.curation.unique_crops import unique_crops
    from kiwi.lineage import publish_dataset
    from kiwi.registry import decide, hold_candidate, promote_candidate, register
    from kiwi.registry.contest import benchmark_with_champion
    from kiwi.reports import write_report
    from kiwi.runs import close_run
    from kiwi.training import cache_latents as cache
    from kiwi.training import train_stage

    task = silent()
    shards = plan_shards(configuration, task)
    before, after = CURATION_STAGES[:4], CURATION_STAGES[5:-1]
    for stage in before:
        for shard in shards:
            yield f"{stage}-{shard}", lambda stage=stage, shard=shard: run_stage(configuration, stage, shard, task)
    yield "unique_crops", lambda: unique_crops(configuration, task)
    for stage in after:
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
    yield "finish", lambda: close_run(configuration, "SUCCEEDED", whole=False)


def start_times() -> dict[str, float]:
    """Component → median seconds of a process that does all that comes before its work, and none of it."""
    found = {}
    for file in sorted((ROOT / "components").glob("*/component.py")):
        body = next(node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef))
        imports = [ast.unparse(node) for node in ast.walk(body) if isinstance(node, (ast.Import, ast.ImportFrom))]
        found[file.parent.name] = _median([sys.executable, "-c", EXECUTOR + "\n".join(imports)], _KFP_RUNTIME="true")
    return found


def compile_times(folder: Path) -> dict[str, float]:
    """Profile → median seconds of `kiwi pipeline compile end_to_end`, a process and its imports included."""
    image = "registry.example/kiwi-gpu:" + "0" * 40
    command = [sys.executable, "-m", "kiwi", "pipeline", "compile", "end_to_end", "--out", str(folder / "out.yaml")]
    return {name: _median([*command, "--profile", name], KIWI_IMAGE=image) for name in ("local", "docker", "prod")}


def _median(command: list[str], **variables: str) -> float:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    once()  # a cold disk is no property of ours
    return round(statistics.median(once() for _ in range(REPEATS)), 2)


def measured(folder: Path, backends: list[str], overrides: list[str]) -> dict:
    said: dict = {"machine": machine(), "load_at_start": round(os.getloadavg()[0], 1), "overrides": overrides}
    said["before_work"] = start_times()
    said["compiling"] = compile_times(folder)
    said["one_process"] = process_times(folder / "process" / "run", overrides)
    for backend in backends:
        ran = pipeline_times(backend, folder / backend / "run", overrides)
        said[backend] = {**ran, "over_one_process": round(ran["seconds"] / said["one_process"]["seconds"], 2)}
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", action="append", choices=("local", "docker"), help="default: local")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folder", type=Path, help="an empty folder; default: a temporary one")
    parser.add_argument("--in-process", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "orchestration.json")
    arguments = parser.parse_args()
    overrides = arguments.overrides or SMALL
    if arguments.in_process:
        with open(os.dup(1), "w") as answer:
            os.dup2(2, 1)  # what the functions print is not the answer
            json.dump(in_process(arguments.in_process.absolute(), overrides), answer)
        return
    with tempfile.TemporaryDirectory(prefix="kiwi-benchmark-") as temporary:
        result = measured((arguments.folder or Path(temporary)).absolute(), arguments.backend or ["local"], overrides)
    write_json(arguments.out, result)
    print(f"one process  {result['one_process']['seconds']:7.1f} s")
    for backend in arguments.backend or ["local"]:
        of = result[backend]
        print(
            f"{backend:<12} {of['seconds']:7.1f} s, {of['over_one_process']:.2f} times as long; first line after"
            f" {of['first_line']:.1f} s; no task at work for {of['no_task_at_work_per_task']:.2f} s a task"
        )
    slowest = max(result["before_work"], key=lambda name: result["before_work"][name])
    print(f"before its work starts, at most {result['before_work'][slowest]:.2f} s ({slowest})")
    print(f"compiling {result['compiling']}\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
