"""The summary of a run: the small JSON contract that programs read (`kiwi run --summary`)."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError
from kiwi.tracking import TaskRecord, attempt_of, read_records
from kiwi.workspace import Workspace, read_json, write_json

VERSION = ("version", "revision")
COUNTS = ("pairs", "quadruplets", "rejected", "failed")
STAGE = ("name", "steps", "loss_first", "loss_last", "samples_per_second", "seconds")
CLOSING = ("report", "finish")


@dataclass(frozen=True)
class Waiting:
    """Why a model that the gate let through is not the champion: a sentence, and the commands that go on from there.

    `cause` is "approvals" or "rolled back".
    """

    cause: str
    why: str
    commands: tuple[tuple[str, str], ...]


def waits(
    configuration: RunConfiguration,
    decision: Mapping[str, Any] | None,
    model: Mapping[str, Any] | None,
) -> Waiting | None:
    """What a model waits for that passed the gate and was left a challenger; None for every other model."""
    if not decision or decision.get("decision") != "promote" or not model or not model.get("version"):
        return None
    said = model.get("waits")
    if "champion" in (model.get("aliases") or ()) or not said:
        return None
    cause, why, version = str(said["for"]), str(said["why"]), str(model["version"])
    where = f"--workdir {shlex.quote(configuration.workspace)}"
    promote = ("promote", f"kiwi model promote {version} {where}")
    if cause == "approvals":
        approve = ("approve", f"kiwi model approve {version} --as NAME {where}")
        return Waiting(cause, why + _approvers(configuration), (approve, promote))
    return Waiting(cause, why, (("promote", f"{promote[1]} --force --reason TEXT"),))


def _approvers(configuration: RunConfiguration) -> str:
    who = ", ".join(configuration.gate.approvers) or "anyone"
    return f"; may approve: {who}, but not who trained it"


@dataclass(frozen=True)
class BrokenOff:
    """Where a run was stopped: the task that was at work and how far it was, or the task after which none had begun.

    `done` and `total` count `unit`s; None where the task had said nothing yet, or was over.
    """

    task: str
    at_work: bool
    done: int | None = None
    total: int | None = None
    unit: str = ""


def broken_off(records: Sequence[TaskRecord]) -> BrokenOff | None:
    """Where a run broke off, by its task records; None where no task had begun."""
    tasks = sorted((each for each in records if each.name not in CLOSING), key=lambda each: each.heard)
    at_work = [each for each in tasks if each.status in ("running", "killed", "failed")]
    if not at_work:
        return BrokenOff(tasks[-1].label, False) if tasks else None
    last = at_work[-1]
    said = last.progress
    if not said:
        return BrokenOff(last.label, True)
    return BrokenOff(last.label, True, int(said["done"]), int(said["total"]), str(said["unit"]))


def write_summary(configuration: RunConfiguration) -> Path:
    """Writes summary.json of a run whose tasks have ended, and returns its path.

    Raises:
        KiwiError: one of the results that the summary is made of is missing.
    """
    workspace = Workspace.of(configuration)
    write_json(workspace.summary, summarise(configuration))
    return workspace.summary


def write_summary_so_far(configuration: RunConfiguration) -> Path:
    """Writes summary.json of a run that was stopped before its end, and returns its path.

    It has the same keys; what this attempt had not reached is null, or missing among the stages.
    """
    workspace = Workspace.of(configuration)
    records = read_records(workspace.root, attempt_of(configuration))
    write_json(workspace.summary, _so_far(configuration, records))
    return workspace.summary


def summarise(configuration: RunConfiguration) -> dict[str, Any]:
    """The summary as a dictionary; its keys are the contract and do not change."""
    return {
        "run": _run(configuration) | {"status": "finished", "broke_off": None},
        "dataset": _dataset(configuration),
        "stages": [_stage(configuration, stage.name) for stage in configuration.stages],
        "benchmark": _benchmark(configuration, _result(Workspace.of(configuration).decision)),
        "model": _model(configuration),
        "decision": _decision(configuration),
        **_places(configuration),
    }


def _so_far(configuration: RunConfiguration, records: Sequence[TaskRecord]) -> dict[str, Any]:
    unfinished = {each.name for each in records if each.status != "finished"}
    over = {each.name for each in records} - unfinished
    broke_off = broken_off(records)

    def of(task: str, part: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        return part() if task in over else None

    decided = _result(Workspace.of(configuration).decision) if "decide" in over else {}
    status = str(_result(Workspace.of(configuration).run_record)["status"])
    return {
        "run": _run(configuration) | {"status": status, "broke_off": broke_off and asdict(broke_off)},
        "dataset": of("publish_dataset", lambda: _dataset(configuration)),
        "stages": [
            _stage(configuration, stage.name) for stage in configuration.stages if f"train_{stage.name}" in over
        ],
        "benchmark": of("judge", lambda: _benchmark(configuration, decided)),
        "model": of("register_model", lambda: _model(configuration)),
        "decision": of("decide", lambda: _decision(configuration)),
        **_places(configuration),
    }


def _run(configuration: RunConfiguration) -> dict[str, Any]:
    run = _result(Workspace.of(configuration).run_record)
    return {
        "id": run["id"],
        "backend": run["backend"],
        "preset": configuration.preset,
        "seconds": round((run["finished"] or time.time()) - run["started"], 3),
    }


def _dataset(configuration: RunConfiguration) -> dict[str, Any]:
    dataset = _result(Workspace.of(configuration).root / "dataset.json")
    manifest = _result(Path(dataset["path"]) / "manifest.json")
    return {name: dataset[name] for name in VERSION} | {name: manifest[name] for name in COUNTS}


def _stage(configuration: RunConfiguration, name: str) -> dict[str, Any]:
    stage = _result(Workspace.of(configuration).root / "training" / f"{name}.json")
    return {name: stage[name] for name in STAGE}


def _benchmark(configuration: RunConfiguration, decision: Mapping[str, Any]) -> dict[str, Any]:
    scores = _result(Workspace.of(configuration).root / "benchmark" / "scores.json")
    return {
        "overall": scores["overall"],
        "criteria": scores["criteria"],
        "samples": _samples(scores),
        "judge": scores["judge"],
        "revision": scores.get("revision"),
        "baselines": {name: {"overall": it["overall"]} for name, it in scores["baselines"].items()},
        "per_kind": scores.get("per_kind", {}),
        "controls": scores.get("controls", {}),
        "coverage": scores.get("coverage"),
        "intervals": scores.get("intervals"),
        "comparison": _comparison(scores, decision),
    }


def _model(configuration: RunConfiguration) -> dict[str, Any]:
    model = _result(Workspace.of(configuration).root / "model.json")
    return {"name": model["name"], "version": str(model["version"]), "aliases": sorted(model["aliases"])}


def _decision(configuration: RunConfiguration) -> dict[str, Any]:
    workspace = Workspace.of(configuration)
    decision = _result(workspace.decision)
    waiting = waits(configuration, decision, _result(workspace.root / "model.json"))
    return {
        "decision": decision["decision"],
        "reasons": decision["reasons"],
        "waits": None if waiting is None else {"for": waiting.cause, "why": waiting.why, **dict(waiting.commands)},
    }


def _places(configuration: RunConfiguration) -> dict[str, Any]:
    report = Workspace.of(configuration).report
    return {"tracking_uri": configuration.tracking_uri, "report": str(report.absolute())}


def _comparison(scores: Mapping[str, Any], decision: Mapping[str, Any]) -> dict[str, Any] | None:
    """The candidate less what the gate compared it with, over the samples both edited; None where that is not known."""
    with_champion = decision.get("compared_with") == "champion"
    other = scores.get("champion") if with_champion else (scores.get("baselines") or {}).get("copy_source")
    known = (other or {}).get("comparison")
    if not known:
        return None
    names = ("samples", "difference", "interval", "chance_better")
    compared = ("champion", (other or {}).get("version")) if with_champion else ("copy_source", None)
    return {"with": compared[0], "version": compared[1], "overall": (other or {}).get("overall")} | {
        name: known.get(name) for name in names
    }


def _samples(scores: dict[str, Any]) -> int:
    if "samples" in scores:
        return int(scores["samples"])
    return sum(int(kind["samples"]) for kind in scores["per_kind"].values())


def _result(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise KiwiError(f"the run left no {path}", "run it again with the same work folder: it resumes")
    found: dict[str, Any] = read_json(path)
    return found
