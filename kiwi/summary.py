"""The summary of a run: the small JSON contract that programs read (`kiwi run --summary`)."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError
from kiwi.workspace import Workspace, read_json, write_json

VERSION = ("version", "revision")
COUNTS = ("pairs", "quadruplets", "rejected", "failed")
STAGE = ("name", "steps", "loss_first", "loss_last", "samples_per_second", "seconds")


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


def write_summary(configuration: RunConfiguration) -> Path:
    """Writes summary.json of a run whose tasks have ended, and returns its path.

    Raises:
        KiwiError: one of the results that the summary is made of is missing.
    """
    workspace = Workspace.of(configuration)
    write_json(workspace.summary, summarise(configuration))
    return workspace.summary


def summarise(configuration: RunConfiguration) -> dict[str, Any]:
    """The summary as a dictionary; its keys are the contract and do not change."""
    workspace = Workspace.of(configuration)
    root = workspace.root
    run = _result(workspace.run_record)
    dataset = _result(root / "dataset.json")
    manifest = _result(Path(dataset["path"]) / "manifest.json")
    scores = _result(root / "benchmark" / "scores.json")
    model = _result(root / "model.json")
    decision = _result(workspace.decision)
    waiting = waits(configuration, decision, model)
    return {
        "run": {
            "id": run["id"],
            "backend": run["backend"],
            "preset": configuration.preset,
            "seconds": round((run["finished"] or time.time()) - run["started"], 3),
        },
        "dataset": {name: dataset[name] for name in VERSION} | {name: manifest[name] for name in COUNTS},
        "stages": [
            {name: stage[name] for name in STAGE}
            for stage in (_result(root / "training" / f"{stage.name}.json") for stage in configuration.stages)
        ],
        "benchmark": {
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
        },
        "model": {
            "name": model["name"],
            "version": str(model["version"]),
            "aliases": sorted(model["aliases"]),
        },
        "decision": {
            "decision": decision["decision"],
            "reasons": decision["reasons"],
            "waits": None if waiting is None else {"for": waiting.cause, "why": waiting.why, **dict(waiting.commands)},
        },
        "tracking_uri": configuration.tracking_uri,
        "report": str(workspace.report.absolute()),
    }


def _comparison(scores: Mapping[str, Any], decision: Mapping[str, Any]) -> dict[str, Any] | None:
    """The candidate less what the gate compared it with, over the samples both edited; None where that is not known."""
    with_champion = decision.get("compared_with") == "champion"
    other = scores.get("champion") if with_champion else (scores.get("baselines") or {}).get("copy_source")
    known = (other or {}).get("comparison")
    if not known:
        return None
    names = ("samples", "difference", "interval", "chance_better")
    champion = (other or {}).get("version") if with_champion else None
    return {"with": decision["compared_with"], "version": champion, "overall": (other or {}).get("overall")} | {
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
