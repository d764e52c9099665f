"""The life of a run in its work folder: claim it, record it, close it; one run at a time, resumed where it stopped."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError
from kiwi.tracking.server import locked
from kiwi.workspace import Workspace, read_json, write_json

Status = Literal["running", "finished", "failed", "interrupted"]
Kind = Literal["new", "resumed", "again"]
CLUSTER = "kfp"
DATASETS = "process"  # the backend of `kiwi data build`, which trains nothing
PROBE = ".writable."  # and a process number: a file that is there for an instant


class AtWork(UsageError):  # noqa: N818
    """Another process holds the work folder."""


@dataclass(frozen=True)
class Attempt:
    """One go at a run.

    Attributes:
        kind: "new"; "resumed" (the one before did not finish); "again" (it did, and what is unchanged is reused).
    """

    id: str
    kind: Kind
    configuration: RunConfiguration

    @property
    def workspace(self) -> Workspace:
        return Workspace.of(self.configuration)


@contextmanager
def claim(configuration: RunConfiguration, backend: str, id: str | None = None) -> Iterator[Attempt]:
    """Takes the work folder for one attempt, and writes run.json and configuration.json into it.

    The claim is held by a lock of this process, so it ends with the process, however that ends.

    Args:
        id: the attempt's, where an orchestrator gave it one.

    Raises:
        UsageError: the folder is not writable, holds something else, holds a run of another configuration, or
            another process is running in it.
    """
    workspace = Workspace.of(configuration)
    check_writable(workspace.root)
    with _locked(workspace.root):
        kind = _check_holder(workspace, configuration, backend)
        attempt = Attempt(id or _new_id(configuration), kind, configuration)
        _record_start(attempt, backend)
        yield attempt


def record_end(workspace: Workspace, status: Status, id: str | None = None) -> dict[str, Any]:
    """Closes the attempt `id` in run.json, the newest where None, with its status and time; returns the record.

    On a cluster another attempt may have begun in the same folder meanwhile: the record as a whole stays the newest's.
    """
    with _record_locked(workspace):
        record: dict[str, Any] = read_json(workspace.run_record)
        ended = {"status": status, "finished": time.time()}
        for attempt in record["attempts"]:
            if attempt["id"] == (id or record["id"]):
                attempt.update(ended)
        if id in (None, record["id"]):
            record.update(ended)
        write_json(workspace.run_record, record)
    return record


def _record_locked(workspace: Workspace) -> AbstractContextManager[None]:
    """Held while run.json is read and written: two attempts of a cluster may end, or begin, at the same moment."""
    return locked(workspace.root / ".record.lock")


def close_run(configuration: RunConfiguration, state: str, *, whole: bool = True) -> None:
    """What the exit task does after success and failure alike: the report once more, now with the decision and the
    timings; the summary of a run that succeeded; then the records to MLflow, which stay on disk where it is away.

    Args:
        state: KFP's final status of the pipeline, "SUCCEEDED" or another.
        whole: the pipeline was the end-to-end one; a part of it leaves no summary.
    """
    from kiwi.reports import write_report
    from kiwi.summary import write_summary
    from kiwi.tracking import TrackingError, send, task_run

    succeeded = state == "SUCCEEDED"
    try:
        with task_run(configuration, "finish") as task:
            task.params({"state": state})
            write_report(configuration, task)
            if succeeded and whole:
                write_summary(configuration)
    finally:
        _record_end_of_pods(configuration, "finished" if succeeded else "failed")
        try:
            send(configuration, "finished" if succeeded else "failed")
        except TrackingError as error:
            print(f"records are kept in {Workspace.of(configuration).records}: {error}")


def close_stopped_run(configuration: RunConfiguration) -> None:
    """What `kiwi run` does for a run that was stopped before its end, in place of the exit task: the report and the
    summary of what there is, both of which say where it broke off."""
    from kiwi.reports import write_report
    from kiwi.summary import write_summary_so_far
    from kiwi.tracking import task_run

    write_summary_so_far(configuration)
    with task_run(configuration, "report") as task:
        write_report(configuration, task)


def _record_end_of_pods(configuration: RunConfiguration, status: Status) -> None:
    """On a cluster no process waits for the run's end; its exit task is the last that could write it down."""
    from kiwi.tracking import attempt_of

    workspace = Workspace.of(configuration)
    if workspace.run_record.exists() and read_json(workspace.run_record)["backend"] == CLUSTER:
        record_end(workspace, status, attempt_of(configuration))


def _new_id(configuration: RunConfiguration) -> str:
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in configuration.workdir.name) or "run"
    return f"{name.lstrip('-_') or 'run'}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"


def check_writable(root: Path) -> None:
    """Raises UsageError for a work folder that is a file or that cannot be written; makes it where it is not there."""
    remedy = "name a folder that you can write to with --workdir"
    if root.exists() and not root.is_dir():
        raise UsageError(f"work folder {root} is a file", remedy)
    probe = root / f"{PROBE}{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"work folder {root} is not writable: {error.strerror}", remedy) from None


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with open(root / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise AtWork(
                f"another run is at work in {root} (process {holder})",
                "wait for it, stop it, or name another folder with --workdir",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _check_holder(workspace: Workspace, configuration: RunConfiguration, backend: str) -> Kind:
    """A folder of datasets alone (DATASETS) takes other settings too: what they share is found again."""
    root = workspace.root
    if not workspace.run_record.exists():
        names = sorted(path.name for path in root.iterdir() if path.name not in (".lock", ".record.lock"))
        others = [name for name in names if not name.startswith(PROBE)]  # of somebody who starts at the same moment
        if others:
            raise UsageError(
                f"work folder {root} is not empty and holds no run ({', '.join(others[:3])})",
                "name a new or empty folder with --workdir",
            )
        return "new"
    record = read_json(workspace.run_record)
    datasets = backend == DATASETS and record["backend"] == DATASETS
    if record["configuration"] != _holder_identity(configuration) and not datasets:
        said = read_json(workspace.configuration) if workspace.configuration.exists() else {}
        changed = "; ".join(_differences(said, configuration.model_dump(mode="json"))[:3])
        raise UsageError(
            f"work folder {root} holds another run, with other settings ({changed or 'unknown'})",
            "name another folder with --workdir, or remove this one",
        )
    return "again" if record["status"] == "finished" else "resumed"


def _holder_identity(configuration: RunConfiguration) -> str:
    """The run's identity without the content of its pairs list: a list that was mended is no other run."""
    source = configuration.source.model_copy(update={"listing_sha256": None})
    return configuration.model_copy(update={"source": source}).identity()


def _record_start(attempt: Attempt, backend: str) -> None:
    workspace = attempt.workspace
    started = time.time()
    _forget_verdict(workspace, backend)
    write_json(workspace.configuration, attempt.configuration.model_dump(mode="json"))
    now = {"id": attempt.id, "started": started, "finished": None, "status": "running"}
    said = {**now, "configuration": _holder_identity(attempt.configuration), "backend": backend}
    with _record_locked(workspace):
        attempts = read_json(workspace.run_record)["attempts"] if workspace.run_record.exists() else []
        write_json(workspace.run_record, {**said, "attempts": [*attempts, now]})


def _forget_verdict(workspace: Workspace, backend: str) -> None:
    """An earlier attempt's verdict is not this one's; but on a cluster one that is still at work needs it."""
    attempts = read_json(workspace.run_record)["attempts"] if workspace.run_record.exists() else []
    if backend == CLUSTER and any(attempt["status"] == "running" for attempt in attempts):
        return
    for verdict in (workspace.decision, workspace.summary):
        verdict.unlink(missing_ok=True)


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    """`source.seed: 0, now 1` for every setting that differs."""
    ignored = {"workspace", "store", "tracking_uri", "experiment", "model_name", "threads", "source.listing_sha256"}
    if where in ignored or old == new or (where.startswith("trainer.") and where != "trainer.precision"):
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line
            for key in keys
            for line in _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for index, (was, now) in pairs for line in _differences(was, now, f"{where}.{index}")]
    return [f"{where}: {str(old)[:60]}, now {str(new)[:60]}"]
