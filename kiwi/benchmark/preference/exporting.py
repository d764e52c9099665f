"""Votes as a table for other tools: CSV, JSON lines or Parquet, one row a vote."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from kiwi.benchmark.preference.choices import Vote
from kiwi.benchmark.preference.results import check_result, rater_records
from kiwi.benchmark.preference.study import Study
from kiwi.errors import UsageError

ENDINGS = (".csv", ".jsonl", ".parquet")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_votes(study: Study, votes: Sequence[Vote], path: Path) -> int:
    """Writes all votes, checks included, atomically; returns their number.

    Columns: study, rater, rater_flags, kind, sample, edit_kind, left, right, choice, outcome, winner, check, seconds,
    given_at. In CSV a text that a spreadsheet would take for a formula gets an apostrophe in front.

    Raises UsageError for a file whose ending is none of ENDINGS.
    """
    import polars as pl

    if path.suffix not in ENDINGS:
        raise UsageError(f"votes cannot be exported as {path.suffix or path.name!r}", f"endings: {', '.join(ENDINGS)}")
    table = pl.DataFrame(export_rows(study, votes), schema=_SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if path.suffix == ".parquet":
        table.write_parquet(temporary)
    elif path.suffix == ".jsonl":
        table.write_ndjson(temporary)
    else:
        table.with_columns(
            pl.when(pl.col(pl.String).str.head(1).is_in(list(_FORMULA)))
            .then("'" + pl.col(pl.String))
            .otherwise(pl.col(pl.String))
            .name.keep()
        ).write_csv(temporary)
    os.replace(temporary, path)
    return table.height


_COLUMNS = "study rater rater_flags kind sample edit_kind left right choice outcome winner check seconds given_at"
_SCHEMA = {name: float if name == "seconds" else str for name in _COLUMNS.split()}


def export_rows(study: Study, votes: Sequence[Vote]) -> list[dict[str, str | float | None]]:
    flags = {record.rater: " ".join(record.flags) for record in rater_records(study, votes)}
    return [_row(study, vote, flags[vote.rater]) for vote in votes if vote.item_id in study.items]


def _row(study: Study, vote: Vote, flags: str) -> dict[str, str | float | None]:
    item = study.items[vote.item_id]
    names = item.sets if vote.kind == "pair" else ("good", "bad") if vote.kind == "damaged" else ("copy", "copy")
    left, right = names[::-1] if vote.flipped else names
    winner = {"left": left, "right": right}.get(vote.choice)
    return {
        "study": study.study_id,
        "rater": vote.rater,
        "rater_flags": flags,
        "kind": vote.kind,
        "sample": item.sample.sample_id,
        "edit_kind": item.sample.kind,
        "left": left,
        "right": right,
        "choice": vote.choice,
        "outcome": vote.outcome,
        "winner": winner,
        "check": None if vote.kind == "pair" else check_result(vote),
        "seconds": round(vote.seconds, 3),
        "given_at": datetime.fromtimestamp(vote.given_at, UTC).isoformat(timespec="milliseconds"),
    }
