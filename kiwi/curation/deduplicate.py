"""The global stage: repeated samples and near-duplicate references go, the first of each is kept, in listing order.

It also puts the parts of all stages and shards side by side into the final rows that a dataset is made of.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kiwi.configuration import RunConfiguration, canonical_json, digest
from kiwi.curation.curators import registry
from kiwi.curation.funnel import funnel
from kiwi.curation.parts import DECISION, Row, column_names, counted, decide, read_table, write_part
from kiwi.curation.plan import CurationError, Plan, read_plan
from kiwi.curation.stages import SHARD_STAGES
from kiwi.dataset.schema import Reason, Status, TrainsAs
from kiwi.tracking import TaskRun
from kiwi.workspace import read_json, write_json

STAGE = "deduplicate"
PART_ROWS = 4096
_FRAMES = ("given_reference", "source_frame", "target_frame", "mask_png")
_FINGERPRINTS = ("target_fingerprint", "reference_fingerprint")
_OWN = {
    "trains_as": pa.string(),
    "dup_of": pa.string(),
    "curator": pa.string(),
    "parameters_hash": pa.string(),
}
_WORTHLESS = frozenset({Reason.DUPLICATE_SAMPLE, Reason.SIZE_MISMATCH, Reason.LENGTH_MISMATCH, Reason.NO_VISIBLE_EDIT})


def deduplicate(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """Decides the rows that all stages kept, and writes `<curation>/deduplicated/part-*.parquet`, sorted by position.

    Near-duplicates are judged by `curation.duplicate_scope`: the reference alone, or reference and target both (two
    scenes with one mug in them are two samples).

    Returns:
        {stage, rows_in, kept, rejected{}, failed{}, seconds, path, rows, funnel[], trains_as{}, curators{}}.

    Raises:
        CurationError: a shard's last stage is not finished.
    """
    plan = read_plan(configuration)
    marker = plan.deduplicated / "books.json"
    if marker.exists():
        task.note("reused")
        return {**read_json(marker), "path": str(plan.deduplicated)}
    started = time.monotonic()
    table = _gathered(plan)
    rows = _decisions(table)
    _drop_repeated_samples(rows)
    _drop_repeated_references(configuration, table, rows)
    provenance = registry.provenance(configuration.curation)
    for row in rows:
        row["trains_as"] = trains_as(row, configuration.curation.min_score).value
        row["curator"] = canonical_json(provenance)
        row["parameters_hash"] = parameters_hash(configuration)
    _write(plan, table, rows)
    books = {"stage": STAGE, **counted(rows, STAGE), "rows": len(rows), "funnel": funnel(rows), "curators": provenance}
    books["trains_as"] = {kind.value: sum(row["trains_as"] == kind for row in rows) for kind in TrainsAs}
    books["seconds"] = round(time.monotonic() - started, 3)
    write_json(marker, books)
    task.metrics({"rows_in": books["rows_in"], "kept": books["kept"], "seconds": books["seconds"]})
    return {**books, "path": str(plan.deduplicated)}


def trains_as(row: Row, min_score: float) -> TrainsAs:
    """What a row is good for: a kept one as quadruplet; one that lost only its reference, and whose instruction says
    enough without, as instruction data."""
    if row["status"] == Status.KEPT:
        return TrainsAs.QUADRUPLET
    if row["status"] == Status.FAILED or row["reason"] in _WORTHLESS or row["repeated"] or row["needs_reference"]:
        return TrainsAs.NOTHING
    score = row["score_overall"]
    return TrainsAs.INSTRUCTION if score is not None and score >= min_score else TrainsAs.NOTHING


def parameters_hash(configuration: RunConfiguration) -> str:
    """Hash of the settings that decide what becomes of a row; portions of work are none of them."""
    settings = configuration.curation.model_dump(mode="json")
    for portion in ("shards", "chunk_rows"):
        settings.pop(portion)
    return digest(settings, registry.provenance(configuration.curation))


def _gathered(plan: Plan) -> pa.Table:
    """All rows of all shards, the stages' columns side by side, sorted by position; frames and masks stay behind."""
    tables = []
    for shard in range(plan.shards):
        if not plan.books(SHARD_STAGES[-1], shard).exists():
            raise CurationError(f"shard {shard}: {SHARD_STAGES[-1]} is not finished", "run its stages first")
        for chunk in range(len(plan.chunks(shard))):
            tables.append(_side_by_side(plan, shard, chunk))
    table = pa.concat_tables(tables)
    return table.take(pc.sort_indices(table, sort_keys=[("position", "ascending")]))


def _side_by_side(plan: Plan, shard: int, chunk: int) -> pa.Table:
    columns: dict[str, pa.ChunkedArray] = {}
    for stage in SHARD_STAGES:
        left_out = set(_FRAMES) | (set() if stage == SHARD_STAGES[-1] else set(DECISION))
        path = plan.part(stage, shard, chunk)
        names = [name for name in column_names(path) if name not in left_out]
        found = read_table(path, names)
        columns.update({name: found[name] for name in names})
    return pa.table(columns)


def _decisions(table: pa.Table) -> list[Row]:
    names = ["position", "iid", "needs_reference", "score_overall", *DECISION]
    rows: list[Row] = table.select(names).to_pylist()
    for row in rows:
        row.update(dup_of="", repeated=False)
        if row["status"] == Status.KEPT:
            row["stage"] = STAGE
    return rows


def _drop_repeated_samples(rows: list[Row]) -> None:
    """A pair that is listed twice counts once. A repetition that was out already keeps its reason."""
    first: dict[str, Row] = {}
    for row in rows:
        if row["status"] == Status.FAILED or first.setdefault(row["iid"], row) is row:
            continue
        row.update(dup_of=row["iid"], repeated=True)
        if row["status"] == Status.KEPT:
            detail = f"the same source, target and instruction as row {first[row['iid']]['position']}"
            decide(row, STAGE, Status.REJECTED, Reason.DUPLICATE_SAMPLE, detail)


def _drop_repeated_references(configuration: RunConfiguration, table: pa.Table, rows: list[Row]) -> None:
    settings = configuration.curation
    standing = np.flatnonzero([row["status"] == Status.KEPT for row in rows])
    if len(standing) == 0:
        return
    aspects = ["reference_fingerprint"]
    if settings.duplicate_scope == "quadruplet":
        aspects.append("target_fingerprint")
    prints = [table[name].take(pa.array(standing)).to_pylist() for name in aspects]
    repeats = registry.deduplicator(settings).keep_first(prints, settings.duplicate_distance)
    for place, earlier in zip(standing, repeats, strict=True):
        if earlier >= 0:
            kept = rows[int(standing[earlier])]
            rows[int(place)]["dup_of"] = kept["iid"]
            detail = f"its {settings.duplicate_scope} repeats that of row {kept['position']}"
            decide(rows[int(place)], STAGE, Status.REJECTED, Reason.DUPLICATE_REFERENCE, detail)


def _write(plan: Plan, table: pa.Table, rows: list[Row]) -> None:
    stays = [name for name in table.column_names if name not in _FINGERPRINTS and name not in DECISION]
    schema = pa.schema([*(table.schema.field(name) for name in stays), *{**_OWN, **DECISION}.items()])
    for number, start in enumerate(range(0, len(rows), PART_ROWS)):
        portion: list[Row] = table.select(stays).slice(start, PART_ROWS).to_pylist()
        decided = rows[start : start + PART_ROWS]
        own = [*_OWN, *DECISION]
        full = [{**row, **{name: said[name] for name in own}} for row, said in zip(portion, decided, strict=True)]
        for row in full:  # a reference that did not hold is no part of the dataset
            if row["trains_as"] != TrainsAs.QUADRUPLET:
                row.update(ref_image_bytes=None, ref_origin="")
        write_part(plan.deduplicated / f"part-{number:05d}.parquet", full, schema)
