"""Runs one stage over one shard, chunk by chunk. A kill at any moment loses at most the chunk in hand.

The books are written last: where they are, the stage is finished and is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kiwi.configuration import RunConfiguration
from kiwi.curation.ingest import ingest_chunk
from kiwi.curation.parts import DECISION, FIXED, Row, counted, decide, read_part, schema_of, write_part
from kiwi.curation.plan import CurationError, Plan, read_plan
from kiwi.curation.steps import Step, step_of
from kiwi.dataset.schema import CURATION_STAGES, EditPair, Reason, Status
from kiwi.dataset.shards import ShardError, ShardSet
from kiwi.sources.listing import list_pairs
from kiwi.tracking import TaskRun
from kiwi.workspace import read_json, write_json

SHARD_STAGES = CURATION_STAGES[:-1]


def run_stage(configuration: RunConfiguration, stage: str, shard: int, task: TaskRun) -> dict[str, Any]:
    """Runs `stage` ("ingest" to "verify") on `shard` and returns its books.

    Rows that an earlier stage rejected or failed pass through untouched.

    Returns:
        {stage, shard, rows_in, kept, rejected{reason: n}, failed{reason: n}, seconds, path}.

    Raises:
        CurationError: no such stage, no plan, or the stage before is not finished.
    """
    if stage not in SHARD_STAGES:
        raise CurationError(f"no shard stage {stage!r}", f"stages: {', '.join(SHARD_STAGES)}")
    plan = read_plan(configuration)
    path = plan.books(stage, shard)
    if path.exists():
        task.note("reused")
        return {**read_json(path), "path": str(path.parent)}
    started = time.monotonic()
    if stage == "ingest":
        work = _ingest_work(configuration, plan, shard)
    else:
        work = _step_work(configuration, plan, stage, shard)
    books = _run_chunks(plan, stage, shard, task, work)
    books["seconds"] = round(time.monotonic() - started, 3)
    write_json(path, books)
    task.metrics({"rows_in": books["rows_in"], "kept": books["kept"], "seconds": books["seconds"]})
    return {**books, "path": str(path.parent)}


def _run_chunks(plan: Plan, stage: str, shard: int, task: TaskRun, work: Callable[[int, Path], None]) -> dict[str, Any]:
    total = len(plan.positions(shard))
    books: dict[str, Any] = {"stage": stage, "shard": shard, "rows_in": 0, "kept": 0, "rejected": {}, "failed": {}}
    done = 0
    for chunk, positions in enumerate(plan.chunks(shard)):
        part = plan.part(stage, shard, chunk)
        if not part.exists():
            work(chunk, part)
        rows = read_part(part, list(DECISION))
        if len(rows) != len(positions):
            raise CurationError(f"{part}: {len(rows)} rows, planned are {len(positions)}", f"delete {part.parent}")
        _add(books, counted(rows, stage))
        done += len(rows)
        task.progress(done, total, "rows", f"kept {books['kept']} of {books['rows_in']}")
    return books


def _ingest_work(configuration: RunConfiguration, plan: Plan, shard: int) -> Callable[[int, Path], None]:
    listed: list[EditPair] = []

    def work(chunk: int, part: Path) -> None:
        if not listed:
            listed.extend(list_pairs(configuration.source))
        if len(listed) != plan.pairs:
            raise CurationError(
                f"the source lists {len(listed)} pairs, planned were {plan.pairs}", "plan again: the source has changed"
            )
        pairs = [listed[position] for position in plan.chunks(shard)[chunk]]
        rows = ingest_chunk(configuration, pairs, plan.root, plan.media(shard, chunk))
        write_part(part, rows, schema_of("ingest"))

    return work


def _step_work(configuration: RunConfiguration, plan: Plan, stage: str, shard: int) -> Callable[[int, Path], None]:
    before = SHARD_STAGES[: SHARD_STAGES.index(stage)]
    if not plan.books(before[-1], shard).exists():
        raise CurationError(f"{stage} of shard {shard}: {before[-1]} is not finished", f"run {before[-1]} first")
    step = step_of(stage, configuration.curation)
    schema = schema_of(stage, step.measures)

    def work(chunk: int, part: Path) -> None:
        rows = read_rows(plan, shard, chunk, before, step.needs)
        with ShardSet(plan.root) as media:
            for row in rows:
                if row["status"] == Status.KEPT:
                    _judge(step, row, media)
        write_part(part, rows, schema)

    return work


def _judge(step: Step, row: Row, media: ShardSet) -> None:
    """One row's work. Whatever a curator trips over becomes that row's failure, with the error's words."""
    try:
        step.work(row, media.read)
    except (ShardError, MemoryError):  # the machine's fault, not the row's
        raise
    except Exception as error:  # noqa: BLE001 - a row must not take its shard along
        decide(row, step.name, Status.FAILED, Reason.CURATOR_ERROR, f"{type(error).__name__}: {error}")


def read_rows(plan: Plan, shard: int, chunk: int, stages: tuple[str, ...], needs: tuple[str, ...]) -> list[Row]:
    """A chunk's rows from several stages' parts side by side: the columns asked for, and the last stage's decision."""
    rows: list[Row] = []
    for stage in stages:
        own = [name for name in needs if name in FIXED[stage]]
        columns = own + (list(DECISION) if stage == stages[-1] else [])
        if not columns:
            continue
        found = read_part(plan.part(stage, shard, chunk), columns)
        if rows and len(rows) != len(found):
            raise CurationError(f"{plan.part(stage, shard, chunk)}: another number of rows than the stage before")
        rows = [{**one, **other} for one, other in zip(rows, found, strict=True)] if rows else found
    return rows


def _add(books: dict[str, Any], more: dict[str, Any]) -> None:
    books["rows_in"] += more["rows_in"]
    books["kept"] += more["kept"]
    for status in ("rejected", "failed"):
        for reason, count in more[status].items():
            books[status][reason] = books[status].get(reason, 0) + count
