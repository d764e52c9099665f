"""Turns findings into what each section of the report shows: plain data, in the order in which it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from kiwi.dataset.schema import CURATION_STAGES
from kiwi.reports import charts
from kiwi.reports.figures import count, decimal, mean, number, time_ticks, words
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
class EditKind:
    """PSNR against the ground truth over the frame and inside the edit [dB], the share of edits that are right, and the
    judge's mean mark [1 to 5]. Without a ground truth there is the mark alone."""

    name: str
    samples: int
    full: float | None
    copied_full: float | None
    edit: float | None
    copied_edit: float | None
    accuracy: float | None
    overall: float | None = None

    @property
    def measured(self) -> bool:
        """Whether there is more than the judge's mark."""
        return any(value is not None for value in (self.full, self.edit, self.accuracy))


def edit_kinds(found: Findings) -> list[EditKind]:
    return [_edit_kind(str(kind), figures) for kind, figures in ((found.scores or {}).get("per_kind") or {}).items()]


def _edit_kind(name: str, figures: Json) -> EditKind:
    names = ("psnr_full", "copy_psnr_full", "psnr_edit", "copy_psnr_edit", "accuracy", "overall")
    known = (number(figures.get(key)) for key in names)
    return EditKind(name, int(number(figures.get("samples")) or 0), *known)


def all_kinds(kinds: Sequence[EditKind]) -> EditKind | None:
    """The mean over samples of all kinds; a kind without a figure does not count in it."""
    weights = [float(kind.samples or 1) for kind in kinds]
    if not kinds:
        return None
    columns = [
        [getattr(kind, name) for kind in kinds]
        for name in ("full", "copied_full", "edit", "copied_edit", "accuracy", "overall")
    ]
    return EditKind("all kinds", sum(kind.samples for kind in kinds), *(mean(column, weights) for column in columns))


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
