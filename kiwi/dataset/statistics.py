"""What a dataset holds, counted: the funnel, balances, durations, resolutions, prompts and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kiwi.dataset.schema import CURATION_STAGES, Status, TrainsAs
from kiwi.errors import KiwiError

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class FunnelError(KiwiError):
    """Rows that do not add up: a stage that nobody knows, or a row that vanished."""


def funnel_of(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """The funnel as the rows tell it: {stage, rows_in, kept, rejected{}, failed{}} for each stage in its order.

    A stage's rows in are those that every stage before it kept.

    Raises:
        FunnelError: a rejected or failed row names no known stage, or has no reason.
    """
    left = rows.filter(pl.col("status") != Status.KEPT)
    astray = left.filter(~pl.col("stage").is_in(CURATION_STAGES) | (pl.col("reason") == ""))
    if not astray.is_empty():
        first = astray.row(0, named=True)
        said = f"stage {first['stage']!r}, reason {first['reason']!r}"
        raise FunnelError(f"row {first['position']}: {first['status']} without a known stage and reason ({said})")
    counted = left.group_by("stage", "status", "reason").len().sort("stage", "status", "reason")
    by_stage: dict[str, dict[str, dict[str, int]]] = {stage: {} for stage in CURATION_STAGES}
    for stage, status, reason, count in counted.iter_rows():
        by_stage[stage].setdefault(status, {})[reason] = count
    funnel: list[dict[str, Any]] = []
    standing = rows.height
    for stage in CURATION_STAGES:
        rejected = by_stage[stage].get(Status.REJECTED, {})
        failed = by_stage[stage].get(Status.FAILED, {})
        kept = standing - sum(rejected.values()) - sum(failed.values())
        funnel.append({"stage": stage, "rows_in": standing, "kept": kept, "rejected": rejected, "failed": failed})
        standing = kept
    return funnel


def funnel_text(funnel: Sequence[Mapping[str, Any]]) -> str:
    """The funnel as plain text for an error message or a log: one line a stage, reasons with their counts."""
    lines = [f"{'stage':<12} {'in':>7} {'kept':>7}  left because"]
    for stage in funnel:
        reasons = [*stage["failed"].items(), *stage["rejected"].items()]
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons, key=lambda item: (-item[1], item[0])))
        lines.append(f"{stage['stage']:<12} {stage['rows_in']:>7} {stage['kept']:>7}  {told or '-'}")
    return "\n".join(lines)


def reasons_of(rows: pl.DataFrame, status: Status) -> dict[str, int]:
    """Rows of one status by reason, most frequent first."""
    return tally(rows.filter(pl.col("status") == status), "reason")


def tally(rows: pl.DataFrame, column: str) -> dict[str, int]:
    """Rows by the values of a column, most frequent first, then by name."""
    counted = rows.group_by(column).len().sort(["len", column], descending=[True, False])
    return {str(value) if value is not None else "": int(count) for value, count in counted.iter_rows()}


def balance(rows: pl.DataFrame, column: str) -> dict[str, dict[str, int]]:
    """Rows by a column and by what they train as: {value: {rows, quadruplet, instruction, nothing}}."""
    return {
        value: {"rows": count, **{kind: _count(rows, column, value, kind) for kind in TrainsAs}}
        for value, count in tally(rows, column).items()
    }


def quantiles(rows: pl.DataFrame, column: str) -> dict[str, float] | None:
    """Minimum, 5%, quartiles, 95%, maximum and mean of a column; None where nothing was measured."""
    values = rows[column].cast(pl.Float64).drop_nulls().drop_nans()
    if values.is_empty():
        return None
    found = {f"p{round(share * 100):02d}": values.quantile(share, "linear") for share in QUANTILES}
    found["mean"] = values.mean()  # type: ignore[assignment]
    found["rows"] = float(len(values))
    return {name: round(float(value), 4) for name, value in found.items() if value is not None}


def statistics_of(rows: pl.DataFrame) -> dict[str, Any]:
    """All statistics of a dataset's rows (columns of kiwi/dataset/rows.py), JSON-ready and in a fixed order."""
    used = rows.filter(pl.col("trains_as") != TrainsAs.NOTHING)
    videos = used.filter((pl.col("media") == "video") & (pl.col("fps") > 0))
    videos = videos.with_columns((pl.col("frames") / pl.col("fps")).alias("seconds"))
    sizes = used.with_columns(pl.format("{}x{}", "width", "height").alias("size"))
    prompts = used.with_columns(pl.col("prompt").str.split(" ").list.len().alias("words"))
    measured = [name for name in rows.columns if name.startswith(("score_", "region_area", "mask_area", "verify_"))]
    numeric = [name for name in measured if rows.schema[name].is_numeric()]
    total = float(videos["seconds"].sum()) if videos.height else 0.0
    return {
        "trains_as": {kind.value: rows.filter(pl.col("trains_as") == kind).height for kind in TrainsAs},
        "splits": tally(used, "split"),
        "media": tally(used, "media"),
        "tasks": balance(rows, "task"),
        "edit_types": balance(rows, "edit_type"),
        "licenses": balance(rows, "license"),
        "source_datasets": balance(rows, "source_dataset"),
        "ref_origins": tally(rows.filter(pl.col("trains_as") == TrainsAs.QUADRUPLET), "ref_origin"),
        "resolutions": dict(list(tally(sizes, "size").items())[:20]),
        "frames": quantiles(videos, "frames"),
        "fps": quantiles(videos, "fps"),
        "seconds": quantiles(videos, "seconds"),
        "seconds_total": round(total, 3),
        "prompt_words": quantiles(prompts, "words"),
        "examples": _examples(used),
        "distinct_prompts": used["prompt"].n_unique(),
        "measurements": {name: found for name in numeric if (found := quantiles(rows, name)) is not None},
    }


def _examples(rows: pl.DataFrame) -> dict[str, str]:
    """An instruction of each task: that of its first row."""
    first = rows.sort("position").unique("task", keep="first", maintain_order=True)
    return dict(sorted(first.select("task", "prompt").iter_rows()))


def _count(rows: pl.DataFrame, column: str, value: str, kind: TrainsAs) -> int:
    return rows.filter((pl.col(column).fill_null("") == value) & (pl.col("trains_as") == kind)).height
