"""From records to MLflow runs: one parent run an attempt, one child a task, sent as often as one likes.

What was sent is remembered by byte offset in `sent.json` beside the records. Runs are found by their tags before
they are made, and MLflow's own keys absorb a metric that is sent twice, so a kill between sending and remembering
leaves no double. A work folder that was copied gets runs of its own: its original goes on with the former ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi.configuration import RunConfiguration, canonical_json, digest
from kiwi.tracking.records import TaskRecord, attempt_of, read_events, read_record
from kiwi.tracking.redaction import redacted
from kiwi.tracking.server import (
    Locked,
    TrackingUnavailable,
    answers,
    connect,
    experiment_id,
    locked,
    tag_text,
    tracking_uri,
)
from kiwi.workspace import Workspace, read_json, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 900
STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED", "running": "RUNNING"}
DATASET_TAGS = ("dataset.version", "dataset.revision", "dataset.digest")


def send(configuration: RunConfiguration, status: str | None = None) -> dict[str, Any]:
    """Sends all that was recorded and not yet sent; harmless to repeat, safe beside another sender.

    Args:
        status: "finished" or "failed" closes the parent run (the exit task's and `kiwi run`'s last call).

    Returns {"run_id": the parent's, "experiment_id", "tasks": children, "sent": events sent by this call}.
    Raises TrackingUnavailable within about 30 s when the server is away; nothing is lost then.
    """
    with _delivery(configuration) as delivery:
        records = delivery.records()
        sent = sum(delivery.send_task(stem, record) for stem, record in records.items())
        delivery.spread_dataset_tags(records)
        delivery.close_killed(records)
        if status is not None:
            delivery.close(status)
    return {"run_id": delivery.parent, "experiment_id": delivery.experiment, "tasks": len(records), "sent": sent}


def task_mlflow_run(configuration: RunConfiguration, stem: str) -> tuple[str, str]:
    """The MLflow run of a task of this attempt, made at need: (run id, its artifact address).

    For what must be in MLflow at once, such as a model's files; everything else goes through the record.
    """
    with _delivery(configuration) as delivery:
        run_id = delivery.child(stem, delivery.records().get(stem))
        return run_id, str(delivery.client.get_run(run_id).info.artifact_uri)


def parent_run_id(configuration: RunConfiguration) -> str | None:
    """The MLflow parent run of this attempt as far as it was sent; asks no server."""
    found = _state(_folder(configuration)).get("parent")
    return str(found) if found else None


def _folder(configuration: RunConfiguration) -> Path:
    folder = Workspace.of(configuration).records / attempt_of(configuration)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _state(folder: Path) -> dict[str, Any]:
    path = folder / "sent.json"
    state: dict[str, Any] = read_json(path) if path.exists() else {}
    state.setdefault("tasks", {})
    return state


@contextmanager
def _delivery(configuration: RunConfiguration) -> Iterator[_Delivery]:
    """The one sender of an attempt, its parent run at hand."""
    uri = tracking_uri(configuration)
    client = connect(uri)
    folder = _folder(configuration)
    with _turn(folder), answers(uri):
        yield _Delivery(client, configuration, folder)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One sender at a time; the other's turn may take long where much is to be sent."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".send.lock", seconds=60.0))
        except Locked as error:
            raise TrackingUnavailable(f"another sender is at work: {error.message}", error.remedy) from error
        yield


class _Delivery:
    """One sender at work: the client, what was sent so far, and the parent run. Held under the attempt's lock."""

    def __init__(self, client: MlflowClient, configuration: RunConfiguration, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.state = _state(folder)
        uri = tracking_uri(configuration)
        if self.state.get("uri") != uri:  # another server knows nothing of what the former was sent
            self.state = {"uri": uri, "tasks": {}}
        self.experiment = experiment_id(client, configuration)
        if (parent := self.state.get("parent")) and not self._owns(parent, configuration.workdir.absolute()):
            self.state = {"uri": uri, "tasks": {}}  # all is sent anew
        self.parent = self.state.get("parent") or self._open_parent(configuration)

    def records(self) -> dict[str, TaskRecord]:
        return {
            path.stem: record
            for path in sorted(self.folder.glob("*.jsonl"))
            if (record := read_record(path)) is not None
        }

    def remember(self) -> None:
        write_json(self.folder / "sent.json", self.state)

    def _owns(self, run_id: str, home: Path) -> bool:
        """Whether the run is there and of this work folder. False where the database was put away, and where the
        folder is a copy whose original is still there: both would write into one run. A folder that was moved keeps
        its run."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if str(run.info.lifecycle_stage) != "active":
            return False
        former = run.data.tags.get("kiwi.workspace")
        if former is None or Path(former).absolute() == home or os.environ.get("MLFLOW_RUN_ID"):
            return True
        original = Path(former) / self.folder.absolute().relative_to(home) / "sent.json"
        mine = self.folder / "sent.json"
        if original.exists() and not original.samefile(mine) and read_json(original).get("parent") == run_id:
            return False
        self.client.set_tag(run_id, "kiwi.workspace", str(home))
        return True

    def _open_parent(self, configuration: RunConfiguration) -> str:
        """The attempt's parent run: injected, found by its tags, or made."""
        tags = {
            "kiwi.run_id": self.folder.name,
            "kiwi.kind": "pipeline",
            "kiwi.workspace": str(configuration.workdir.absolute()),
            "kiwi.configuration": configuration.identity(),
            "kiwi.preset": configuration.preset,
        }
        run_id = os.environ.get("MLFLOW_RUN_ID") or self._find(tags, ("kiwi.run_id", "kiwi.kind", "kiwi.workspace"))
        if run_id is None:
            firsts = [record.started for record in self.records().values()]
            started = int(min(firsts) * 1000) if firsts else None
            run = self.client.create_run(
                self.experiment,
                start_time=started,
                run_name=self.folder.name,
                tags={**tags, "mlflow.source.name": "kiwi run"},
            )
            run_id = str(run.info.run_id)
        said = redacted(configuration.model_dump(mode="json"))  # an address may hold a password
        params = {**_flat(said), "configuration": configuration.identity()}
        _log(self.client, run_id, params=params, tags=tags)
        self.client.log_dict(run_id, said, "configuration.json")
        self.state["parent"] = run_id
        self.remember()
        return run_id

    def _find(self, tags: dict[str, str], by: Iterable[str]) -> str | None:
        """A run that bears these tags, such as one that was made just before a kill."""
        said = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in by)
        found = self.client.search_runs([self.experiment], said, max_results=1)
        return str(found[0].info.run_id) if found else None

    def child(self, stem: str, record: TaskRecord | None) -> str:
        """The MLflow run of one task, made at need."""
        known = self.state["tasks"].setdefault(stem, {"offset": 0})
        if known.get("run_id"):
            return str(known["run_id"])
        tags = {
            "mlflow.parentRunId": self.parent,
            "kiwi.run_id": self.folder.name,
            "kiwi.kind": "task",
            "kiwi.task": stem,
        }
        run_id = self._find(tags, ("mlflow.parentRunId", "kiwi.task"))
        if run_id is None:
            started = int(record.started * 1000) if record else None
            run_id = self.client.create_run(self.experiment, started, tags, run_name=stem).info.run_id
        known["run_id"] = run_id
        self.remember()
        return str(run_id)

    def send_task(self, stem: str, record: TaskRecord) -> int:
        """Sends one task's unsent events in order; returns how many there were."""
        run_id = self.child(stem, record)
        known = self.state["tasks"][stem]
        events, offset = read_events(self.folder / f"{stem}.jsonl", known["offset"])
        if not events:
            return 0
        parcel = _Parcel(params=dict(known.get("params", {})))
        for event in events:
            parcel.add(event)
        for path, folder in parcel.artifacts:
            self._attach(run_id, path, folder, parcel.tags)
        if record.notes:
            parcel.tags["kiwi.notes"] = " · ".join(record.notes)
        if record.error:
            parcel.tags["kiwi.error"] = record.error
        if record.finished is not None:
            parcel.metrics.append(("seconds", record.seconds, int(record.finished * 1000), record.tries - 1))
        _log(self.client, run_id, parcel.metrics, parcel.fresh, parcel.tags)
        if record.finished is not None:
            self.client.set_terminated(run_id, STATUS[record.status], end_time=int(record.finished * 1000))
        elif known.get("status") not in (None, "running"):  # tried again
            self.client.update_run(run_id, status="RUNNING")
        known.update(offset=offset, params=parcel.params, status=record.status if record.finished else "running")
        self.remember()
        return len(events)

    def _attach(self, run_id: str, path: Path, folder: str, tags: dict[str, str]) -> None:
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), folder or path.name)
        elif path.exists():
            self.client.log_artifact(run_id, str(path), folder or None)
        else:
            tags[f"kiwi.missing.{path.name}"] = str(path)

    def spread_dataset_tags(self, records: dict[str, TaskRecord]) -> None:
        """Gives the published dataset's version and commit to the parent and to every task that began after it."""
        publishers = [record for record in records.values() if "dataset.revision" in record.tags and record.finished]
        if not publishers:
            return
        publisher = min(publishers, key=lambda record: record.finished or 0.0)
        tags = {key: publisher.tags[key] for key in DATASET_TAGS if key in publisher.tags}
        mark = digest(tags)
        if self.state.get("dataset") != mark:
            _log(self.client, self.parent, tags=tags)
            self.state["dataset"] = mark
        for stem, record in records.items():
            known = self.state["tasks"][stem]
            if record.started >= (publisher.finished or 0.0) and known.get("dataset") != mark:
                _log(self.client, known["run_id"], tags=tags)
                known["dataset"] = mark
        self.remember()

    def close_killed(self, records: dict[str, TaskRecord]) -> None:
        """Ends the MLflow runs of tasks whose process is gone without a word."""
        for stem, record in records.items():
            known = self.state["tasks"][stem]
            if record.status == "killed" and known.get("status") != "killed":
                self.client.set_terminated(known["run_id"], STATUS["killed"], end_time=int(record.heard * 1000))
                known["status"] = "killed"
                self.remember()

    def close(self, status: str) -> None:
        """Ends the parent run, unless its end belongs to whoever injected it."""
        if self.state.get("closed") != status and not os.environ.get("MLFLOW_RUN_ID"):
            self.client.set_terminated(self.parent, STATUS[status])
        self.state["closed"] = status
        self.remember()


@dataclass
class _Parcel:
    """A task's events sorted into what MLflow takes. `params` are all that were ever sent, `fresh` the new ones."""

    params: dict[str, str]
    fresh: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: list[tuple[Path, str]] = field(default_factory=list)

    def add(self, event: dict[str, Any]) -> None:
        kind, at = event["event"], int(event["time"] * 1000)
        if kind == "metrics":
            self.metrics += [(key, value, at, event["step"] or 0) for key, value in event["metrics"].items()]
        elif kind == "params":
            for key, value in event["params"].items():
                text = tag_text(value)
                if self.params.setdefault(key, text) == text:
                    self.fresh[key] = text
                else:  # MLflow's parameters are written once; a later try's other value is kept as a tag
                    self.tags[f"retried.{key}"] = text
        elif kind == "tags":
            self.tags.update(event["tags"])
        elif kind == "artifact":
            self.artifacts.append((Path(event["path"]), event["folder"]))


def _log(
    client: MlflowClient,
    run_id: str,
    metrics: list[tuple[str, float, int, int]] | None = None,
    params: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    """Logs in batches within MLflow's limits (1000 metrics, 100 parameters, 100 tags a request).

    MLflow writes a parameter once: where the run holds another value, this one becomes the tag `retried.NAME`.
    """
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException

    rows = [Metric(_key(key), value, at, step) for key, value, at, step in metrics or ()]
    told = [Param(_key(key), tag_text(value)) for key, value in (params or {}).items()]
    marks = [RunTag(_key(key), tag_text(value)) for key, value in (tags or {}).items()]
    while rows or told or marks:
        try:
            client.log_batch(run_id, rows[:BATCH], told[:50], marks[:50])
        except MlflowException as error:
            if "Changing param values is not allowed" not in str(error):
                raise
            held = client.get_run(run_id).data.params
            others = [param for param in told if held.get(param.key, param.value) != param.value]
            if not others:
                raise
            told = [param for param in told if param not in others]
            marks += [RunTag(_key(f"retried.{param.key}"), param.value) for param in others]
            continue
        rows, told, marks = rows[BATCH:], told[50:], marks[50:]


def _key(name: str) -> str:
    """A name MLflow takes: letters, digits, and _ - . / : and blanks."""
    return re.sub(r"[^\w./: -]", "_", name)[:250]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted parameters; lists stay one JSON text."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat.update(_flat(item, f"{prefix}{key}."))
        else:
            flat[prefix + key] = item if isinstance(item, str) else canonical_json(item)
    return flat
