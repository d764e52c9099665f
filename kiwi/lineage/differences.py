"""What changed between two published versions: rows in, rows out, other clips, other verdicts, other measurements.

Only rows are fetched, no media. A row is followed by its `iid`, which is what it consists of (the n-th of that iid,
where duplicates share one); what that leaves is followed by `pair_id` and `position`: the same pair with other clips
or another prompt, so another iid. What is still left came in or went out.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi.lineage.process import LineageError
from kiwi.lineage.pulling import fetch
from kiwi.lineage.repository import resolve

if TYPE_CHECKING:
    import polars as pl

_VERDICT = ("status", "stage", "reason", "trains_as", "split")
_IDENTITY = ("iid", "pair_id", "position")
_MEASURED = "score_"


def diff_versions(repository: Path, one: str, two: str, limit: int = 20) -> dict[str, Any]:
    """Compares two versions, named as in `pull`; `limit` rows of each kind are shown, all are counted.

    Returns {"from", "to": {"version", "revision", "digest", "rows"}, "rows": {"added", "removed", "replaced",
    "changed", "same"}, "transitions": [{"from": "kept", "to": "rejected: no_visible_edit", "rows"}] (of rows in both,
    most first), "added" and "removed" by verdict: [{"verdict", "rows"}], "columns": {name: rows in which it changed},
    "only_in_one": columns, "shown": {"added", "removed", "replaced", "changed": [row, ...]}}.
    A row in both is `replaced` if its clips or prompt changed, else `changed` if its verdict or a score did.
    Raises UsageError for an unknown version, LineageError where its rows cannot be had or are no kiwi rows.
    """
    ends = [resolve(repository, name) for name in (one, two)]
    before, after = (_rows(repository, end) for end in ends)
    about = ({key: end[key] for key in ("version", "revision", "digest")} for end in ends)
    counted = zip(("from", "to"), about, (before, after), strict=True)
    return {
        **{side: {**end, "rows": frame.height} for side, end, frame in counted},
        **compare_rows(before, after, limit),
    }


def compare_rows(before: pl.DataFrame, after: pl.DataFrame, limit: int = 20) -> dict[str, Any]:
    """`diff_versions` of two tables of rows: all that it returns but "from" and "to"."""
    compared = [name for name in before.columns if name in after.columns and name not in _IDENTITY]
    both, added, removed = _parts(_matched(before, after), before, after)
    both = _with_changes(both, compared)
    kinds = dict(both["kind"].value_counts().iter_rows())
    return {
        "rows": {
            "added": added.height,
            "removed": removed.height,
            **{kind: kinds.get(kind, 0) for kind in ("replaced", "changed", "same")},
        },
        "transitions": _transitions(both),
        "added": _by_verdict(added),
        "removed": _by_verdict(removed),
        "columns": {name: count for name in compared if (count := int(both[f"{name}_differs"].sum()))},
        "only_in_one": sorted(set(before.columns) ^ set(after.columns)),
        "shown": {
            "added": added.head(limit).select(*_IDENTITY, *_VERDICT).to_dicts(),
            "removed": removed.head(limit).select(*_IDENTITY, *_VERDICT).to_dicts(),
            **{kind: _shown(both, kind, compared, limit) for kind in ("replaced", "changed")},
        },
    }


def print_differences(found: dict[str, Any]) -> None:
    """A few lines for people: the counts, then the transitions, then the rows that are shown."""
    one, two, rows = found["from"], found["to"], found["rows"]
    print(f"{one['version']} ({one['rows']:,} rows) -> {two['version']} ({two['rows']:,} rows)")
    print(", ".join(f"{count:,} {kind}" for kind, count in rows.items()))
    for kind, sign in (("added", "+"), ("removed", "-")):
        for group in found[kind]:
            print(f"  {sign} {group['rows']:,}  {group['verdict']}")
    for change in found["transitions"]:
        print(f"  ~ {change['rows']:,}  {change['from']} -> {change['to']}")
    changed = [f"{name} in {count:,}" for name, count in found["columns"].items() if name.startswith(_MEASURED)]
    if changed:
        print(f"  scores changed: {', '.join(changed)}")
    if found["only_in_one"]:
        print(f"  columns in one version only: {', '.join(found['only_in_one'])}")
    for kind, sign in (("removed", "-"), ("added", "+"), ("replaced", "±"), ("changed", "~")):
        for row in found["shown"][kind]:
            said = "; ".join(f"{name} {was} -> {now}" for name, (was, now) in row.get("differs", {}).items())
            print(f"{sign} {row['iid']}  {row['pair_id']}  {said or _verdict_text(row)}")
        more = rows[kind] - len(found["shown"][kind])
        if more:
            print(f"{sign} … and {more:,} more {kind}")


def _rows(repository: Path, end: dict[str, Any]) -> pl.DataFrame:
    """The rows of a version without images, through the repository's own DVC cache where that may be written."""
    import polars as pl

    private = repository / ".dvc" / "tmp"
    shared = repository / ".dvc" / "cache"
    with tempfile.TemporaryDirectory(dir=private if os.access(private, os.W_OK) else None) as temporary:
        staging = Path(temporary)
        usable = shared.is_dir() and os.access(shared, os.W_OK)
        dataset, _ = fetch(repository, end, staging, shared if usable else staging / "cache", rows_only=True)
        parts = sorted((dataset / "rows").glob("*.parquet"))
        try:
            frames = [_compared_columns(pl.read_parquet_schema(part), part) for part in parts]
        except (OSError, pl.exceptions.PolarsError) as error:
            raise LineageError(
                f"{end['version']} has no readable rows: {error}", "publish a finished dataset"
            ) from error
    if not frames:
        raise LineageError(f"{end['version']} has no rows/*.parquet", "publish a dataset that `kiwi data build` made")
    return pl.concat(frames, how="diagonal_relaxed").sort("position")


def _compared_columns(schema: Any, part: Path) -> pl.DataFrame:
    import polars as pl

    lacking = [name for name in (*_IDENTITY, "status", "reason") if name not in schema]
    if lacking:
        raise LineageError(f"rows/{part.name} has no column {', '.join(lacking)}", "publish a dataset that kiwi made")
    wanted = [name for name in schema if name in (*_IDENTITY, *_VERDICT, "prompt") or name.startswith(_MEASURED)]
    read = pl.read_parquet(part, columns=wanted)
    missing = [name for name in _VERDICT if name not in schema]
    return read.with_columns(pl.lit("").alias(name) for name in missing)


def _matched(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Which row of `before` is which of `after`: columns `was` and `now`, row numbers; each row at most once."""
    import polars as pl

    left, right = (
        frame.with_columns(pl.int_range(pl.len()).over("iid").alias("nth")).with_row_index("row")
        for frame in (before, after)
    )
    same = left.join(right, on=["iid", "nth"]).select(pl.col("row").alias("was"), pl.col("row_right").alias("now"))
    left = left.filter(~pl.col("row").is_in(same["was"].implode()))
    right = right.filter(~pl.col("row").is_in(same["now"].implode()))
    moved = left.join(right, on=["pair_id", "position"]).select(
        pl.col("row").alias("was"), pl.col("row_right").alias("now")
    )
    return pl.concat([same, moved.unique("was", keep="first").unique("now", keep="first")]).sort("now")


def _parts(
    pairs: pl.DataFrame, before: pl.DataFrame, after: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Rows in both (columns of `before` as `was_NAME`), rows that came in, rows that went out."""
    import polars as pl

    was = before[pairs["was"]].select(pl.all().name.prefix("was_"))
    both = pl.concat([after[pairs["now"]], was], how="horizontal")
    added = after.with_row_index("row").filter(~pl.col("row").is_in(pairs["now"].implode()))
    removed = before.with_row_index("row").filter(~pl.col("row").is_in(pairs["was"].implode()))
    return both, added, removed


def _with_changes(both: pl.DataFrame, compared: list[str]) -> pl.DataFrame:
    """`both` with NAME_differs for each compared column, and its kind: replaced, changed or same."""
    import polars as pl

    differs = [pl.col(name).ne_missing(pl.col(f"was_{name}")).alias(f"{name}_differs") for name in compared]
    both = both.with_columns(differs)
    judged = [pl.col(f"{name}_differs") for name in compared if name != "prompt"]
    replaced = pl.when(pl.col("iid") != pl.col("was_iid")).then(pl.lit("replaced"))
    kind = replaced.when(pl.any_horizontal(judged)).then(pl.lit("changed"))
    return both.with_columns(kind.otherwise(pl.lit("same")).alias("kind"))


def _verdict(prefix: str = "") -> pl.Expr:
    """A row's verdict as text: "kept", "rejected: no_visible_edit"."""
    import polars as pl

    status, reason = pl.col(f"{prefix}status").fill_null(""), pl.col(f"{prefix}reason").fill_null("")
    return pl.when(reason == "").then(status).otherwise(pl.concat_str(status, pl.lit(": "), reason))


def _verdict_text(row: dict[str, Any]) -> str:
    return f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])


def _transitions(both: pl.DataFrame) -> list[dict[str, Any]]:
    import polars as pl

    counted = both.select(_verdict("was_").alias("from"), _verdict().alias("to")).filter(pl.col("from") != pl.col("to"))
    found = counted.group_by("from", "to").agg(pl.len().alias("rows"))
    return found.sort(["rows", "from", "to"], descending=[True, False, False]).to_dicts()


def _by_verdict(rows: pl.DataFrame) -> list[dict[str, Any]]:
    import polars as pl

    found = rows.select(_verdict().alias("verdict")).group_by("verdict").agg(pl.len().alias("rows"))
    return found.sort(["rows", "verdict"], descending=[True, False]).to_dicts()


def _shown(both: pl.DataFrame, kind: str, compared: list[str], limit: int) -> list[dict[str, Any]]:
    import polars as pl

    shown = []
    for row in both.filter(pl.col("kind") == kind).head(limit).to_dicts():
        differs = {name: (row[f"was_{name}"], row[name]) for name in compared if row[f"{name}_differs"]}
        if row["iid"] != row["was_iid"]:
            differs = {"iid": (row["was_iid"], row["iid"]), **differs}
        shown.append({**{name: row[name] for name in (*_IDENTITY, "status", "reason")}, "differs": differs})
    return shown
