"""An early exit over all shards: near-duplicate target crops go before references are made of them.

Making a reference is by far the dearest step (docs/data.md), and a crop that repeats another gives the same reference
again. Off unless `curation.unique_crops` asks for it; then the first of each set of crops is kept, in listing order.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from kiwi import storage
from kiwi.configuration import RunConfiguration
from kiwi.curation.curators import registry
from kiwi.curation.errors import CurationError
from kiwi.curation.parts import Row, counted, decide, leave, schema_of, write_part
from kiwi.curation.plan import Plan, read_document, read_plan
from kiwi.curation.stages import add_counts, read_rows, stages_before
from kiwi.dataset.schema import Reason, Status
from kiwi.tracking import TaskRun
from kiwi.workspace import write_json

STAGE = "unique_crops"
_NEEDS = ("iid", "position", "crop_fingerprint")


def unique_crops(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """Decides the rows that segmentation kept, and writes a part for each chunk of each shard.

    Returns:
        {stage, rows_in, kept, rejected{}, failed{}, seconds}: the books of all shards together.

    Raises:
        CurationError: segmentation of a shard is not finished.
    """
    plan = read_plan(configuration)
    started = time.monotonic()
    books: dict[str, Any] = {"stage": STAGE, "rows_in": 0, "kept": 0, "rejected": {}, "failed": {}}
    if not configuration.curation.unique_crops:
        for shard in range(plan.shards):
            kept = _segmented(plan, shard)["kept"]
            add_counts(books, {"rows_in": kept, "kept": kept, "rejected": {}, "failed": {}})
        task.note("off")
    elif all(storage.exists(plan.books(STAGE, shard)) for shard in range(plan.shards)):
        for shard in range(plan.shards):
            add_counts(books, read_document(plan.books(STAGE, shard)))
        task.note("reused")
    else:
        _decide_all(configuration, plan, books, task)
    books["seconds"] = round(time.monotonic() - started, 3)
    task.metrics({"rows_in": books["rows_in"], "kept": books["kept"], "seconds": books["seconds"]})
    return books


def _decide_all(configuration: RunConfiguration, plan: Plan, books: dict[str, Any], task: TaskRun) -> None:
    repeats = _repeats(configuration, plan)
    before = stages_before(STAGE, configuration.curation)
    for shard in range(plan.shards):
        own: dict[str, Any] = {"stage": STAGE, "shard": shard, "rows": len(plan.positions(shard))}
        own |= {"rows_in": 0, "kept": 0, "rejected": {}, "failed": {}}
        for chunk in range(len(plan.chunks(shard))):
            rows = read_rows(plan, shard, chunk, before, ("position",), configuration.curation)
            for row in rows:
                if row["status"] == Status.KEPT:
                    _decide(row, repeats.get(row["position"]))
            write_part(plan.part(STAGE, shard, chunk), rows, schema_of(STAGE))
            add_counts(own, counted(rows, STAGE))
        write_json(plan.books(STAGE, shard), own)
        add_counts(books, own)
        task.progress(shard + 1, plan.shards, "shards", kept=(books["kept"], books["rows_in"]))


def _decide(row: Row, earlier: tuple[int, str] | None) -> None:
    if earlier is None:
        decide(row, STAGE, Status.KEPT)
        return
    row["crop_of"] = earlier[1]
    leave(row, STAGE, Reason.DUPLICATE_CROP, f"what would be cut out repeats that of row {earlier[0]}")


def _repeats(configuration: RunConfiguration, plan: Plan) -> dict[int, tuple[int, str]]:
    """Position -> (position, iid) of the earlier kept row with the same crop."""
    before = stages_before(STAGE, configuration.curation)
    found: list[tuple[int, str, bytes]] = []
    for shard in range(plan.shards):
        _segmented(plan, shard)
        for chunk in range(len(plan.chunks(shard))):
            for row in read_rows(plan, shard, chunk, before, _NEEDS, configuration.curation):
                if row["status"] == Status.KEPT and row["crop_fingerprint"] is not None:
                    found.append((row["position"], row["iid"], row["crop_fingerprint"]))
    found.sort()
    if not found:
        return {}
    earlier = registry.deduplicator(configuration.curation).keep_first([[print_ for _, _, print_ in found]])
    return {found[place][0]: found[int(earlier[place])][:2] for place in np.flatnonzero(earlier >= 0)}


def _segmented(plan: Plan, shard: int) -> dict[str, Any]:
    path = plan.books("segment", shard)
    if not storage.exists(path):
        raise CurationError(f"shard {shard}: segment is not finished", "run its stages first")
    books: dict[str, Any] = read_document(path)
    return books
