"""The live view of a run: tasks, shards, rows, rates and losses, read from the tasks' own records."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi.configuration import RunConfiguration
from kiwi.tracking import TaskRecord, read_records

if TYPE_CHECKING:
    from rich.table import Table

REFRESH_SECONDS = 0.25
SILENT_SECONDS = 20.0  # after which a running task is told of where there is no terminal
SIGNS = {
    "pending": "[dim]·[/]",
    "running": "[yellow]▶[/]",
    "finished": "[green]✓[/]",
    "failed": "[red]✗[/]",
    "killed": "[red]✗[/]",
}
BEFORE = (
    ("plan_shards", "Plan shards"),
    ("ingest", "Open and check media"),
    ("score", "Score edits"),
    ("ground", "Find the region"),
    ("segment", "Outline it"),
    ("unique_crops", "Drop repeated crops"),
    ("synthesize", "Make references"),
    ("verify", "Verify references"),
    ("deduplicate", "Deduplicate"),
    ("publish_dataset", "Publish the dataset"),
    ("cache_latents", "Cache latents"),
)
AFTER = (
    ("run_benchmark", "Edit the benchmark"),
    ("judge", "Judge the edits"),
    ("register_model", "Register the challenger"),
    ("report", "Draw the report"),
    ("decide", "Decide"),
    ("promote", "Promote"),
    ("hold", "Hold"),
    ("finish", "Close the run"),
)
VERDICTS = ("promote", "hold")


@dataclass(frozen=True)
class Line:
    """One task of the view, its shards taken together. `seconds`: those in which at least one was at work."""

    name: str
    title: str
    state: str
    done: int = 0
    total: int = 0
    unit: str = ""
    seconds: float = 0.0
    note: str = ""
    loss: float | None = None

    @property
    def rate(self) -> float:
        return self.done / self.seconds if self.seconds > 0.5 else 0.0


def watch(
    root: Path, attempt: str, configuration: RunConfiguration, ended: Callable[[], bool], *, curation: bool = False
) -> None:
    """Shows the run until it has ended: a live table on a terminal, plain lines elsewhere; both on stderr.

    Args:
        curation: show the tasks of curation alone.
    """
    from rich.console import Console

    def seen() -> list[Line]:
        return lines(read_records(root, attempt), configuration, curation=curation)

    console = Console(stderr=True)
    if console.is_terminal:
        from rich.live import Live

        started = time.time()
        with Live(console=console, refresh_per_second=4, transient=False) as live:
            while True:
                over = ended()
                live.update(table(seen(), time.time() - started))
                if over:
                    return
                time.sleep(REFRESH_SECONDS)
    told: dict[str, str] = {}
    spoke = time.monotonic()
    while True:
        over = ended()
        for line in seen():
            if line.state != "pending" and told.get(line.name) != line.state:
                told[line.name] = line.state
                print(_plain(line), file=sys.stderr, flush=True)
                spoke = time.monotonic()
            elif line.state == "running" and line.total and time.monotonic() - spoke > SILENT_SECONDS:
                print(f"  {line.title}: {_count(line)}  {_remark(line)}".rstrip(), file=sys.stderr, flush=True)
                spoke = time.monotonic()
        if over:
            return
        time.sleep(REFRESH_SECONDS)


def lines(records: Sequence[TaskRecord], configuration: RunConfiguration, *, curation: bool = False) -> list[Line]:
    """All tasks in the pipeline's order, those to come as pending; of promote and hold only the one that ran."""
    titles = dict(BEFORE[:-1] if curation else BEFORE)
    if not curation:
        titles.update({f"train_{stage.name}": f"Train {stage.name}" for stage in configuration.stages})
        titles.update(AFTER)
    for record in records:
        titles.setdefault(record.name, record.name)
    grouped = {name: [record for record in records if record.name == name] for name in titles}
    shards = 1 + max((record.shard or 0 for record in records), default=0)
    return [
        _line(name, titles[name], group, shards) for name, group in grouped.items() if group or name not in VERDICTS
    ]


def _line(name: str, title: str, group: list[TaskRecord], shards: int) -> Line:
    if not group:
        return Line(name, title, "pending")
    states = {record.status for record in group}
    state = next((state for state in ("failed", "killed", "running") if state in states), "finished")
    if state == "finished" and group[0].shard is not None and len(group) < shards:
        state = "running"
    progress = [record.progress for record in group if record.progress]
    newest = max(group, key=lambda record: record.heard)
    note = next((record.error for record in group if record.error), "")
    kept = [entry["kept"] for entry in progress if entry.get("kept")]
    if not note and kept:
        note = f"kept {sum(one for one, _ in kept):,} of {sum(every for _, every in kept):,}"
    elif not note and progress:
        note = str(progress[-1]["note"])  # what is being done says more than what was noted on the way
    elif not note and newest.notes:
        note = newest.notes[-1]
    loss = newest.curves.get("loss")
    return Line(
        name,
        title,
        state,
        done=sum(int(entry["done"]) for entry in progress),
        total=sum(int(entry["total"]) for entry in progress),
        unit=str(progress[-1]["unit"]) if progress else "",
        seconds=_at_work(group),
        note=note,
        loss=loss[-1][1] if loss else newest.metrics.get("loss"),
    )


def _at_work(group: list[TaskRecord]) -> float:
    """Seconds in which at least one of these tasks was at work: shards may run at once, or in turn."""
    now, total, until = time.time(), 0.0, 0.0
    for record in sorted(group, key=lambda record: record.started):
        ended = record.finished or (record.heard if record.status == "killed" else now)
        total += max(0.0, ended - max(record.started, until))
        until = max(until, ended)
    return total


def table(rows: Sequence[Line], elapsed: float) -> Table:
    """The view as a rich table."""
    from rich.markup import escape
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    view = Table(box=None, pad_edge=False, show_header=False, title_justify="left", padding=(0, 1))
    for style in ({}, {"min_width": 24}, {"width": 16}, {"justify": "right"}, {"justify": "right"}, {"ratio": 1}):
        view.add_column(no_wrap=True, **style)
    for row in rows:
        dim = "[dim]" if row.state == "pending" else ""
        bar = ProgressBar(row.total, min(row.done, row.total), width=16) if row.total and row.state == "running" else ""
        view.add_row(
            SIGNS[row.state],
            f"{dim}{escape(row.title)}",
            bar,
            _count(row),
            "" if row.state == "pending" else clock(row.seconds),
            escape(_remark(row)),
        )
    view.add_row("", "", "", "", f"[bold]{clock(elapsed)}[/]", "")
    return view


def clock(seconds: float) -> str:
    """65.2 -> 1:05; under a minute 7.2 s."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _count(row: Line) -> str:
    if not row.total:
        return ""
    running = row.state == "running"
    count = f"{row.done:,}/{row.total:,} {row.unit}" if running else f"{row.total:,} {row.unit}"
    if row.rate >= 1:
        count += f" {row.rate:,.0f}/s"
    if running and row.rate > 0 and row.done < row.total:
        count += f", {clock((row.total - row.done) / row.rate)} left"
    return count


def _remark(row: Line) -> str:
    if row.loss is None or row.note.startswith("loss"):
        return row.note
    return f"loss {row.loss:.4f}  {row.note}".rstrip()


def _plain(row: Line) -> str:
    if row.state == "running":
        return f"> {row.title}"
    sign = "ok" if row.state == "finished" else row.state
    said = "  ".join(part for part in (_count(row), clock(row.seconds), _remark(row)) if part)
    return f"  {row.title}: {sign}  {said}"
