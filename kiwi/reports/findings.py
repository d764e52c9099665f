"""Reads everything that a run left in its workspace, once; what is not there yet is None and never an error."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiwi.configuration import RunConfiguration
from kiwi.curation.finished import dataset_folder
from kiwi.curation.stages import books_so_far
from kiwi.dataset.schema import CURATION_STAGES
from kiwi.errors import KiwiError
from kiwi.tracking import TaskRecord, attempt_of
from kiwi.tracking.records import read_record
from kiwi.workspace import Workspace

Json = dict[str, Any]


@dataclass
class Findings:
    """What a run has left so far.

    Attributes:
        funnel: one {stage, rows_in, kept, rejected{}, failed{}} a curation stage that has ended, in order.
        dataset_folder: the dataset's folder, published or only assembled; None before.
        training: the results of the training stages that have ended, in the curriculum's order.
        edits_folder: what the paths in `edits` are relative to.
        listed: scores of published benchmarks that were run on this model besides, by name.
        troubles: files that are there and cannot be read, one line each.
    """

    configuration: RunConfiguration
    attempt: str
    run: Json | None = None
    records: list[TaskRecord] = field(default_factory=list)
    dataset: Json | None = None
    dataset_folder: Path | None = None
    manifest: Json | None = None
    funnel: list[Json] = field(default_factory=list)
    training: list[Json] = field(default_factory=list)
    scores: Json | None = None
    edits: Json | None = None
    edits_folder: Path | None = None
    listed: dict[str, Json] = field(default_factory=dict)
    model: Json | None = None
    decision: Json | None = None
    sent: Json | None = None
    troubles: list[str] = field(default_factory=list)

    def record(self, name: str) -> TaskRecord | None:
        return next((record for record in self.records if record.name == name), None)


def gather(configuration: RunConfiguration) -> Findings:
    """Everything the report is made of, from the workspace of `configuration`."""
    workspace = Workspace.of(configuration)
    root = workspace.root
    found = Findings(configuration, "")
    found.run = _read(found, workspace.run_record)
    found.attempt = _attempt(configuration)
    found.records = _records(found, root)
    found.dataset = _read(found, root / "dataset.json")
    found.dataset_folder = _dataset_folder(found, workspace)
    if found.dataset_folder is not None:
        found.manifest = _read(found, found.dataset_folder / "manifest.json")
    found.funnel = _funnel(found)
    stages = (_read(found, root / "training" / f"{stage.name}.json") for stage in configuration.stages)
    found.training = [stage for stage in stages if stage is not None]
    found.scores = _read(found, root / "benchmark" / "scores.json")
    found.edits = _edits(found, root / "benchmark" / "edits.json")
    found.edits_folder = _edits_folder(found, root)
    found.listed = _listed(found, root)
    found.model = _read(found, root / "model.json")
    found.decision = _read(found, workspace.decision)
    found.sent = _read(found, workspace.records / found.attempt / "sent.json")
    return found


def _read(found: Findings, path: Path) -> Json | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        found.troubles.append(f"{path.name} cannot be read: {error}")
        return None
    if not isinstance(value, dict):
        found.troubles.append(f"{path.name} cannot be read: it holds no object")
        return None
    return value


def _attempt(configuration: RunConfiguration) -> str:
    """The attempt's id; "manual" where run.json cannot be read, which is a trouble of its own."""
    try:
        return attempt_of(configuration)
    except (OSError, ValueError, AttributeError):
        return "manual"


def _records(found: Findings, root: Path) -> list[TaskRecord]:
    """The task records of the attempt; one that is damaged is named, and the others are kept."""
    records = []
    for path in sorted((Workspace(root).records / found.attempt).glob("*.jsonl")):
        try:
            record = read_record(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            found.troubles.append(f"the task record {path.name} cannot be read: {type(error).__name__}: {error}")
            continue
        if record is not None:
            records.append(record)
    return sorted(records, key=lambda record: (record.started, record.label))


def _listed(found: Findings, root: Path) -> dict[str, Json]:
    """Scores of published benchmarks: in folders of their own, or the run's own where that is what it was judged on."""
    known = {path.parent.name: _read(found, path) for path in sorted((root / "benchmark").glob("*-bench/scores.json"))}
    if found.scores is not None and found.scores.get("benchmark"):
        known[str(found.scores["benchmark"])] = found.scores
    return {name: scores for name, scores in known.items() if scores is not None}


def _dataset_folder(found: Findings, workspace: Workspace) -> Path | None:
    candidates = [dataset_folder(found.configuration)]
    if found.dataset and found.dataset.get("path"):
        published = Path(str(found.dataset["path"]))
        candidates.insert(0, published if published.is_absolute() else workspace.root / published)
    return next((folder for folder in candidates if (folder / "manifest.json").exists()), None)


def _funnel(found: Findings) -> list[Json]:
    if found.manifest and isinstance(found.manifest.get("funnel"), list) and found.manifest["funnel"]:
        return list(found.manifest["funnel"])
    try:
        books = books_so_far(found.configuration)
    except KiwiError as error:
        found.troubles.append(f"the books of curation cannot be read: {error}")
        return []
    return added_up(books)


def added_up(books: Iterable[Json]) -> list[Json]:
    """The funnel of the shards' books: one entry a stage, in the order of curation."""
    stages: dict[str, Json] = {}
    for book in books:
        name = str(book.get("stage", ""))
        total = stages.setdefault(name, {"stage": name, "rows_in": 0, "kept": 0, "rejected": {}, "failed": {}})
        for key in ("rows_in", "kept"):
            total[key] += int(book.get(key, 0))
        for key in ("rejected", "failed"):
            for reason, rows in (book.get(key) or {}).items():
                total[key][reason] = total[key].get(reason, 0) + int(rows)
    return [stages[name] for name in CURATION_STAGES if name in stages]


def _edits(found: Findings, path: Path) -> Json | None:
    """The list of edits, without entries of another shape, which are counted."""
    edits = _read(found, path)
    if edits is None:
        return None
    listed = edits.get("samples") if isinstance(edits.get("samples"), list) else []
    samples = [each for each in listed or [] if isinstance(each, dict) and isinstance(each.get("files") or {}, dict)]
    if len(samples) < len(listed or []):
        found.troubles.append(f"{path.name}: {len(listed or []) - len(samples)} entries are no samples")
    return {**edits, "samples": samples}


def _edits_folder(found: Findings, root: Path) -> Path | None:
    """What the paths in edits.json are relative to: the benchmark's folder, or where else the first of them lies."""
    if found.edits is None:
        return None
    key = str(found.edits.get("key") or "")
    samples = found.edits.get("samples") or []
    files = [name for sample in samples for name in (sample.get("files") or {}).values() if name]
    stated = [root / str(found.edits["folder"])] if found.edits.get("folder") else []
    folders = [*stated, root / "benchmark", root / "benchmark" / key, root]
    return next((folder for folder in folders if files and (folder / str(files[0])).exists()), folders[0])
