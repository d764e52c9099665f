"""The global stage: repeated samples and near-duplicate references go, the first of each is kept, in listing order.

It also puts the parts of all stages and shards side by side into the final rows that a dataset is made of. What it
decides by is small and held for all rows; the rows themselves stream through, a few chunks at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from kiwi import storage
from kiwi.configuration import RunConfiguration, canonical_json, digest
from kiwi.curation.curators import registry
from kiwi.curation.errors import CurationError
from kiwi.curation.keys import effective_settings
from kiwi.curation.parts import DECISION, MEASURED, read_table, schema_of, write_table
from kiwi.curation.plan import Plan, read_document, read_plan
from kiwi.curation.stages import SHARD_STAGES, stages_before
from kiwi.curation.steps import step_of
from kiwi.dataset.schema import WORTHLESS, Reason, Status, TrainsAs
from kiwi.dataset.statistics import funnel_of
from kiwi.tracking import TaskRun
from kiwi.workspace import write_json

STAGE = "deduplicate"
PART_ROWS = 4096
READERS = 8  # parts read at once; at an address each costs a round trip
_FRAMES = ("given_reference", "source_frame", "target_frame", "mask_png", "crop_fingerprint", "crop_of")
_FINGERPRINTS = ("target_fingerprint", "reference_fingerprint")
_OWN = {"trains_as": pa.string(), "dup_of": pa.string(), "curator": pa.string(), "parameters_hash": pa.string()}


def deduplicate(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """Decides the rows that all stages kept, and writes `<key>/deduplicated/part-*.parquet`, sorted by position.

    Near-duplicates are judged by `curation.duplicate_scope`: the reference alone, or reference and target both (two
    scenes with one mug in them are two samples).

    Returns:
        {stage, rows_in, kept, rejected{}, failed{}, seconds, path, rows, funnel[], trains_as{}, curators{}}.

    Raises:
        CurationError: a shard's last stage is not finished.
    """
    plan = read_plan(configuration)
    marker = storage.join(plan.deduplicated, "books.json")
    if storage.exists(marker):
        task.note("reused")
        return {**read_document(marker), "path": plan.deduplicated}
    started = time.monotonic()
    rows = _decided(configuration, _standing(plan, configuration))
    provenance = registry.provenance(configuration.curation)
    rows = rows.with_columns(
        trains_as(configuration.curation.min_score),
        pl.lit(canonical_json(provenance)).alias("curator"),
        pl.lit(parameters_hash(configuration)).alias("parameters_hash"),
    )
    for part, table in enumerate(_final(plan, configuration, rows)):
        write_table(storage.join(plan.deduplicated, f"part-{part:05d}.parquet"), table)
        task.progress(min((part + 1) * PART_ROWS, plan.pairs), plan.pairs)
    funnel = funnel_of(rows)
    kinds = {kind.value: rows.filter(pl.col("trains_as") == kind).height for kind in TrainsAs}
    books = {**funnel[-1], "rows": rows.height, "funnel": funnel, "curators": provenance, "trains_as": kinds}
    books["seconds"] = round(time.monotonic() - started, 3)
    write_json(marker, books)
    task.metrics({"rows_in": books["rows_in"], "kept": books["kept"], "seconds": books["seconds"]})
    return {**books, "path": plan.deduplicated}


def trains_as(min_score: float) -> pl.Expr:
    """What a row is good for: a kept one as quadruplet; one that lost only its reference, and whose instruction says
    enough without, as instruction data."""
    worthless = (
        (pl.col("status") == Status.FAILED)
        | pl.col("reason").is_in([str(reason) for reason in WORTHLESS])
        | pl.col("repeated")
        | pl.col("needs_reference")
    )
    good = pl.col("score_overall").fill_null(-1.0) >= min_score
    return (
        pl.when(pl.col("status") == Status.KEPT)
        .then(pl.lit(TrainsAs.QUADRUPLET.value))
        .when(~worthless & good)
        .then(pl.lit(TrainsAs.INSTRUCTION.value))
        .otherwise(pl.lit(TrainsAs.NOTHING.value))
        .alias("trains_as")
    )


def parameters_hash(configuration: RunConfiguration) -> str:
    """Hash of the settings that decide what becomes of a row; portions of work are none of them."""
    return digest(effective_settings(configuration), registry.provenance(configuration.curation))


def _standing(plan: Plan, configuration: RunConfiguration) -> pl.DataFrame:
    """What the decisions need of every row, sorted by position: decision, identity, score, fingerprints."""
    last = SHARD_STAGES[-1]
    for shard in range(plan.shards):
        if not storage.exists(plan.books(last, shard)):
            raise CurationError(f"shard {shard}: {last} is not finished", "run its stages first")

    def portion(place: tuple[int, int]) -> pl.DataFrame:
        listed = read_table(plan.part("ingest", *place), ["position", "iid", "needs_reference"])
        scored = read_table(plan.part("score", *place), ["score_overall"])
        ended = read_table(plan.part(last, *place), [*DECISION, *_FINGERPRINTS])
        frames = [pl.DataFrame(pl.from_arrow(table)) for table in (listed, scored, ended)]
        return pl.concat(frames, how="horizontal")

    places = [(shard, chunk) for shard in range(plan.shards) for chunk in range(len(plan.chunks(shard)))]
    with ThreadPoolExecutor(READERS) as readers:
        return pl.concat(list(readers.map(portion, places))).sort("position")


def _decided(configuration: RunConfiguration, rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with their final decision, `repeated` and `dup_of`; without fingerprints."""
    kept = pl.col("status") == Status.KEPT
    rows = rows.with_columns(pl.when(kept).then(pl.lit(STAGE)).otherwise("stage").alias("stage"))
    rows = _without_repeated_samples(rows)
    rows = _without_repeated_references(configuration, rows)
    return rows.drop(*_FINGERPRINTS)


def _without_repeated_samples(rows: pl.DataFrame) -> pl.DataFrame:
    """A pair that is listed twice counts once: the first that was kept, else the first that could be read. A
    repetition that was out already keeps its reason."""
    kept = pl.when(pl.col("status") == Status.KEPT).then("position").min().over("iid")
    readable = pl.when(pl.col("status") != Status.FAILED).then("position").min().over("iid")
    rows = rows.with_columns(pl.coalesce(kept, readable).alias("first"))
    repeated = (pl.col("status") != Status.FAILED) & (pl.col("position") != pl.col("first"))
    rows = rows.with_columns(
        repeated.alias("repeated"),
        pl.when(repeated).then("iid").otherwise(pl.lit("")).alias("dup_of"),
        (repeated & (pl.col("status") == Status.KEPT)).alias("goes"),
    )
    said = pl.format("the same source, target and instruction as row {}", "first")
    return _rejected(rows, Reason.DUPLICATE_SAMPLE, said).drop("first")


def _without_repeated_references(configuration: RunConfiguration, rows: pl.DataFrame) -> pl.DataFrame:
    settings = configuration.curation
    standing = np.flatnonzero((rows["status"] == Status.KEPT).to_numpy())
    if len(standing) == 0:
        return rows
    aspects = ["reference_fingerprint"]
    if settings.duplicate_scope == "quadruplet":
        aspects.append("target_fingerprint")
    prints = [rows[name].gather(standing).to_list() for name in aspects]
    earlier = registry.deduplicator(settings).keep_first(prints)
    of = np.full(rows.height, -1, np.int64)
    of[standing] = np.where(earlier >= 0, standing[earlier], -1)
    goes = of >= 0
    keepers = rows.select("iid", "position")[np.where(goes, of, 0).tolist()]
    rows = rows.with_columns(
        pl.Series("goes", goes), keepers["iid"].alias("of_iid"), keepers["position"].alias("of_position")
    ).with_columns(pl.when("goes").then("of_iid").otherwise("dup_of").alias("dup_of"))
    said = pl.format(f"its {settings.duplicate_scope} repeats that of row {{}}", "of_position")
    return _rejected(rows, Reason.DUPLICATE_REFERENCE, said).drop("of_iid", "of_position")


def _rejected(rows: pl.DataFrame, reason: Reason, detail: pl.Expr) -> pl.DataFrame:
    """Rejects the rows that `goes` marks, at this stage."""
    return rows.with_columns(
        pl.when("goes").then(pl.lit(Status.REJECTED.value)).otherwise("status").alias("status"),
        pl.when("goes").then(pl.lit(reason.value)).otherwise("reason").alias("reason"),
        pl.when("goes").then(detail).otherwise("detail").alias("detail"),
    ).drop("goes")


def _final(plan: Plan, configuration: RunConfiguration, rows: pl.DataFrame) -> Iterator[pa.Table]:
    """The final rows in parts of PART_ROWS: all stages side by side, frames and masks left behind."""
    stages = _schemas(configuration)
    decided = rows.select(*_OWN, *DECISION)

    @lru_cache(maxsize=plan.shards + 1)  # a part of the rows takes from one or two chunks of each shard in turn
    def chunk_of(shard: int, chunk: int) -> pl.DataFrame:
        return _side_by_side(plan, stages, shard, chunk)

    for start in range(0, plan.pairs, PART_ROWS):
        stop = min(start + PART_ROWS, plan.pairs)
        portions = []
        for shard in range(plan.shards):
            places = [place for place in range(start, stop) if place % plan.shards == shard]
            within = [place // plan.shards for place in places]
            for chunk in sorted({index // plan.chunk_rows for index in within}):
                taken = [index % plan.chunk_rows for index in within if index // plan.chunk_rows == chunk]
                portions.append(chunk_of(shard, chunk)[taken])
        part = pl.concat([pl.concat(portions).sort("position"), decided[start:stop]], how="horizontal")
        quadruplet = pl.col("trains_as") == TrainsAs.QUADRUPLET  # a reference that did not hold is no part of it
        part = part.with_columns(
            pl.when(quadruplet).then("ref_image_bytes").alias("ref_image_bytes"),
            pl.when(quadruplet).then("ref_origin").otherwise(pl.lit("")).alias("ref_origin"),
        )
        yield part.to_arrow(compat_level=pl.CompatLevel.oldest())


def _schemas(configuration: RunConfiguration) -> dict[str, list[str]]:
    """The columns that each stage gives to the final rows."""
    settings = configuration.curation
    columns = {}
    for stage in stages_before(STAGE, settings):
        measures = step_of(stage, settings).measures if stage in MEASURED else ()
        left_out = {*_FRAMES, *_FINGERPRINTS, *DECISION}
        columns[stage] = [name for name in schema_of(stage, measures).names if name not in left_out]
    return columns


def _side_by_side(plan: Plan, stages: dict[str, list[str]], shard: int, chunk: int) -> pl.DataFrame:
    tables = [read_table(plan.part(stage, shard, chunk), names) for stage, names in stages.items() if names]
    return pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in tables], how="horizontal")
