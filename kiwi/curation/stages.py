"""Runs one stage over one shard, chunk by chunk. A kill at any moment loses at most the chunk in hand.

The books are written last: where they are, the stage is finished and is not run again. Two workers at one shard write
the same bytes to the same places, each file whole, so the second changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kiwi import storage
from kiwi.configuration import CurationSettings, RunConfiguration
from kiwi.curation.errors import CurationError
from kiwi.curation.ingest import ingest_chunk
from kiwi.curation.parts import DECISION, FIXED, Row, counted, read_part, schema_of, write_part
from kiwi.curation.plan import Listing, Plan, read_document, read_plan
from kiwi.curation.steps import apply_score_threshold, step_of, usage_of
from kiwi.dataset.schema import CURATION_STAGES
from kiwi.dataset.shards import ShardSet
from kiwi.tracking import TaskRun
from kiwi.workspace import write_json

GLOBAL_STAGES = ("unique_crops", "deduplicate")
SHARD_STAGES = tuple(stage for stage in CURATION_STAGES if stage not in GLOBAL_STAGES)


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
    folder = plan.stage_folder(stage, shard)
    if storage.exists(path):
        task.note("reused")
        books: dict[str, Any] = read_document(path)
        task.progress(books["rows"], books["rows"], "rows", kept=(books["kept"], books["rows_in"]))
        return {**books, "path": folder}
    started = time.monotonic()
    if stage == "ingest":
        work = _ingest_work(configuration, plan, shard)
    else:
        work = _step_work(configuration, plan, stage, shard, task)
    books = _run_chunks(plan, stage, shard, configuration.curation, task, work)
    books["seconds"] = round(time.monotonic() - started, 3)
    write_json(path, books)
    task.metrics({"rows_in": books["rows_in"], "kept": books["kept"], "seconds": books["seconds"]})
    return {**books, "path": folder}


def _run_chunks(
    plan: Plan, stage: str, shard: int, settings: CurationSettings, task: TaskRun, work: Callable[[int, str], None]
) -> dict[str, Any]:
    total = len(plan.positions(shard))
    books: dict[str, Any] = {"stage": stage, "shard": shard, "rows": total}
    books |= {"rows_in": 0, "kept": 0, "rejected": {}, "failed": {}}
    done = 0
    for chunk, positions in enumerate(plan.chunks(shard)):
        part = plan.part(stage, shard, chunk)
        if not storage.exists(part):
            work(chunk, part)
        rows = decided_rows(plan, stage, shard, chunk, settings)
        if len(rows) != len(positions):
            raise CurationError(f"{part}: {len(rows)} rows, planned are {len(positions)}", f"delete {part}")
        add_counts(books, counted(rows, stage))
        _tell_failures(plan, stage, shard, chunk, rows, task)
        done += len(rows)
        task.progress(done, total, "rows", kept=(books["kept"], books["rows_in"]))
    return books


def _tell_failures(plan: Plan, stage: str, shard: int, chunk: int, rows: list[Row], task: TaskRun) -> None:
    """Samples that failed in this stage, by their ids, for the log."""
    failed = [index for index, row in enumerate(rows) if row["status"] == "failed" and row["stage"] == stage]
    if not failed:
        return
    ids = [row["iid"] for row in read_part(plan.part("ingest", shard, chunk), ["iid"])]
    for index in failed:
        task.sample(ids[index], "failed", str(rows[index]["reason"]), str(rows[index]["detail"] or ""))


def _ingest_work(configuration: RunConfiguration, plan: Plan, shard: int) -> Callable[[int, str], None]:
    listing = Listing(plan)

    def work(chunk: int, part: str) -> None:
        pairs = listing.pairs(plan.chunks(shard)[chunk])
        rows = ingest_chunk(configuration, pairs, plan.root, plan.media(shard, chunk))
        write_part(part, rows, schema_of("ingest"))

    return work


def _step_work(
    configuration: RunConfiguration, plan: Plan, stage: str, shard: int, task: TaskRun
) -> Callable[[int, str], None]:
    settings = configuration.curation
    before = stages_before(stage, settings)
    if not storage.exists(plan.books(before[-1], shard)):
        raise CurationError(f"{stage} of shard {shard}: {before[-1]} is not finished", f"run {before[-1]} first")
    cache = storage.join(plan.root, "replies") if settings.service.cache else None
    step = step_of(stage, settings, seed=configuration.seed, cache=cache)
    schema = schema_of(stage, step.measures)

    def work(chunk: int, part: str) -> None:
        rows = read_rows(plan, shard, chunk, before, step.needs, settings)
        with ShardSet(plan.root) as media:
            step.work(rows, media.read)
        if usage := usage_of(step):
            task.metrics(usage)
        write_part(part, rows, schema)

    return work


def books_so_far(configuration: RunConfiguration) -> list[dict[str, Any]]:
    """The books of the stages and shards that are finished; empty where nothing was planned."""
    try:
        plan = read_plan(configuration)
    except CurationError:
        return []
    paths = [plan.books(stage, shard) for stage in CURATION_STAGES[:-1] for shard in range(plan.shards)]
    return [read_document(path) for path in paths if storage.exists(path)]


def stages_before(stage: str, settings: CurationSettings) -> tuple[str, ...]:
    """The stages whose parts a stage stands on; that of unique crops has parts only where it is on."""
    before = CURATION_STAGES[: CURATION_STAGES.index(stage)]
    return tuple(name for name in before if name != "unique_crops" or settings.unique_crops)


def read_rows(
    plan: Plan, shard: int, chunk: int, stages: tuple[str, ...], needs: tuple[str, ...], settings: CurationSettings
) -> list[Row]:
    """A chunk's rows from several stages' parts side by side: the columns asked for, and the last stage's decision."""
    rows: list[Row] = []
    for stage in stages:
        own = [name for name in needs if name in FIXED[stage]]
        if stage == stages[-1]:
            found = decided_rows(plan, stage, shard, chunk, settings, own)
        elif own:
            found = read_part(plan.part(stage, shard, chunk), own)
        else:
            continue
        if rows and len(rows) != len(found):
            raise CurationError(f"{plan.part(stage, shard, chunk)}: another number of rows than the stage before")
        rows = [{**one, **other} for one, other in zip(rows, found, strict=True)] if rows else found
    return rows


def decided_rows(
    plan: Plan, stage: str, shard: int, chunk: int, settings: CurationSettings, columns: list[str] | None = None
) -> list[Row]:
    """A chunk's rows as a stage decided them, the score thresholds applied to the scores, with these columns."""
    wanted = [*(columns or []), *DECISION]
    if stage == "score":
        wanted += [name for name in ("score_name", "score_overall") if name not in wanted]
    rows = read_part(plan.part(stage, shard, chunk), wanted)
    if stage == "score":
        for row in rows:
            apply_score_threshold(row, settings)
    return rows


def add_counts(books: dict[str, Any], more: dict[str, Any]) -> None:
    """Adds `more`'s rows in, kept, rejected and failed to `books`."""
    books["rows_in"] += more["rows_in"]
    books["kept"] += more["kept"]
    for status in ("rejected", "failed"):
        for reason, count in more[status].items():
            books[status][reason] = books[status].get(reason, 0) + count
