"""How long compiling and submitting a pipeline take, beside their floors, and how large its specification is.

Compiling runs in a process of its own, as `kiwi pipeline submit` does it; its floor is a process that imports kfp's
compiler and does nothing. The ratio is of processor time, which other work on the machine disturbs less. Submitting is
what follows, against the tests' fake of the pipelines server (no cluster was at hand), so the server's own time is not
in it; its floor is one bare request with the same body.

    python benchmarks/compiling.py [--repeats 5] [--profile prod]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "compiling.json"
PIPELINES = ("end_to_end", "refvie", "curriculum", "evaluation", "retrain")
IMAGE = "registry.example/kiwi:0123456789abcdef0123456789abcdef01234567"
FLOOR = "from kfp import compiler, kubernetes"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", default="prod")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), options.profile, options.repeats)
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    RESULTS.write_text(json.dumps({"machine": machine, "profile": options.profile, **found}, indent=1) + "\n")
    print(RESULTS.read_text())


def measured(folder: Path, profile: str, repeats: int) -> dict[str, Any]:
    from kiwi.cluster.submitting import WORKFLOW_LIMIT

    floor, floor_work = of_process(("-c", FLOOR), repeats)
    pipelines: dict[str, Any] = {}
    for name in PIPELINES:
        out = folder / f"{name}.yaml"
        arguments = ("-m", "kiwi", "pipeline", "compile", name, "--profile", profile, "--out", str(out))
        spent, work = of_process(arguments, repeats)
        size = out.stat().st_size
        pipelines[name] = {
            "seconds": round(spent, 2), "processor_seconds": round(work, 2),
            "times_the_floor": round(work / floor_work, 2), "bytes": size,
            "share_of_limit": round(size / WORKFLOW_LIMIT, 3),
        }  # fmt: skip
    return {
        "repeats": repeats,
        "import_kfp": {"seconds": round(floor, 2), "processor_seconds": round(floor_work, 2)},
        "compile": pipelines,
        "submit": submitting(folder / "end_to_end.yaml", repeats),
    }


def submitting(compiled: Path, repeats: int) -> dict[str, Any]:
    """Reading the specification and starting the run, beside one bare request with the same body."""
    import requests

    from kiwi.cluster.api import Address, Cluster
    from kiwi.cluster.submitting import Place, read_specification, submit
    from kiwi.presets import build

    configuration = build("tiny", workspace=Path("/work/demo"), tracking_uri="http://mlflow:5000")
    place = Place("kiwi", "kiwi-pipelines", "s3://kiwi/pipelines")
    with fake_kfp().serving() as fake:
        cluster = Cluster(Address(fake.url), "kiwi")
        cluster.experiment(configuration.experiment)
        spec = read_specification(compiled)
        body = {
            "display_name": "demo", "pipeline_spec": spec,
            "runtime_config": {"parameters": {"config": configuration.canonical()}},
        }  # fmt: skip
        bare = seconds(lambda: requests.post(f"{fake.url}/apis/v2beta1/runs", json=body, timeout=30), repeats)
        read = seconds(lambda: read_specification(compiled), repeats)
        sent = seconds(lambda: submit(cluster, "demo", spec, place, configuration), repeats)
        assert len(fake.runs) == 2 * (repeats + 1)
    return {
        "read_specification_ms": round(1000 * read, 1), "submit_ms": round(1000 * sent, 1),
        "bare_request_ms": round(1000 * bare, 1),
    }  # fmt: skip


def fake_kfp() -> ModuleType:
    place = REPOSITORY / "tests" / "unit" / "cluster" / "fake_kfp.py"
    spec = importlib.util.spec_from_file_location("fake_kfp", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_kfp"] = module
    spec.loader.exec_module(module)
    return module


def seconds(action: Callable[[], object], repeats: int) -> float:
    """The median of `repeats`, after one that fills the caches."""
    action()
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def of_process(arguments: tuple[str, ...], repeats: int) -> tuple[float, float]:
    """Medians of the time on the clock and of the processor's time of a process."""
    work: list[float] = []

    def run() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        work.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    return seconds(run, repeats), statistics.median(work[1:])


def process(*arguments: str) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KIWI_")}
    subprocess.run(
        [sys.executable, *arguments], check=True, capture_output=True, cwd=REPOSITORY,
        env={**kept, "KIWI_IMAGE": IMAGE, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
