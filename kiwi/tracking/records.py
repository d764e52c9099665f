"""Task records: what a task says while it works, as JSON lines in the workspace, and how they are read back.

A record needs no server, so no task is slowed or failed by one that is away. A line is appended in one write, so a
reader in another process sees whole lines, and a killed task leaves all it had said.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError, UsageError
from kiwi.tracking.logs import Throttle, log, scope
from kiwi.tracking.redaction import redacted
from kiwi.workspace import Workspace, read_json

PROGRESS_SECONDS = 0.2
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class TaskRun:
    """One task at work. Every method appends one event to the task's record; none raises for a server's sake."""

    def __init__(self, name: str, shard: int | None, path: Path | None) -> None:
        self.name = name
        self.shard = shard
        self._path = path
        self._last_progress = 0.0
        self._log_progress = Throttle()

    def params(self, params: Mapping[str, Any]) -> None:
        """What the task was told: values become text in MLflow."""
        self._append("params", params=dict(params))

    def metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Figures, at a `step` where they are a curve."""
        self._append("metrics", metrics={key: float(value) for key, value in metrics.items()}, step=step)

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Labels to search runs by, such as the dataset's commit."""
        self._append("tags", tags={key: str(value) for key, value in tags.items()})

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or folder to be attached when the record is sent; it must still be there then."""
        self._append("artifact", path=str(Path(path).absolute()), folder=folder)

    def progress(
        self, done: int, total: int, unit: str = "rows", note: str = "", kept: tuple[int, int] | None = None
    ) -> None:
        """How far the task is. May be called often: only one call in 0.2 s, and the last, is written.

        Args:
            kept: (rows kept, rows in) of a curation stage so far.
        """
        now = time.monotonic()
        if done < total and now - self._last_progress < PROGRESS_SECONDS:
            return
        self._last_progress = now
        said = {"kept": list(kept)} if kept is not None else {}
        self._append("progress", done=int(done), total=int(total), unit=unit, note=note, **said)

    def note(self, text: str) -> None:
        """One line for people, such as "reused"."""
        self._append("note", text=text)

    def sample(self, id: str, status: str, reason: str = "", detail: str = "") -> None:
        """What became of one sample. For the log alone: the rows of the dataset keep it."""
        if self._path is not None:
            level = "warning" if status == "failed" else "info"
            log("sample", level=level, sample=id, status=status, reason=reason or None, detail=detail or None)

    def _append(self, event: str, **said: Any) -> None:
        if self._path is None:
            return
        if event != "artifact":  # its path must stay the file's
            said = redacted(said)
        self._log(event, said)
        line = json.dumps({"event": event, "time": time.time(), **said}, ensure_ascii=False, default=str) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def _log(self, event: str, said: Mapping[str, Any]) -> None:
        if event == "progress" and said["done"] < said["total"] and not self._log_progress.due():
            return
        failed = said.get("status") == "failed"
        log(event, level="error" if failed else "info", **said)


def silent() -> TaskRun:
    """A task that records nothing, for tests and for the library without a run."""
    return TaskRun("silent", None, None)


def attempt_of(configuration: RunConfiguration) -> str:
    """The id of the attempt at work: KIWI_RUN_ID, else the workspace's run.json, else "manual"."""
    named = os.environ.get("KIWI_RUN_ID", "")
    record = Workspace.of(configuration).run_record
    if not named and record.exists():
        named = str(read_json(record).get("id", ""))
    return _checked(named or "manual", "run id")


@contextmanager
def task_run(configuration: RunConfiguration, name: str, shard: int | None = None) -> Iterator[TaskRun]:
    """Opens the record of one task and closes it as finished, or as failed with the error's first line.

    Under torchrun only rank 0 records. A task that is tried again appends to the same record. Every event is a line of
    the log as well (kiwi/tracking/logs.py). The same task of another run in the same work folder is waited for.
    """
    if os.environ.get("RANK", "0") != "0":
        yield TaskRun(name, shard, None)
        return
    stem = _checked(name, "task name") + ("" if shard is None else f"-{shard}")
    folder = Workspace.of(configuration).records / attempt_of(configuration)
    folder.mkdir(parents=True, exist_ok=True)
    task = TaskRun(name, shard, folder / f"{stem}.jsonl")
    # The ranks of a training work for a task that is held already, maybe on another node.
    lock = None if "RANK" in os.environ else Workspace.of(configuration).locks / stem
    with scope(folder.name, name, shard):
        yield from _recorded(task, lock)


def _recorded(task: TaskRun, lock: Path | None) -> Iterator[TaskRun]:
    task._append("start", name=task.name, shard=task.shard, pid=os.getpid(), host=socket.gethostname())
    try:
        with nullcontext() if lock is None else _alone(lock, task):
            yield task
    except BaseException as error:
        said = str(error).strip().splitlines()
        remedy = error.remedy if isinstance(error, KiwiError) else ""
        task._append("end", status="failed", error=": ".join([type(error).__name__, *said[:1]]), remedy=remedy)
        raise
    task._append("end", status="finished", error="", remedy="")


@contextmanager
def _alone(lock: Path, task: TaskRun) -> Iterator[None]:
    """One process at a time at the same task of a work folder: two runs of one configuration may be under way on a
    cluster, and the second then finds what the first has made. The system frees the lock when its holder dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            task.note("waits for the same task of another run in this work folder")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _checked(name: str, what: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(f"{what} {name!r} cannot name a file", "use letters, digits, '.', '_' and '-'")
    return name


@dataclass
class TaskRecord:
    """A task as its record tells it. Times are seconds since 1970; `finished` is None while it runs.

    `status` is running, finished, failed, or killed (its process is gone and it never said how it ended).
    `metrics` are the latest values; `curves` hold (step, value) of those given with a step.
    """

    name: str
    shard: int | None
    status: str = "running"
    started: float = 0.0
    finished: float | None = None
    tries: int = 0
    progress: dict[str, Any] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    artifacts: list[tuple[str, str]] = field(default_factory=list)
    error: str = ""
    remedy: str = ""
    heard: float = 0.0

    @property
    def label(self) -> str:
        return self.name if self.shard is None else f"{self.name}-{self.shard}"

    @property
    def seconds(self) -> float:
        """Duration of the last try; up to now while it runs."""
        if self.finished is not None:
            return self.finished - self.started
        return (self.heard if self.status == "killed" else time.time()) - self.started


def read_records(root: Path, attempt: str) -> list[TaskRecord]:
    """All task records of one attempt under the workspace `root`, in the order of their start."""
    folder = Workspace(Path(root)).records / attempt
    records = [record for path in sorted(folder.glob("*.jsonl")) if (record := read_record(path)) is not None]
    return sorted(records, key=lambda record: (record.started, record.label))


def read_record(path: Path) -> TaskRecord | None:
    """One task's record; None where its process has not yet said that it started."""
    record: TaskRecord | None = None
    process: tuple[str, int] = ("", 0)
    for event in read_events(path)[0]:
        if event["event"] == "start":
            record = record or TaskRecord(event["name"], event["shard"])
            record.status, record.started, record.finished, record.error = "running", event["time"], None, ""
            record.progress = None
            record.tries += 1
            process = (event.get("host", ""), event.get("pid", 0))
        if record is not None:
            _apply(record, event)
    if record is not None and record.status == "running" and not _alive(*process):
        record.status = "killed"
    return record


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a record from byte `offset`, and the offset behind the last of them."""
    with open(path, "rb") as file:
        file.seek(offset)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line.strip()], offset + len(whole)


def _apply(record: TaskRecord, event: dict[str, Any]) -> None:
    record.heard = event["time"]
    kind = event["event"]
    if kind == "params":
        record.params.update(event["params"])
    elif kind == "metrics":
        record.metrics.update(event["metrics"])
        if event["step"] is not None:
            for key, value in event["metrics"].items():
                record.curves.setdefault(key, []).append((event["step"], value))
    elif kind == "tags":
        record.tags.update(event["tags"])
    elif kind == "artifact":
        record.artifacts.append((event["path"], event["folder"]))
    elif kind == "progress":
        record.progress = {key: event[key] for key in ("done", "total", "unit", "note", "kept") if key in event}
    elif kind == "note":
        record.notes.append(event["text"])
    elif kind == "end":
        record.status, record.finished, record.error = event["status"], event["time"], event["error"]
        record.remedy = event.get("remedy", "")


def _alive(host: str, pid: int) -> bool:
    """Whether the process may still run; one on another host is taken to."""
    if host != socket.gethostname() or pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
