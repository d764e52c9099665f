"""What a dataset holds, counted: the funnel, balances, durations, resolutions, prompts and scores.

Every function takes the rows as a table or as a lazy scan, and reads only the columns that it counts, so that millions
of rows are counted without being held, and their references are never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kiwi.dataset.schema import CURATION_STAGES, FAILURES, Status, TrainsAs
from kiwi.errors import KiwiError

Rows = pl.DataFrame | pl.LazyFrame

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MEASURED = ("score_", "region_area", "mask_area", "verify_")
SIZES = 20  # resolutions that are named
USED = pl.col("trains_as") != TrainsAs.NOTHING


class FunnelError(KiwiError):
    """Rows that do not add up: a stage that nobody knows, or a row that vanished."""


def collected(rows: Rows, *columns: pl.Expr | str) -> pl.DataFrame:
    """The given columns of `rows` (all without any), as a table."""
    lazy = rows.lazy().select(*columns) if columns else rows.lazy()
    return lazy.collect(engine="streaming")


def funnel_of(rows: Rows) -> list[dict[str, Any]]:
    """The funnel as the rows tell it: {stage, rows_in, kept, rejected{}, failed{}} for each stage in its order.

    A stage's rows in are those that every stage before it kept. Needs the columns status, stage and reason.

    Raises:
        FunnelError: a row has no known status, stage or reason, or is rejected for what is a failure.
    """
    said = [pl.col(name).fill_null("") for name in ("status", "stage", "reason")]
    counted = collected(rows.lazy().group_by(said).len().sort("stage", "status", "reason"))
    for status, stage, reason, _ in counted.iter_rows():
        problem = _astray(status, stage, reason)
        if problem:
            raise FunnelError(f"{_place(rows, status, stage, reason)}: {problem}")
    return funnel_of_counts(list(counted.iter_rows()))


def funnel_of_counts(counts: Sequence[tuple[str, str, str, int]]) -> list[dict[str, Any]]:
    """The funnel of rows that were counted by (status, stage, reason)."""
    funnel: list[dict[str, Any]] = []
    standing = sum(count for *_, count in counts)
    for stage in CURATION_STAGES:
        entry: dict[str, Any] = {"stage": stage, "rows_in": standing, "kept": 0, "rejected": {}, "failed": {}}
        for status, left_at, reason, count in counts:
            if left_at == stage and status != Status.KEPT:
                entry[status][reason] = entry[status].get(reason, 0) + count
                standing -= count
        entry["kept"] = standing
        funnel.append(entry)
    return funnel


def _astray(status: str, stage: str, reason: str) -> str:
    """What is wrong with such a decision; "" where nothing is."""
    if status == Status.KEPT:
        return ""
    said = f"status {status!r}, stage {stage!r}, reason {reason!r}"
    if status not in (Status.REJECTED, Status.FAILED) or stage not in CURATION_STAGES or not reason:
        return f"without a known status, stage and reason ({said})"
    if (reason in FAILURES) != (status == Status.FAILED):
        return f"a row is {status} for {reason}"
    return ""


def _place(rows: Rows, status: str, stage: str, reason: str) -> str:
    """The first row that was decided so, by its position where rows have one."""
    if "position" not in rows.lazy().collect_schema().names():
        return "a row"
    decided = zip(("status", "stage", "reason"), (status, stage, reason), strict=True)
    same = pl.all_horizontal(pl.col(name).fill_null("") == value for name, value in decided)
    return f"row {collected(rows.lazy().filter(same), pl.col('position').min()).item()}"


def funnel_text(funnel: Sequence[Mapping[str, Any]]) -> str:
    """The funnel as plain text for an error message or a log: one line a stage, reasons with their counts."""
    lines = [f"{'stage':<12} {'in':>7} {'kept':>7}  left because"]
    for stage in funnel:
        reasons = [*stage["failed"].items(), *stage["rejected"].items()]
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons, key=lambda item: (-item[1], item[0])))
        lines.append(f"{stage['stage']:<12} {stage['rows_in']:>7} {stage['kept']:>7}  {told or '-'}")
    return "\n".join(lines)


def reasons_of(rows: Rows, status: Status) -> dict[str, int]:
    """Rows of one status by reason, most frequent first."""
    return tally(rows.lazy().filter(pl.col("status") == status), "reason")


def tally(rows: Rows, column: str) -> dict[str, int]:
    """Rows by the values of a column, most frequent first, then by name."""
    counted = collected(rows.lazy().group_by(pl.col(column).cast(pl.String).fill_null("")).len())
    return dict(counted.sort(["len", column], descending=[True, False]).iter_rows())


def balance(rows: Rows, column: str) -> dict[str, dict[str, int]]:
    """Rows by a column and by what they train as: {value: {rows, quadruplet, instruction, nothing}}."""
    found: dict[str, dict[str, int]] = {}
    value = pl.col(column).cast(pl.String).fill_null("")
    for name, kind, count in collected(rows.lazy().group_by(value, "trains_as").len()).iter_rows():
        each = found.setdefault(name, {"rows": 0, **{kind.value: 0 for kind in TrainsAs}})
        each["rows"] += count
        each[str(kind)] = each.get(str(kind), 0) + count
    return dict(sorted(found.items(), key=lambda item: (-item[1]["rows"], item[0])))


def sources_of(rows: Rows) -> list[dict[str, Any]]:
    """Rows by source and licence: {source_dataset, license, rows, quadruplet, instruction, nothing}, largest first."""
    grouped = collected(rows.lazy().group_by("source_dataset", "license", "trains_as").len())
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for source, licence, kind, count in grouped.iter_rows():
        named = (source or "", licence or "")
        entry = {"source_dataset": named[0], "license": named[1], "rows": 0, **{kind.value: 0 for kind in TrainsAs}}
        each = found.setdefault(named, entry)
        each["rows"] += count
        each[str(kind)] += count
    return sorted(found.values(), key=lambda each: (-each["rows"], each["source_dataset"], each["license"]))


def quantiles(rows: Rows, column: str | pl.Expr) -> dict[str, float] | None:
    """Minimum, 5%, quartiles, 95%, maximum and mean of a column; None where nothing was measured."""
    wanted = pl.col(column) if isinstance(column, str) else column
    values = collected(rows, wanted.cast(pl.Float64)).to_series().drop_nulls().drop_nans().sort()
    if values.is_empty():
        return None
    found: dict[str, Any] = {f"p{round(share * 100):02d}": values.quantile(share, "linear") for share in QUANTILES}
    found["mean"] = values.mean()
    found["rows"] = float(len(values))
    return {name: round(float(value), 4) for name, value in found.items() if value is not None}


def histogram(rows: Rows, column: str | pl.Expr, low: float, high: float, bins: int) -> list[int]:
    """How many values of a column lie in each of `bins` equal parts of [low, high]; what lies outside is at the ends.

    Values that were not measured count nowhere.
    """
    wanted = (pl.col(column) if isinstance(column, str) else column).cast(pl.Float64)
    place = ((wanted - low) / (high - low) * bins).floor().clip(0, bins - 1).cast(pl.Int32)
    counted = collected(rows.lazy().filter(wanted.is_finite()).group_by(place.alias("bin")).len())
    found = dict(counted.iter_rows())
    return [int(found.get(number, 0)) for number in range(bins)]


def statistics_of(rows: Rows) -> dict[str, Any]:
    """All statistics of a dataset's rows (columns of kiwi/dataset/rows.py), JSON-ready and in a fixed order."""
    lazy = rows.lazy()
    schema = lazy.collect_schema()
    used = lazy.filter(USED)
    videos = used.filter((pl.col("media") == "video") & (pl.col("fps") > 0))
    seconds = pl.col("frames") / pl.col("fps")
    size = pl.format("{}x{}", "width", "height").alias("size")
    trains_as = tally(lazy, "trains_as")
    total = collected(videos, seconds.sum()).item()
    numeric = [name for name in schema.names() if name.startswith(MEASURED) and schema[name].is_numeric()]
    return {
        "trains_as": {kind.value: trains_as.get(kind.value, 0) for kind in TrainsAs},
        "splits": tally(used, "split"),
        "media": tally(used, "media"),
        "tasks": balance(lazy, "task"),
        "edit_types": balance(lazy, "edit_type"),
        "licenses": balance(lazy, "license"),
        "source_datasets": balance(lazy, "source_dataset"),
        "sources": sources_of(lazy),
        "ref_origins": tally(lazy.filter(pl.col("trains_as") == TrainsAs.QUADRUPLET), "ref_origin"),
        "resolutions": dict(list(tally(used.select(size), "size").items())[:SIZES]),
        "frames": quantiles(videos, "frames"),
        "fps": quantiles(videos, "fps"),
        "seconds": quantiles(videos, seconds),
        "seconds_total": round(float(total or 0.0), 3),
        "prompt_words": quantiles(used, pl.col("prompt").str.split(" ").list.len()),
        "examples": _examples(used),
        "distinct_prompts": int(collected(used, pl.col("prompt").n_unique()).item()),
        "measurements": {name: found for name in numeric if (found := quantiles(lazy, name)) is not None},
    }


def _examples(rows: pl.LazyFrame) -> dict[str, str]:
    """An instruction of each task: that of its first row."""
    first = rows.group_by("task").agg(pl.col("position").min())
    found = collected(rows.select("task", "position", "prompt").join(first, on=["task", "position"], how="semi"))
    return dict(found.sort("task").select("task", "prompt").iter_rows())
