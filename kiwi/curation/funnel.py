"""The funnel: rows in, kept, rejected and failed by typed reason at each stage, and the proof that it adds up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from kiwi.curation.errors import CurationError
from kiwi.dataset.schema import CURATION_STAGES
from kiwi.dataset.statistics import FunnelError, funnel_of

Books = dict[str, Any]

LEFT = ("failed", "rejected")
_DECISION = {"status": pl.String, "stage": pl.String, "reason": pl.String}


def funnel(rows: pl.DataFrame | pl.LazyFrame | Iterable[Mapping[str, Any]]) -> list[Books]:
    """The funnel that rows (status, stage, reason) tell, one entry a stage. Raises CurationError where one lies.

    It is kiwi.dataset.statistics.funnel_of; rows that come one by one are put into a table of these three columns.
    """
    if not isinstance(rows, pl.DataFrame | pl.LazyFrame):
        told = [tuple(None if row[name] is None else str(row[name]) for name in _DECISION) for row in rows]
        rows = pl.DataFrame(told, schema=_DECISION, orient="row")
    try:
        return funnel_of(rows)
    except FunnelError as error:
        raise CurationError(error.message, error.remedy) from error


def add_books(books: Iterable[Mapping[str, Any]]) -> list[Books]:
    """The funnel from the books of shards and stages, added up. Raises CurationError if it does not reconcile."""
    found = add_up(books)
    reconcile(found)
    return found


def add_up(books: Iterable[Mapping[str, Any]]) -> list[Books]:
    """The same while shards are still at work, so that a stage may not have taken in all that the one before kept."""
    summed: dict[str, Books] = {}
    for entry in books:
        total = summed.setdefault(str(entry["stage"]), _empty(str(entry["stage"])))
        total["rows_in"] += entry["rows_in"]
        total["kept"] += entry["kept"]
        for status in ("rejected", "failed"):
            for reason, count in entry[status].items():
                total[status][reason] = total[status].get(reason, 0) + count
    return [summed[stage] for stage in CURATION_STAGES if stage in summed]


def reconcile(books: Sequence[Mapping[str, Any]]) -> None:
    """Raises CurationError unless rows in = kept + rejected + failed (+ unmeasured, in a re-cut), stage after stage."""
    for number, entry in enumerate(books):
        out = entry["kept"] + left(entry) + entry.get("unmeasured", 0)
        if out != entry["rows_in"]:
            raise CurationError(f"{entry['stage']}: {entry['rows_in']} rows in, {out} out")
        if number and books[number - 1]["kept"] != entry["rows_in"]:
            before = books[number - 1]["kept"]
            raise CurationError(f"{entry['stage']}: {entry['rows_in']} rows in, {before} kept before")


def left(entry: Mapping[str, Any]) -> int:
    """Rows that a stage rejected or failed."""
    return sum(sum(entry[status].values()) for status in LEFT)


def idle(entry: Mapping[str, Any]) -> bool:
    """Whether a stage passed everything on: an early exit that is off does, and a table may leave it out."""
    return bool(entry["stage"] == "unique_crops" and not left(entry) and not entry.get("unmeasured", 0))


def print_funnel(books: Sequence[Mapping[str, Any]], console: Any = None) -> None:
    """The funnel as a table on a rich console (standard error by default)."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "in", "kept", "left because")
    for column in table.columns[1:3]:
        column.justify = "right"
    for entry in books:
        if not idle(entry):
            table.add_row(entry["stage"], f"{entry['rows_in']:,}", f"{entry['kept']:,}", told(entry))
    (console or Console(stderr=True)).print(table)


def told(entry: Mapping[str, Any]) -> str:
    """Why rows left at a stage, the most frequent reason first."""
    reasons = [(reason, count) for status in LEFT for reason, count in entry[status].items()]
    reasons.sort(key=lambda item: (-item[1], item[0]))
    if entry.get("unmeasured"):
        reasons.append(("unmeasured", entry["unmeasured"]))
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons) or "–"


def _empty(stage: str) -> Books:
    return {"stage": stage, "rows_in": 0, "kept": 0, "rejected": {}, "failed": {}}
