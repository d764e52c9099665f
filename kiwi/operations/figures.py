"""A run's figures for Prometheus, as batch jobs give them: to a Pushgateway, or as a file for the textfile collector.

One group of figures a work folder: a newer run replaces the older one's, so runs do not pile up. The names and labels
are listed in docs/operations.md, and infra/k8s/base/monitoring.yaml and dashboard.json use them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from kiwi.configuration import digest
from kiwi.errors import KiwiError, UsageError
from kiwi.operations.deadline import within
from kiwi.operations.outcome import Outcome

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

GATEWAY, FOLDER = "KIWI_PUSHGATEWAY_URL", "KIWI_METRICS_FOLDER"
JOB = "kiwi"
SECONDS = 10.0

Sample = tuple[dict[str, str], float]
Figure = tuple[str, str, list[Sample]]


class FiguresError(KiwiError):
    """The figures could not be exported. Never a reason for a run to fail."""


def write_file(outcome: Outcome) -> Path | None:
    """Writes the figures whole into KIWI_METRICS_FOLDER, one file a work folder; None where it is not set."""
    folder = os.environ.get(FOLDER, "").strip()
    if not folder:
        return None
    from prometheus_client import write_to_textfile

    path = Path(folder) / f"kiwi-{digest(outcome.workspace)}.prom"
    try:
        write_to_textfile(str(path), registry(outcome))
    except OSError as error:
        raise FiguresError(f"{path} cannot be written: {error.strerror}", f"mend {FOLDER}") from None
    return path


def push(outcome: Outcome) -> None:
    """Puts the figures into the Pushgateway at KIWI_PUSHGATEWAY_URL; nothing where it is not set."""
    url = os.environ.get(GATEWAY, "").strip()
    if not url:
        return
    from prometheus_client import push_to_gateway

    host = _host(url)
    group = {"workspace": outcome.workspace}
    handler = _handler(url)
    address = url.replace(f"{urlsplit(url).netloc.rpartition('@')[0]}@", "") if "@" in url else url
    whole = registry(outcome)
    try:
        within(SECONDS, lambda: push_to_gateway(address, JOB, whole, group, timeout=SECONDS / 2, handler=handler))
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors; a timeout is one as well
        said = f"answers {error.code}" if hasattr(error, "code") else "does not answer"
        raise FiguresError(f"the Pushgateway at {host} {said}", "is it up, and may this pod reach it?") from None


def _host(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{GATEWAY} is no http:// or https:// address", "such as http://pushgateway:9091")
    return parts.hostname


def _handler(url: str) -> Any:
    """The way to push: with the user and password of the address where there are any."""
    from prometheus_client.exposition import basic_auth_handler, default_handler

    parts = urlsplit(url)
    if not parts.username:
        return default_handler

    def login(**call: Any) -> Any:
        return basic_auth_handler(
            **call, username=unquote(parts.username or ""), password=unquote(parts.password or "")
        )

    return login


def registry(outcome: Outcome) -> CollectorRegistry:
    """All figures of a run, each with the labels workspace, model and preset."""
    from prometheus_client import CollectorRegistry, Gauge

    common = {"workspace": outcome.workspace, "model": outcome.model_name, "preset": outcome.preset}
    whole = CollectorRegistry()
    for name, meaning, samples in figures(outcome):
        if not samples:
            continue
        gauge = Gauge(f"kiwi_{name}", meaning, [*common, *samples[0][0]], registry=whole)
        for labels, value in samples:
            gauge.labels(**common, **labels).set(value)
    return whole


def figures(outcome: Outcome) -> Iterator[Figure]:
    """(name, meaning, samples) of every figure; one that was not measured has no sample, never a zero."""
    yield from _run_figures(outcome)
    yield from _task_figures(outcome)
    yield from _result_figures(outcome)


def _run_figures(outcome: Outcome) -> Iterator[Figure]:
    went_well = outcome.status == "finished"
    yield "run_info", "The last run of this work folder.", [({"run": outcome.run}, 1.0)]
    yield "run_success", "1 where the last run finished, 0 where it failed.", [({}, float(went_well))]
    yield "run_seconds", "How long the last run took.", [({}, outcome.finished - outcome.started)]
    yield "run_finished_timestamp_seconds", "When the last run ended.", [({}, outcome.finished)]
    known: list[Sample] = [] if outcome.last_success is None else [({}, outcome.last_success)]
    yield "run_last_success_timestamp_seconds", "When a run last ended well.", known


def _task_figures(outcome: Outcome) -> Iterator[Figure]:
    named = [
        ({"task": task.name, "shard": "" if task.shard is None else str(task.shard)}, task) for task in outcome.tasks
    ]
    yield "task_seconds", "How long a task's last try took.", [(labels, task.seconds) for labels, task in named]
    yield "task_tries", "How often a task was tried.", [(labels, float(task.tries)) for labels, task in named]
    bad = ("failed", "killed")
    yield "task_failed", "1 where a task's last try failed.", [(it, float(task.status in bad)) for it, task in named]


def _result_figures(outcome: Outcome) -> Iterator[Figure]:
    counts = [({"outcome": "kept", "reason": ""}, float(outcome.dataset["quadruplets"]))] if outcome.dataset else []
    for kind in ("rejected", "failed"):
        for reason, count in outcome.dataset.get(kind, {}).items():
            counts.append(({"outcome": kind, "reason": str(reason)}, float(count)))
    yield "dataset_pairs", "Pairs of the dataset version by what became of them.", counts
    for name, meaning in (("loss_last", "A stage's last loss."), ("samples_per_second", "A stage's throughput.")):
        said = [({"stage": stage}, float(it[name])) for stage, it in outcome.stages.items() if it.get(name) is not None]
        yield f"training_{name}", meaning, said
    judged = [({"criterion": "overall"}, outcome.scores.get("overall"))]
    judged += [({"criterion": name}, value) for name, value in outcome.scores.get("criteria", {}).items()]
    yield (
        "benchmark_score",
        "The candidate's scores.",
        [(it, float(value)) for it, value in judged if value is not None],
    )
    if outcome.verdict != "none":
        verdicts = ("promoted", "held", "waiting")
        said = [({"verdict": name}, float(outcome.verdict == name)) for name in verdicts]
        yield "gate_verdict", "What became of the candidate.", said
