"""The summary of a run: the small JSON contract that programs read (`kiwi run --summary`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError
from kiwi.workspace import Workspace, read_json, write_json

VERSION = ("version", "revision")
COUNTS = ("pairs", "quadruplets", "rejected", "failed")
STAGE = ("name", "steps", "loss_first", "loss_last", "samples_per_second", "seconds")


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
        },
        "model": {
            "name": model["name"],
            "version": str(model["version"]),
            "aliases": sorted(model["aliases"]),
        },
        "decision": {"decision": decision["decision"], "reasons": decision["reasons"]},
        "tracking_uri": configuration.tracking_uri,
        "report": str(workspace.report.absolute()),
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
