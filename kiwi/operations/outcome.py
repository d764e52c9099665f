"""How a run went, read from what it left in its work folder: the facts that alerts and figures are made of."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kiwi.configuration import RunConfiguration
from kiwi.tracking.records import TaskRecord, attempt_of, read_records
from kiwi.workspace import Workspace, read_json

Status = Literal["finished", "failed"]
CHAMPION = "champion"


@dataclass(frozen=True)
class Outcome:
    """One attempt at its end. What an earlier attempt left in the same folder is not in it.

    Attributes:
        last_success: seconds since 1970 of the newest attempt of this folder that finished; None where none has.
        dataset, stages, scores, decision, model: the files of tasks that finished in this attempt, else empty.
    """

    run: str
    workspace: str
    preset: str
    model_name: str
    status: Status
    started: float
    finished: float
    tracking_uri: str
    tasks: tuple[TaskRecord, ...] = ()
    last_success: float | None = None
    report: str | None = None
    dataset: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def broken(self) -> TaskRecord | None:
        """The task that failed or was killed first; the closing task only where no other did."""
        broken = [task for task in self.tasks if task.status in ("failed", "killed")]
        first = sorted(broken, key=lambda task: (task.name == "finish", task.finished or task.heard))
        return first[0] if first else None

    @property
    def verdict(self) -> Literal["promoted", "held", "waiting", "none"]:
        """What became of the candidate: "waiting" passed the gate and waits for people, "none" was not decided on."""
        names = {task.name for task in self.tasks if task.status == "finished"}
        if not self.decision or not names & {"promote", "hold"}:
            return "none"
        if self.decision.get("decision") == "promote" and "promote" in names:
            return "promoted" if CHAMPION in self.model.get("aliases", ()) else "waiting"
        return "held"

    @property
    def waits_for(self) -> str:
        """What a waiting candidate waits for, as the promotion said it."""
        return str((self.model.get("waits") or {}).get("why", "approval"))


def outcome_of(configuration: RunConfiguration, status: Status) -> Outcome:
    """Reads what the attempt left."""
    workspace = Workspace.of(configuration)
    attempt = attempt_of(configuration)
    tasks = tuple(read_records(workspace.root, attempt))
    done = {task.name for task in tasks if task.status == "finished"}
    record = _found(workspace.run_record)
    now = time.time()
    starts = [task.started for task in tasks] or [now]
    return Outcome(
        run=attempt,
        workspace=str(workspace.root),
        preset=configuration.preset,
        model_name=configuration.model_name,
        status=status,
        started=float(record["started"]) if record.get("id") == attempt else min(starts),
        finished=now,
        tracking_uri=configuration.tracking_uri,
        tasks=tasks,
        last_success=_last_success(record, attempt, status, now),
        report=str(workspace.report) if "report" in done or "finish" in done else None,
        dataset=_dataset(workspace) if "publish_dataset" in done else {},
        stages={
            stage.name: _found(workspace.root / "training" / f"{stage.name}.json")
            for stage in configuration.stages
            if f"train_{stage.name}" in done
        },
        scores=_found(workspace.root / "benchmark" / "scores.json") if "judge" in done else {},
        decision=_found(workspace.decision) if "decide" in done else {},
        model=_found(workspace.root / "model.json") if "register_model" in done else {},
    )


def _found(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found


def _dataset(workspace: Workspace) -> dict[str, Any]:
    said = _found(workspace.root / "dataset.json")
    manifest = _found(Path(said["path"]) / "manifest.json") if "path" in said else {}
    return {**manifest, **said}


def _last_success(record: dict[str, Any], attempt: str, status: Status, now: float) -> float | None:
    ended = [float(it["finished"]) for it in record.get("attempts", ()) if it["status"] == "finished"]
    if status == "finished":
        ended.append(now)
    return max(ended, default=None)
