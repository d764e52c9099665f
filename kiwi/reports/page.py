"""Writes the report of a run: one page, its media beside it, readable whatever the run has reached.

It is written before the gate decides, so that the judged edits can be looked at, and again by the exit task, when
the decision, or what failed, is known; of a run that was stopped, by `kiwi run` as it ends. Beside it lies the same
page as one file that needs no other, for places that show a single file: Kubeflow's page of a run, MLflow's
artifacts, a mail.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from kiwi import __version__
from kiwi.configuration import RunConfiguration
from kiwi.curation.keys import curation_key
from kiwi.errors import KiwiError
from kiwi.reports import comparison, decision, figures, gallery, sections
from kiwi.reports.command import run_command
from kiwi.reports.dataset_page import dataset_facts, write_dataset_page
from kiwi.reports.embedding import EmbeddedMedia
from kiwi.reports.findings import Findings, gather
from kiwi.reports.media import MediaFolder, PageMedia, small_clips
from kiwi.reports.rendering import write_page
from kiwi.summary import Waiting, broken_off, waits
from kiwi.tracking import TaskRecord, TaskRun
from kiwi.workspace import Workspace

REPEAT_REMEDY = "Put right what the message names and give the same command again: finished tasks are reused."
RESUMES = "The same command goes on from what was finished."
NO_WORD = "a task ended before it could say why"
T = TypeVar("T")
ONE_FILE = "run-report.html"
ONE_FILE_MEDIA = 5_000_000  # bytes, before base64 adds a third: Kubeflow's page gives out on files of about 20 MB
LOGS = "The last lines of `kiwi run`, or the log it names, tell more. "


@dataclass(frozen=True)
class Failure:
    """A task that failed: where, what it said, what to do."""

    task: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Headline:
    """What became of the run. `state` is promoted, waiting, held, failed, or open while there is no decision."""

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
    compared: list[comparison.Compared]
    champion: str
    champion_missing: str
    leads: list[comparison.Lead]
    unjudged: list[comparison.Unjudged]
    published: list[comparison.Published]
    waiting: Waiting | None
    asked: list[tuple[str, str]]
    listed: str
    samples: list[gallery.SampleRow]
    funnel: sections.Funnel | None
    dataset: dict[str, Any]
    dataset_facts: list[tuple[str, str]]
    dataset_page: str
    rejected: list[gallery.Card]
    training: list[sections.TrainingStage]
    kinds: list[sections.EditKind]
    all_kinds: sections.EditKind | None
    checks: list[decision.Check]
    controls: list[sections.Control]
    gains: list[sections.StageGain]
    trends: list[sections.KindTrend]
    kind_cards: list[tuple[str, sections.EditKind | None, list[gallery.Card]]]
    stage_cards: list[gallery.Card]
    control_cards: list[gallery.Card]
    timeline: sections.Timeline | None
    lineage: list[tuple[str, str]]
    mlflow: tuple[str, str]
    command: str
    home: str = ""
    one_file: str = ""
    left_out: int = 0
    version: str = __version__
    written: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")


def write_report(configuration: RunConfiguration, task: TaskRun) -> Path:
    """Writes <workspace>/report/index.html and everything it shows, and ONE_FILE beside it; returns index.html's path.

    May be called at any time and again; a part of the run that was not reached, or cannot be read, is shown as such.
    The folder holds relative links only and no reference to any network, but for a link to MLflow where it has one.
    """
    workspace = Workspace.of(configuration)
    found = gather(configuration)
    small = small_clips(_list(found, "the gallery", lambda: _shown_clips(found)), configuration.threads)
    media = MediaFolder(workspace.report.parent, ahead=small)
    dataset_page, rejected = _dataset_page(found, media)
    page = build_page(found, media, dataset_page, rejected)
    write_page(workspace.report, "report.html.j2", replace(page, one_file=ONE_FILE))
    _write_one_file(found, page, EmbeddedMedia(ONE_FILE_MEDIA, ahead=small), workspace.report.with_name(ONE_FILE))
    media.sweep()
    task.artifact(workspace.report.parent, "report")
    return workspace.report


def _write_one_file(found: Findings, page: Page, media: EmbeddedMedia, path: Path) -> None:
    """The same page with smaller media in it: the gallery's. Other cards and the dataset's page are the folder's."""
    cards = _list(found, "the gallery", lambda: _kind_cards(found, media, page.kinds))
    gallery_only = replace(page, kind_cards=cards, control_cards=[], stage_cards=[], rejected=[], dataset_page="")
    whole = replace(gallery_only, home="index.html", left_out=media.left_out)
    write_page(path, "report.html.j2", whole)


def build_page(found: Findings, media: PageMedia, dataset_page: str, rejected: list[gallery.Card]) -> Page:
    """The report's data from `found`; puts what it shows into `media`."""
    configuration, failures = found.configuration, _failures(found)
    kinds = _list(found, "the kinds of edit", lambda: sections.edit_kinds(found))
    added = _part(found, "what each stage added", lambda: sections.stage_gains(found))
    gains, trends = added if added is not None else ([], [])
    timeline = _part(found, "the time line", lambda: sections.timeline(found))
    waiting = _part(found, "the promotion", lambda: _waiting(found))
    page = Page(
        headline=_headline(found, failures, waiting),
        failures=failures,
        troubles=(),
        preset=configuration.preset,
        model_name=configuration.model_name,
        judge=str((found.scores or {}).get("judge") or configuration.benchmark.judge),
        random_weights=configuration.model.preset == "tiny",
        started=_clock(min((record.started for record in found.records if record.started), default=None)),
        seconds=timeline.seconds if timeline else None,
        scores=found.scores or {},
        compared=_list(found, "the scores", lambda: comparison.criteria(found)),
        champion=_part(found, "the champion", lambda: comparison.champion_name(found)) or "",
        champion_missing=comparison.unmeasured_champion(found),
        leads=_list(found, "the comparison", lambda: comparison.leads(found)),
        unjudged=_list(found, "what could not be judged", lambda: comparison.unjudged(found)),
        published=_list(found, "the published scores", lambda: comparison.published(found)),
        waiting=waiting,
        asked=decision.asked(found),
        listed=str((found.scores or {}).get("benchmark") or ""),
        samples=_list(found, "the samples", lambda: gallery.sample_rows(found.scores, found.edits)),
        funnel=_part(found, "the funnel", lambda: sections.funnel(found)),
        dataset={**(found.manifest or {}), **(found.dataset or {})},
        dataset_facts=_list(found, "the dataset", lambda: dataset_facts(found)),
        dataset_page=dataset_page,
        rejected=rejected,
        training=_list(found, "the training", lambda: sections.training(found)),
        kinds=kinds,
        all_kinds=sections.all_kinds(kinds),
        checks=_list(found, "the gate's checks", lambda: decision.checks(found)),
        controls=_list(found, "the controls", lambda: sections.controls(found)),
        gains=gains,
        trends=trends,
        timeline=timeline,
        lineage=_list(found, "the lineage", lambda: _lineage(found)),
        mlflow=_mlflow(found),
        command=_part(found, "the command", lambda: _command(found)) or "",
        kind_cards=_list(found, "the gallery", lambda: _kind_cards(found, media, kinds)),
        control_cards=_list(found, "the edits of wrong inputs", lambda: _control_cards(found, media)),
        stage_cards=_list(found, "the stages' edits", lambda: _stage_cards(found, media)),
    )
    return replace(page, troubles=tuple(dict.fromkeys(found.troubles)))


def _list(found: Findings, what: str, make: Callable[[], list[T]]) -> list[T]:
    """A part of the page that is a list; empty where its records are damaged."""
    return _part(found, what, make) or []


def _part(found: Findings, what: str, make: Callable[[], T]) -> T | None:
    """A part of the page; None where its records are damaged, with the reason on the page."""
    try:
        return make()
    except (KiwiError, OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        said = str(error).splitlines()[0] if str(error) else ""
        found.troubles.append(f"{what} cannot be shown: {type(error).__name__} {said}".strip())
        return None


def _dataset_page(found: Findings, media: MediaFolder) -> tuple[str, list[gallery.Card]]:
    """Writes the dataset's page beside the report; its address and some of what was rejected, for the report."""
    import polars as pl

    if found.dataset_folder is None:
        return "", []
    try:
        return write_dataset_page(found, media)
    except (KiwiError, OSError, ValueError, TypeError, KeyError, AttributeError, pl.exceptions.PolarsError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        found.troubles.append(f"the dataset cannot be shown: {said}")
        return "", []


def _waiting(found: Findings) -> Waiting | None:
    return waits(found.configuration, found.decision, found.model)


def _failures(found: Findings) -> tuple[Failure, ...]:
    """The tasks that failed or were killed; if none said so but the orchestrator does, that."""
    run = found.run or {}
    stopped = run.get("status") == "interrupted"  # by whoever started it, who ended its tasks: those did not fail
    until = figures.number(run.get("finished")) if stopped else None
    ended = ("failed",) if stopped else ("failed", "killed")
    told = tuple(
        _failure(record)
        for record in found.records
        if record.status in ended and (until is None or (record.finished or 0.0) < until)
    )
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


def _headline(found: Findings, failures: Sequence[Failure], waiting: Waiting | None) -> Headline:
    version = _model_version(found)
    model = f"{found.configuration.model_name} version {version}" if version else found.configuration.model_name
    decided = str((found.decision or {}).get("decision") or "")
    reasons = decision.reasons(found.decision)
    if waiting is not None:
        word = "Waits for approvals" if waiting.cause == "approvals" else "Not promoted"
        return Headline("waiting", word, f"{model} passed the gate and stays a challenger", (waiting.why, *reasons[:1]))
    if decided == "promote" and "champion" in ((found.model or {}).get("aliases") or ()):
        return Headline("promoted", "Promoted", f"{model} is the champion", reasons[:1])
    if decided == "hold":
        return Headline("held", "Held", f"{model} stays a challenger", reasons)
    if (found.run or {}).get("status") == "interrupted":
        return Headline("failed", "Interrupted", *_broke_off(found))
    if failures:
        where = f" at {figures.words(failures[0].task)}" if failures[0].task != "run" else ""
        return Headline("failed", "Failed", f"The run stopped{where}", ())
    if decided:
        return Headline("open", "Passed", f"{model} passed the gate and is not promoted yet", reasons[:1])
    if found.scores:
        return Headline("open", "Judged", f"{model} awaits the gate's decision", ())
    last = [record.label for record in found.records if record.name not in sections.REPORT_TASKS]
    return Headline(
        "open", "Under way", f"The run has reached {figures.words(last[-1])}" if last else "Nothing ran yet", ()
    )


def _broke_off(found: Findings) -> tuple[str, tuple[str, ...]]:
    """Where a run was stopped by hand, as a title and what there is to say beside it."""
    last = broken_off(found.records)
    if last is None:
        return "The run was stopped before any task began", (RESUMES,)
    if not last.at_work:
        return f"The run was stopped after {figures.words(last.task)}", (RESUMES,)
    title = f"The run was stopped at {figures.words(last.task)}"
    if not last.total:
        return title, (RESUMES,)
    return title, (f"{figures.count(last.done)} of {figures.count(last.total)} {last.unit} were done.", RESUMES)


def _model_version(found: Findings) -> str:
    for holder in (found.decision, found.model):
        for value in ((holder or {}).get("candidate"), holder):
            if isinstance(value, dict) and value.get("version"):
                return str(value["version"])
            if isinstance(value, str | int) and not isinstance(value, bool):
                return str(value)
    return ""


def _kind_cards(
    found: Findings, media: PageMedia, kinds: Sequence[sections.EditKind]
) -> list[tuple[str, sections.EditKind | None, list[gallery.Card]]]:
    samples = _by_kind(found)
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


def _shown_clips(found: Findings) -> list[Path]:
    """The clips of the samples that the gallery picks."""
    samples, folder = _by_kind(found), found.edits_folder
    picked = [sample for kind in samples.values() for _, sample in gallery.chosen(kind)]
    return [path for sample in picked if folder for path in gallery.clips_of(sample, folder)]


def _by_kind(found: Findings) -> dict[str, list[dict[str, Any]]]:
    """The benchmark's samples as edited by the candidate, by kind of edit."""
    samples: dict[str, list[dict[str, Any]]] = {}
    for sample in (found.edits or {}).get("samples") or []:
        if isinstance(sample, dict) and not sample.get("control") and not sample.get("stage"):
            samples.setdefault(str(sample.get("kind") or "edit"), []).append(sample)
    return samples


def _stage_cards(found: Findings, media: PageMedia) -> list[gallery.Card]:
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


def _control_cards(found: Findings, media: PageMedia) -> list[gallery.Card]:
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


def _edit_card(rank: str, sample: dict[str, Any], folder: Path, media: PageMedia) -> gallery.Card:
    facts = []
    for name, key in (("edit", "psnr_edit"), ("frame", "psnr_full")):
        mine, copied = figures.number(sample.get(key)), figures.number(sample.get(f"copy_{key}"))
        if mine is not None:
            facts.append(
                (name, f"{figures.decimal(mine, 1)} dB" + (f", copy {figures.decimal(copied, 1)}" if copied else ""))
            )
    mark = figures.number(sample.get("overall"))
    return gallery.Card(
        rank,
        str(sample.get("prompt") or ""),
        gallery.edit_tiles(sample, folder, media),
        gallery.gain(sample),
        tuple(facts),
        aside=f"{figures.decimal(mark)} of 5" if mark is not None else "",
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
    ]
    return [(name, value) for name, value in facts if value]


def _mlflow(found: Findings) -> tuple[str, str]:
    """The tracking server's address as text, and as a link to the run: "" where it is no server with pages."""
    uri, run = _without_password(found.configuration.tracking_uri), str((found.sent or {}).get("parent") or "")
    pages = re.sub(r"(?<=://)[^/@]*@", "", uri).rstrip("/")
    linked = bool(re.match(r"https?://[^/\s]", pages)) and re.fullmatch(r"\w+", run)
    return uri, f"{pages}/#/runs/{run}" if linked else ""


def _without_password(uri: str) -> str:
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:…@", uri)


def _command(found: Findings) -> str:
    stated = (found.run or {}).get("command")
    if isinstance(stated, list) and stated:
        return shlex.join(str(word) for word in stated)
    if isinstance(stated, str) and stated:
        return stated
    return run_command(found.configuration)


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
