"""The rows of a dataset as tables: their columns, a sample's identity, and Parquet written to the same bytes.

Every listed pair is a row, whatever became of it. Columns are these, then the measurements of the stages
(`score_*`, `region_*`, `mask_*`, `verify_*`), in alphabetical order.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from kiwi.configuration import canonical_json

COLUMNS: dict[str, type[pl.DataType]] = {
    "position": pl.Int64,
    "iid": pl.String,
    "pair_id": pl.String,
    "source_dataset": pl.String,
    "license": pl.String,
    "edit_type": pl.String,
    "task": pl.String,
    "media": pl.String,
    "prompt": pl.String,
    "needs_reference": pl.Boolean,
    "src_video": pl.String,
    "tgt_video": pl.String,
    "src_sha256": pl.String,
    "tgt_sha256": pl.String,
    "width": pl.Int64,
    "height": pl.Int64,
    "frames": pl.Int64,
    "fps": pl.Float64,
    "status": pl.String,
    "stage": pl.String,
    "reason": pl.String,
    "detail": pl.String,
    "trains_as": pl.String,
    "split": pl.String,
    "ref_image_bytes": pl.Binary,
    "ref_origin": pl.String,
    "curator": pl.String,
    "parameters_hash": pl.String,
    "dup_of": pl.String,
}
MEASUREMENTS = ("score_", "region_", "mask_", "verify_", "dup_")
RELEASED = ("iid", "prompt", "src_video", "tgt_video", "ref_image_bytes")


def sample_id(source_sha256: str, target_sha256: str, prompt: str) -> str:
    """A sample's identity: 24 hexadecimal digits over what it consists of. Where it lay and its name play no part."""
    return hashlib.sha256(canonical_json([source_sha256, target_sha256, prompt]).encode()).hexdigest()[:24]


def listed_id(position: int, src_video: str, tgt_video: str, prompt: str) -> str:
    """The identity of a row whose media could not be read: over the listing's own strings and the row's place."""
    return hashlib.sha256(canonical_json([position, src_video, tgt_video, prompt]).encode()).hexdigest()[:24]


def conform(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with exactly the dataset's columns, in order and type; working columns of the stages fall away.

    Strings and flags that a stage did not reach are "" and false, measurements are null, `ref_image_bytes` is null.
    """
    fixed = []
    for name, kind in COLUMNS.items():
        column = pl.col(name).cast(kind) if name in frame.columns else pl.lit(None, dtype=kind)
        if kind == pl.String:
            column = column.fill_null("")
        elif kind == pl.Boolean:
            column = column.fill_null(False)
        fixed.append(column.alias(name))
    measured = sorted(
        name
        for name, kind in frame.schema.items()
        if name.startswith(MEASUREMENTS) and name not in COLUMNS and kind != pl.Binary and not kind.is_nested()
    )
    return frame.select([*fixed, *(pl.col(name) for name in measured)])


def write_rows(frame: pl.DataFrame, path: Path) -> None:
    """Writes Parquet atomically: zstd, no times or statistics of this machine in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    frame.write_parquet(temporary, compression="zstd", compression_level=3, row_group_size=4096)
    os.replace(temporary, path)


def concatenate(paths: Iterable[Path], columns: list[str] | None = None) -> pl.DataFrame:
    """The rows of several Parquet parts whose measurements may differ (a column that one lacks is null there)."""
    frames = [pl.read_parquet(path, columns=columns) for path in paths]
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame(schema=COLUMNS)
