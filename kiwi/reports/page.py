"""Writes the report of a run: one page, its media beside it, readable whatever the run has reached.

It is written before the gate decides, so that the judged edits can be looked at, and again by the exit task, when
the decision, or what failed, is known.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kiwi import __version__
from kiwi.configuration import RunConfiguration
from kiwi.curation.keys import curation_key
from kiwi.errors import KiwiError
from kiwi.reports import figures, gallery, sections
from kiwi.reports.dataset_page import dataset_facts, write_dataset_page
from kiwi.reports.findings import Findings, gather
from kiwi.reports.rendering import write_page
from kiwi.tracking import TaskRecord, TaskRun
from kiwi.workspace import Workspace

REPEAT_REMEDY = "Put right what the message names and give the same command again: finished tasks are reused."
NO_WORD = "a task ended before it could say why"
LOGS = "The last lines of `kiwi run`, or the log it names, tell more. "


@dataclass(frozen=True)
class Failure:
    """A task that failed: where, what it said, what to do."""

    task: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Headline:
    """What became of the run. `state` is promoted, held, failed, or open while there is no decision."""

    state: str
    word: str
    title: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """All that the report shows; every part may be empty, and the page then says "not reached"."""

    headline: Headline
    failures: tuple[Failure, ...]
    troubles: tuple[str, ...]
    preset: str
    model_name: str
    judge: str
    random_weights: bool
    started: str
    seconds: float | None
    scores: dict[str, Any]
    compared: list[sections.Compared]
    funnel: sections.Funnel | None
    dataset: dict[str, Any]
    dataset_facts: list[tuple[str, str]]
    dataset_page: str
    rejected: list[gallery.Card]
    training: list[sections.TrainingStage]
    kinds: list[sections.EditKind]
    all_kinds: sections.EditKind | None
    checks: list[sections.Check]
    controls: list[sections.Control]
    gains: list[sections.StageGain]
    trends: list[sections.KindTrend]
    kind_cards: list[tuple[str, sections.EditKind | None, list[gallery.Card]]]
    stage_cards: list[gallery.Card]
    control_cards: list[gallery.Card]
    timeline: sections.Timeline | None
    lineage: list[tuple[str, str]]
    command: str
    version: str = __version__
    written: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")


def write_report(configuration: RunConfiguration, task: TaskRun) -> Path:
    """Writes <workspace>/report/index.html and everything it shows, and returns its path.

    May be called at any time and again; a part of the run that was not reached is shown as such. The folder holds
    relative links only and no reference to any network.
    """
    workspace = Workspace.of(configuration)
    media = gallery.MediaFolder(workspace.report.parent)
    found = gather(configuration)
    dataset_page, rejected = _dataset_page(found, media)
    page = build_page(found, media, dataset_page, rejected)
    write_page(workspace.report, "report.html.j2", page)
    media.sweep()
    task.artifact(workspace.report.parent, "report")
    return workspace.report


def build_page(found: Findings, media: gallery.MediaFolder, dataset_page: str, rejected: list[gallery.Card]) -> Page:
    """The report's data from `found`; copies what it shows into `media`."""
    configuration, failures = found.configuration, _failures(found)
    kinds = sections.edit_kinds(found)
    gains, trends = sections.stage_gains(found)
    timeline = sections.timeline(found)
    return Page(
        headline=_headline(found, failures),
        failures=failures,
        troubles=tuple(found.troubles),
        preset=configuration.preset,
        model_name=configuration.model_name,
        judge=str((found.scores or {}).get("judge") or configuration.benchmark.judge),
        random_weights=configuration.model.preset == "tiny",
        started=_clock(min((record.started for record in found.records if record.started), default=None)),
        seconds=timeline.seconds if timeline else None,
        scores=found.scores or {},
        compared=sections.criteria(found),
        funnel=sections.funnel(found),
        dataset={**(found.manifest or {}), **(found.dataset or {})},
        dataset_facts=dataset_facts(found),
        dataset_page=dataset_page,
        rejected=rejected,
        training=sections.training(found),
        kinds=kinds,
        all_kinds=sections.all_kinds(kinds),
        checks=sections.checks(found),
        controls=sections.controls(found),
        gains=gains,
        trends=trends,
        kind_cards=_kind_cards(found, media, kinds),
        stage_cards=_stage_cards(found, media),
        control_cards=_control_cards(found, media),
        timeline=timeline,
        lineage=_lineage(found),
        command=_command(found),
    )


def _dataset_page(found: Findings, media: gallery.MediaFolder) -> tuple[str, list[gallery.Card]]:
    """Writes the dataset's page beside the report; its address and some of what was rejected, for the report."""
    if found.dataset_folder is None:
        return "", []
    try:
        return write_dataset_page(found, media)
    except (KiwiError, OSError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        found.troubles.append(f"the dataset cannot be shown: {said}")
        return "", []


def _failures(found: Findings) -> tuple[Failure, ...]:
    """The tasks that failed or were killed; if none said so but the orchestrator does, that."""
    told = tuple(_failure(record) for record in found.records if record.status in ("failed", "killed"))
    finish = found.record("finish")
    state = str(finish.params.get("state", "")) if finish else ""
    if told or state in ("", "SUCCEEDED"):
        return told
    return (Failure("run", f"{NO_WORD} (state {state})", LOGS + REPEAT_REMEDY),)


def _failure(record: TaskRecord) -> Failure:
    said, _, remedy = (record.error or "").partition("\n")
    if record.status == "killed":
        said = said or "its process ended without a word: it was killed, or the machine ran out of memory"
    stated = str(getattr(record, "remedy", "") or remedy).strip()
    return Failure(record.label, re.sub(r"^[A-Z][A-Za-z]+: ", "", said) or "no message", stated or REPEAT_REMEDY)


def _headline(found: Findings, failures: Sequence[Failure]) -> Headline:
    name = found.configuration.model_name
    version = _model_version(found)
    model = f"{name} version {version}" if version else name
    decision = str((found.decision or {}).get("decision") or "")
    reasons = tuple(_in_words(str(reason)) for reason in (found.decision or {}).get("reasons") or [])
    if decision == "promote":
        return Headline("promoted", "Promoted", f"{model} is the champion", reasons[:1])
    if decision:
        return Headline("held", "Held", f"{model} stays a challenger", reasons)
    if failures:
        where = f" at {figures.words(failures[0].task)}" if failures[0].task != "run" else ""
        return Headline("failed", "Failed", f"The run stopped{where}", ())
    if found.scores:
        return Headline("open", "Judged", f"{model} awaits the gate's decision", ())
    last = [record.label for record in found.records if record.name not in sections.REPORT_TASKS]
    return Headline(
        "open", "Under way", f"The run has reached {figures.words(last[-1])}" if last else "Nothing ran yet", ()
    )


def _in_words(reason: str) -> str:
    """The gate's sentence with the figure it names by path in a reader's words: "accuracy, recolour of 0.62 is …"."""
    return re.sub(r"^(?:learning|per_kind|controls)\.[\w.]*\w", lambda path: sections.said(path[0]), reason)


def _model_version(found: Findings) -> str:
    for holder in (found.decision, found.model):
        for value in ((holder or {}).get("candidate"), holder):
            if isinstance(value, dict) and value.get("version"):
                return str(value["version"])
            if isinstance(value, str | int) and not isinstance(value, bool):
                return str(value)
    return ""


def _kind_cards(
    found: Findings, media: gallery.MediaFolder, kinds: Sequence[sections.EditKind]
) -> list[tuple[str, sections.EditKind | None, list[gallery.Card]]]:
    samples: dict[str, list[dict[str, Any]]] = {}
    for sample in (found.edits or {}).get("samples") or []:
        if isinstance(sample, dict) and not sample.get("control") and not sample.get("stage"):
            samples.setdefault(str(sample.get("kind") or "edit"), []).append(sample)
    measured = {kind.name: kind for kind in kinds}
    order = [kind.name for kind in kinds if kind.name in samples] + sorted(set(samples) - set(measured))
    folder = found.edits_folder
    if folder is None:
        return []
    return [
        (
            kind,
            measured.get(kind),
            [_edit_card(rank, sample, folder, media) for rank, sample in gallery.chosen(samples[kind])],
        )
        for kind in order
    ]


def _stage_cards(found: Findings, media: gallery.MediaFolder) -> list[gallery.Card]:
    """One sample of each kind as every stage of the curriculum edited it."""
    cards: dict[str, gallery.Card] = {}
    for sample in (found.edits or {}).get("samples") or []:
        kind = str(sample.get("kind") or "edit")
        tiles = (
            gallery.stage_tiles(sample, found.edits_folder, media) if found.edits_folder and kind not in cards else ()
        )
        if tiles:
            cards[kind] = gallery.Card(figures.words(kind), str(sample.get("prompt") or ""), tiles)
    return list(cards.values())


def _control_cards(found: Findings, media: gallery.MediaFolder) -> list[gallery.Card]:
    """One sample for each kind of wrong input, the right result and the wrong one side by side."""
    cards: dict[str, gallery.Card] = {}
    for sample in (found.edits or {}).get("samples") or []:
        for arm, name, _ in sections.CONTROLS:
            if found.edits_folder is None or arm in cards or not (sample.get("files") or {}).get(arm):
                continue
            roles = (*gallery.ROLES[:3], (arm, f"With {name}"))
            other = str(sample.get("wrong_prompt") or "") if arm == "wrong_instruction" else ""
            cards[arm] = gallery.Card(
                name, str(sample.get("prompt") or ""), gallery.edit_tiles(sample, found.edits_folder, media, roles),
                note=f"Instead: {other}" if other else "",
            )  # fmt: skip
    return list(cards.values())


def _edit_card(rank: str, sample: dict[str, Any], folder: Path, media: gallery.MediaFolder) -> gallery.Card:
    facts = []
    for name, key in (("edit", "psnr_edit"), ("frame", "psnr_full")):
        mine, copied = figures.number(sample.get(key)), figures.number(sample.get(f"copy_{key}"))
        if mine is not None:
            facts.append(
                (name, f"{figures.decimal(mine, 1)} dB" + (f", copy {figures.decimal(copied, 1)}" if copied else ""))
            )
    return gallery.Card(
        rank,
        str(sample.get("prompt") or ""),
        gallery.edit_tiles(sample, folder, media),
        gallery.gain(sample),
        tuple(facts),
    )


def _lineage(found: Findings) -> list[tuple[str, str]]:
    configuration, dataset = found.configuration, found.dataset or {}
    version = _model_version(found)
    facts = [
        ("Run", found.attempt),
        ("Configuration", configuration.identity()),
        ("Curation", curation_key(configuration)),
        ("Dataset version", str(dataset.get("version") or "")),
        ("Dataset commit", str(dataset.get("revision") or "")),
        ("Dataset digest", str(dataset.get("digest") or (found.manifest or {}).get("digest") or "")),
        *((f"Checkpoint {stage.get('name')}", str(stage.get("key") or "")) for stage in found.training),
        ("Benchmark revision", str((found.scores or {}).get("revision") or "")),
        ("Model", f"{configuration.model_name} version {version}" if version else ""),
        ("MLflow parent run", str((found.sent or {}).get("parent") or "")),
        ("MLflow", _without_password(configuration.tracking_uri)),
    ]
    return [(name, value) for name, value in facts if value]


def _without_password(uri: str) -> str:
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:…@", uri)


def _command(found: Findings) -> str:
    stated = (found.run or {}).get("command")
    if isinstance(stated, list) and stated:
        return shlex.join(str(word) for word in stated)
    if isinstance(stated, str) and stated:
        return stated
    configuration = found.configuration
    words = ["kiwi", "run", "--preset", configuration.preset]
    if configuration.source.pairs:
        words += ["--pairs", configuration.source.pairs]
    return shlex.join([*words, "--workdir", configuration.workspace])


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
