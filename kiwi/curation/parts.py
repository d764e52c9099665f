"""Parts: the Parquet files that stages commit chunk by chunk, each with a stage's own columns and its decisions.

A stage's part has a row for every row of its chunk, in the same order, so the whole row is its parts side by side,
and no stage copies what another wrote. A part is there whole or not at all.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kiwi import storage
from kiwi.curation.errors import CurationError
from kiwi.dataset.schema import FAILURES, Reason, Status

Row = dict[str, Any]

DECISION = {"status": pa.string(), "stage": pa.string(), "reason": pa.string(), "detail": pa.string()}
FIXED: dict[str, dict[str, pa.DataType]] = {
    "ingest": {
        "position": pa.int64(),
        "iid": pa.string(),
        "pair_id": pa.string(),
        "source_dataset": pa.string(),
        "license": pa.string(),
        "edit_type": pa.string(),
        "task": pa.string(),
        "media": pa.string(),
        "prompt": pa.string(),
        "needs_reference": pa.bool_(),
        "src_video": pa.string(),
        "tgt_video": pa.string(),
        "src_sha256": pa.string(),
        "tgt_sha256": pa.string(),
        "given_reference": pa.binary(),
    },
    "score": {
        "width": pa.int64(),
        "height": pa.int64(),
        "frames": pa.int64(),
        "fps": pa.float64(),
        "score_name": pa.string(),
        "score_overall": pa.float64(),
        "score_first_frame": pa.float64(),
        "source_frame": pa.binary(),
        "target_frame": pa.binary(),
    },
    "ground": {
        "region_kind": pa.string(),
        "region_x1": pa.float64(),
        "region_y1": pa.float64(),
        "region_x2": pa.float64(),
        "region_y2": pa.float64(),
    },
    "segment": {"mask_png": pa.binary(), "crop_fingerprint": pa.binary()},
    "unique_crops": {"crop_of": pa.string()},
    "synthesize": {"ref_image_bytes": pa.binary(), "ref_origin": pa.string()},
    "verify": {
        "verify_consistency": pa.float64(),
        "reference_fingerprint": pa.binary(),
        "target_fingerprint": pa.binary(),
    },
}
_REMEDY = "delete the folder of this stage; the next run makes it again"
MEASURED = {"score": "score_", "ground": "region_", "segment": "mask_", "synthesize": "mask_crop_", "verify": "verify_"}


def schema_of(stage: str, measures: Sequence[str] = ()) -> pa.Schema:
    """The columns that a stage's parts have: its own, its curator's measures, and the decision."""
    columns = dict(FIXED[stage])
    for measure in measures:
        columns.setdefault(MEASURED[stage] + measure, pa.float64())
    return pa.schema(list({**columns, **DECISION}.items()))


def write_part(path: str, rows: Sequence[Row], schema: pa.Schema) -> None:
    """Commits a chunk's rows; what a row does not have is null. The same rows give the same bytes."""
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    write_table(path, pa.Table.from_arrays(columns, schema=schema))


def write_table(path: str, table: pa.Table) -> None:
    """Parquet, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(path, buffer.getvalue())


def read_part(path: str, columns: Sequence[str] | None = None) -> list[Row]:
    """A part's rows. Raises CurationError where it is missing or no Parquet."""
    return list(read_table(path, columns).to_pylist())


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A part's columns: those asked for of those that it has, in the order asked for; all where none are named."""
    try:
        with storage.open_read(path) as opened, pq.ParquetFile(opened) as file:
            there = file.schema_arrow.names
            wanted = None if columns is None else [name for name in columns if name in there]
            return file.read(columns=wanted)
    except (OSError, pa.ArrowInvalid) as error:
        raise CurationError(f"{path}: {error}", _REMEDY) from error
    except storage.StorageError as error:
        raise CurationError(error.message, _REMEDY) from error


def counted(rows: Sequence[Mapping[str, Any]], stage: str) -> dict[str, Any]:
    """How a stage decided: rows in (those that came to it), kept, rejected and failed by reason."""
    here = [row for row in rows if row["status"] == Status.KEPT or row["stage"] == stage]
    books: dict[str, Any] = {"rows_in": len(here), "kept": 0, "rejected": {}, "failed": {}}
    for row in here:
        if row["status"] == Status.KEPT:
            books["kept"] += 1
        else:
            reasons = books[str(row["status"])]
            reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    return books


def leave(row: Row, stage: str, reason: Reason, detail: str) -> Row:
    """Marks a row as rejected, or as failed where the reason is a failure."""
    return decide(row, stage, Status.FAILED if reason in FAILURES else Status.REJECTED, reason, detail)


def decide(row: Row, stage: str, status: Status, reason: Reason | None = None, detail: str = "") -> Row:
    """Marks a row. `stage` is the one that decided; for a kept row, the last that it passed."""
    row.update(status=status.value, stage=stage, reason=reason.value if reason else "", detail=detail[:500])
    return row
