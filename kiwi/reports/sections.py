"""Turns findings into what each section of the report shows: plain data, in the order in which it is shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from kiwi.dataset.schema import CURATION_STAGES
from kiwi.reports import charts
from kiwi.reports.figures import count, decimal, mean, number, percent, signed, time_ticks, words
from kiwi.reports.findings import Findings, Json
from kiwi.tracking import TaskRecord

PHASES = (
    ("data", ("plan", "shard", *CURATION_STAGES, "assemble", "publish", "dataset")),
    ("training", ("latent", "train", "stage")),
    ("verdict", ("bench", "judge", "evaluat")),
)
REPORT_TASKS = ("report", "finish")
KINDS = ("image", "video", "reference")


@dataclass(frozen=True)
class Reasons:
    """Rows that left at one stage, by typed reason, most frequent first."""

    kind: str
    rows: int
    by_reason: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class FunnelStage:
    name: str
    rows_in: int
    kept: int
    rejected: Reasons
    failed: Reasons
    reconciles: bool

    @property
    def lost(self) -> tuple[Reasons, ...]:
        return tuple(part for part in (self.rejected, self.failed) if part.rows)


@dataclass(frozen=True)
class Funnel:
    stages: tuple[FunnelStage, ...]
    drawing: Markup
    listed: int
    kept: int
    ends: tuple[tuple[str, int, str], ...]

    @property
    def reconciles(self) -> bool:
        return all(stage.reconciles for stage in self.stages)


def funnel(found: Findings) -> Funnel | None:
    """The funnel as a drawing and as figures, with the rows' ends: quadruplet, instruction only, unused."""
    return drawn_funnel(found.funnel, {**(found.manifest or {}), **(found.dataset or {})})


def drawn_funnel(books: Sequence[Json], said: Json) -> Funnel | None:
    """The same of a funnel's books, and of what is `said` of the dataset; an early exit that was off is left out."""
    stages = tuple(_funnel_stage(entry) for entry in books)
    stages = tuple(stage for stage in stages if stage.name != "unique_crops" or stage.lost or not stage.reconciles)
    if not stages:
        return None
    steps = [charts.Step(words(stage.name), stage.rows_in, stage.rejected.rows, stage.failed.rows) for stage in stages]
    listed, kept = stages[0].rows_in, stages[-1].kept
    instruction = number(said.get("instruction"))
    ends: tuple[tuple[str, int, str], ...] = ()
    if instruction is not None:
        quadruplets = int(number(said.get("quadruplets")) or kept)
        unused = max(listed - quadruplets - int(instruction), 0)
        ends = (
            ("quadruplets: train with their reference", quadruplets, "kept"),
            ("instruction only: train without one", int(instruction), "instruction"),
            ("unused", unused, "unused"),
        )
    return Funnel(stages, charts.funnel_stream(steps, "quadruplets"), listed, kept, ends)


def _funnel_stage(stage: Json) -> FunnelStage:
    rejected, failed = (_reasons(kind, stage.get(kind)) for kind in ("rejected", "failed"))
    rows_in, kept = int(stage.get("rows_in", 0)), int(stage.get("kept", 0))
    whole = rows_in == kept + rejected.rows + failed.rows
    return FunnelStage(str(stage.get("stage", "")), rows_in, kept, rejected, failed, whole)


def _reasons(kind: str, by_reason: Any) -> Reasons:
    known = {str(reason): int(rows) for reason, rows in (by_reason or {}).items() if rows}
    ranked = tuple(sorted(known.items(), key=lambda item: (-item[1], item[0])))
    return Reasons(kind, sum(known.values()), ranked)


@dataclass(frozen=True)
class TrainingStage:
    name: str
    title: str
    mix: tuple[tuple[str, float], ...]
    result: Json
    panel: Markup | None
    reached: bool


def training(found: Findings) -> list[TrainingStage]:
    """Every stage of the curriculum, reached or not, its loss by kind on one common scale."""
    results = {str(result.get("name")): result for result in found.training}
    curves = {name: _loss_curves(result) for name, result in results.items()}
    values = sorted(loss for stage in curves.values() for points in stage.values() for _, loss in points)
    top = values[int(len(values) * 0.995)] if values else 1.0
    low = min(values[0] * 0.92, top * 0.98) if values else 0.0
    stages = []
    for index, stage in enumerate(found.configuration.stages):
        result, drawn = results.get(stage.name), curves.get(stage.name)
        panel = charts.loss_panel(drawn, (low, top), stage.name) if drawn else None
        mix = tuple((kind, share) for kind, share in stage.mix.items() if share > 0)
        title = f"Stage {index + 1}"
        stages.append(TrainingStage(stage.name, title, mix, result or {}, panel, result is not None))
    return stages


def _loss_curves(result: Json) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in result.get("losses") or []:
        step, loss = number(entry[0]), number(entry[1])
        kind = str(entry[2]) if len(entry) > 2 else "all"
        if step is not None and loss is not None:
            curves.setdefault(kind, []).append((step, loss))
    order = {kind: place for place, kind in enumerate(KINDS)}
    return dict(sorted(curves.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


@dataclass(frozen=True)
class Compared:
    """One figure of the candidate beside the champion's and that of copying the source."""

    name: str
    group: str
    candidate: float | None
    champion: float | None
    copied: float | None


@dataclass(frozen=True)
class EditKind:
    """PSNR against the ground truth over the frame and inside the edit [dB], and the share of edits that are right."""

    name: str
    samples: int
    full: float | None
    copied_full: float | None
    edit: float | None
    copied_edit: float | None
    accuracy: float | None


def criteria(found: Findings) -> list[Compared]:
    """The overall score and the criteria it is the mean of, each 1 to 5."""
    scores = found.scores or {}
    copied = (scores.get("baselines") or {}).get("copy_source") or {}
    champion = scores.get("champion") or {}
    rows = [Compared("overall", "", *(number(each.get("overall")) for each in (scores, champion, copied)))]
    groups = _criterion_groups(scores)
    for name in scores.get("criteria") or {}:
        rows.append(
            Compared(
                name,
                groups.get(name, ""),
                *(number((each.get("criteria") or {}).get(name)) for each in (scores, champion, copied)),
            )
        )
    return rows if rows[0].candidate is not None or len(rows) > 1 else []


def _criterion_groups(scores: Json) -> dict[str, str]:
    subject = ("identity_consistency", "temporal_consistency", "physical_consistency")
    background = ("reference_similarity", "matting_quality", "video_quality")
    known = dict.fromkeys(subject, "subject reference") | dict.fromkeys(background, "background reference")
    return known | {str(name): words(group) for name, group in (scores.get("groups") or {}).items()}


def edit_kinds(found: Findings) -> list[EditKind]:
    return [_edit_kind(str(kind), figures) for kind, figures in ((found.scores or {}).get("per_kind") or {}).items()]


def _edit_kind(name: str, figures: Json) -> EditKind:
    known = (
        number(figures.get(key)) for key in ("psnr_full", "copy_psnr_full", "psnr_edit", "copy_psnr_edit", "accuracy")
    )
    return EditKind(name, int(number(figures.get("samples")) or 0), *known)


def all_kinds(kinds: Sequence[EditKind]) -> EditKind | None:
    """The mean over samples of all kinds; a kind without a figure does not count in it."""
    weights = [float(kind.samples or 1) for kind in kinds]
    if not kinds:
        return None
    columns = [
        [getattr(kind, name) for kind in kinds] for name in ("full", "copied_full", "edit", "copied_edit", "accuracy")
    ]
    return EditKind("all kinds", sum(kind.samples for kind in kinds), *(mean(column, weights) for column in columns))


@dataclass(frozen=True)
class Check:
    """One thing the candidate must show; `passed` is None where nothing has decided yet and it was not measured."""

    name: str
    value: str
    bound: str
    passed: bool | None
    note: str = ""
    against: str = ""


def checks(found: Findings) -> list[Check]:
    """The gate's own checks once it has decided; before that, its floors and ceilings against the scores."""
    decided = (found.decision or {}).get("checks")
    if isinstance(decided, list):
        other = str((found.decision or {}).get("compared_with") or "")
        compared = "copying the source" if other == "copy_source" else "the champion before"
        return [_decided_check(check, compared) for check in decided if isinstance(check, dict)]
    if found.scores is None:
        return []
    gate = found.configuration.gate
    bounds = [("floor", path, bound) for path, bound in gate.floors.items()]
    bounds += [("ceiling", path, bound) for path, bound in gate.ceilings.items()]
    return [_open_check(kind, path, bound, _at(found.scores, path)) for kind, path, bound in bounds]


def _decided_check(check: Json, compared: str) -> Check:
    """A check as the gate records it: {name: "floor learning.psnr_full", passed, value, bound, sentence}."""
    name, passed = str(check.get("name") or ""), check.get("passed")
    value, bound = number(check.get("value")), number(check.get("bound"))
    known = passed if isinstance(passed, bool) else None
    note = str(check.get("sentence") or "") if value is None else ""
    kind, _, path = name.partition(" ")
    if name == "margin":
        title, shown, limit = "overall", signed(value), signed(bound)
    elif kind == "criterion":
        title, shown, limit = words(path), signed(value), signed(bound)
    else:
        path = path or name
        title, shown, limit = said(path), written(path, value), written(path, bound)
    sense = "at most" if kind == "ceiling" else "at least"
    against = "" if kind not in ("margin", "criterion", "comparison") else compared
    return Check(title, shown, f"{sense} {limit}" if bound is not None else "", known, note, against)


def _open_check(kind: str, path: str, bound: float, value: float | None) -> Check:
    passed = None if value is None else value >= bound if kind == "floor" else value <= bound
    sense = "at least" if kind == "floor" else "at most"
    return Check(said(path), written(path, value), f"{sense} {written(path, bound)}", passed)


def said(path: str) -> str:
    """A figure's dotted path as a reader's words: "learning.psnr_full_gain" -> "PSNR, frame, over copy"."""
    text = path.removeprefix("learning.").removeprefix("per_kind.").removesuffix("_db")
    for code, plain in (("psnr_full", "PSNR, frame"), ("psnr_edit", "PSNR, edit"), ("_gain", ", over copy")):
        text = text.replace(code, plain)
    return words(re.sub(r"^accuracy_", "accuracy, ", text.replace(".", ", ")))


def written(path: str, value: float | None) -> str:
    """A figure with its unit, which its path tells: shares as per cent, PSNR in dB."""
    if "psnr" in path or path.endswith("_db"):
        return f"{decimal(value, 1)} dB"
    return percent(value) if "accuracy" in path or path == "coverage" else decimal(value)


def _at(value: Any, path: str) -> float | None:
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return number(value)


@dataclass(frozen=True)
class Control:
    """Accuracy or PSNR with the right input and with a wrong one, both held against the right answer."""

    name: str
    about: str
    right: float | None
    wrong: float | None
    unit: str


CONTROLS = (
    ("wrong_instruction", "another instruction", "asks for another colour: the right answer must not appear by itself"),
    ("swapped_reference", "another subject as reference", "the subject must come from the picture that was given"),
    ("wrong_latents", "another background's latents", "the background must come from the picture that was given"),
)


def controls(found: Findings) -> list[Control]:
    """What happens when the model is given something else: it must stop being right."""
    scores = found.scores or {}
    made = []
    for arm, name, about in CONTROLS:
        figures = (scores.get("controls") or {}).get(arm)
        if not isinstance(figures, dict):
            continue
        of = [(scores.get("per_kind") or {}).get(kind) or {} for kind in figures.get("kinds") or []]
        key, unit = ("psnr_full", "dB") if arm == "wrong_latents" else ("accuracy", "%")
        weights = [float(number(kind.get("samples")) or 1) for kind in of]
        right = mean([number(kind.get(key)) for kind in of], weights)
        made.append(Control(name, about, right, number(figures.get(key)), unit))
    return made


@dataclass(frozen=True)
class StageGain:
    """The benchmark's figures after one stage; the first entry is copying the source."""

    name: str
    overall: float | None
    full: float | None
    edit: float | None
    accuracy: float | None


@dataclass(frozen=True)
class KindTrend:
    kind: str
    drawing: Markup


def stage_gains(found: Findings) -> tuple[list[StageGain], list[KindTrend]]:
    """What each stage added: the figures in a table, and the accuracy by kind as small drawings."""
    scores = found.scores or {}
    stages = {str(name): figures for name, figures in (scores.get("stages") or {}).items() if isinstance(figures, dict)}
    if not stages:
        return [], []
    kinds = [kind.name for kind in edit_kinds(found)]
    last = list(stages.values())[-1]
    copied = (scores.get("baselines") or {}).get("copy_source") or {}
    whole, edit = number(last.get("copy_psnr_full")), number(last.get("copy_psnr_edit"))
    gains = [StageGain("copy the source", number(copied.get("overall")), whole, edit, None)]
    for name, figures in stages.items():
        accuracy = mean([number(figures.get(f"accuracy_{kind}")) for kind in kinds])
        overall, whole, edit = (number(figures.get(key)) for key in ("overall", "psnr_full", "psnr_edit"))
        gains.append(StageGain(name, overall, whole, edit, accuracy))
    return gains, _kind_trends(list(stages.values()), kinds)


def _kind_trends(stages: Sequence[Json], kinds: Sequence[str]) -> list[KindTrend]:
    trends = []
    for kind in kinds:
        values = [number(figures.get(f"accuracy_{kind}")) for figures in stages]
        if any(value is not None for value in values):
            points = [(f"stage {place + 1}", value) for place, value in enumerate(values)]
            trends.append(KindTrend(kind, charts.trend(points, (0.0, 1.0))))
    return trends


@dataclass(frozen=True)
class TaskBar:
    """One task name on the time line: its shards' spans in per cent of the run, and how long they took."""

    name: str
    shards: int
    spans: tuple[tuple[float, float, str], ...]
    started: float
    busy: float
    status: str
    tries: int
    note: str
    figures: str
    phase: str


@dataclass(frozen=True)
class Timeline:
    bars: tuple[TaskBar, ...]
    seconds: float
    idle: float
    marks: tuple[tuple[float, float], ...]


def timeline(found: Findings) -> Timeline | None:
    """When each task ran. `idle` is the time in which no task did: what starting them took."""
    records = [
        record
        for record in found.records
        if record.started and not (record.name in REPORT_TASKS and record.status == "running")
    ]
    if not records:
        return None
    first = min(record.started for record in records)
    last = max(record.started + record.seconds for record in records)
    whole = max(last - first, 1e-3)
    ordered = sorted(records, key=lambda record: record.name)
    groups = [list(group) for _, group in groupby(ordered, key=lambda record: record.name)]
    groups.sort(key=lambda group: min(record.started for record in group))
    bars = tuple(_task_bar(group, first, whole) for group in groups)
    marks = tuple((float(tick), tick / whole * 100) for tick in time_ticks(whole))
    return Timeline(bars, whole, whole - _covered(records), marks)


def _task_bar(group: Sequence[TaskRecord], first: float, whole: float) -> TaskBar:
    spans = tuple(
        ((record.started - first) / whole * 100, max(record.seconds / whole * 100, 0.15), record.status)
        for record in sorted(group, key=lambda record: record.started)
    )
    rank = {"failed": 3, "killed": 2, "running": 1}
    status = max((record.status for record in group), key=lambda status: rank.get(status, 0))
    phase = next((phase for phase, names in PHASES for name in names if name in group[0].name), "other")
    reused = sum("reused" in record.notes for record in group)
    note = "" if not reused else "reused" if reused == len(group) else f"{reused} of {len(group)} reused"
    started = min(record.started for record in group)
    busy = max(record.started + record.seconds for record in group) - started
    tries = max(record.tries for record in group)
    return TaskBar(
        group[0].name, len(group), spans, started - first, busy, status, tries, note, _throughput(group, busy), phase
    )


def _throughput(group: Sequence[TaskRecord], busy: float) -> str:
    known = [record.progress for record in group if record.progress]
    done = sum(float(progress.get("done", 0)) for progress in known)
    if not done or busy <= 0 or any("reused" in record.notes for record in group):
        return ""
    rate = done / busy
    return f"{count(rate) if rate >= 10 else decimal(rate, 1)} {known[0].get('unit', 'rows')}/s"


def _covered(records: Iterable[TaskRecord]) -> float:
    """Seconds in which at least one task ran."""
    covered, reach = 0.0, float("-inf")
    for start, end in sorted((record.started, record.started + record.seconds) for record in records):
        covered += max(end - max(start, reach), 0.0)
        reach = max(reach, end)
    return covered
