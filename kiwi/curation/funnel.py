"""The funnel: rows in, kept, rejected and failed by typed reason at each stage, and the proof that it adds up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kiwi.curation.plan import CurationError
from kiwi.dataset.schema import CURATION_STAGES, FAILURES, Reason, Status

Books = dict[str, Any]


def funnel(rows: Iterable[Mapping[str, Any]]) -> list[Books]:
    """The funnel that rows (status, stage, reason) tell, one entry a stage. Raises CurationError where one lies."""
    order = {stage: number for number, stage in enumerate(CURATION_STAGES)}
    books: list[Books] = [_empty(stage) for stage in CURATION_STAGES]
    total = 0
    for row in rows:
        total += 1
        if row["status"] == Status.KEPT:
            continue
        if row["status"] not in ("rejected", "failed") or row["stage"] not in order or not row["reason"]:
            raise CurationError(f"a row has status {row['status']!r}, stage {row['stage']!r}, reason {row['reason']!r}")
        if (Reason(row["reason"]) in FAILURES) != (row["status"] == Status.FAILED):
            raise CurationError(f"a row is {row['status']} for {row['reason']}")
        reasons = books[order[row["stage"]]][str(row["status"])]
        reasons[str(row["reason"])] = reasons.get(str(row["reason"]), 0) + 1
    for entry in books:
        entry["rows_in"] = total
        total -= sum(entry["rejected"].values()) + sum(entry["failed"].values())
        entry["kept"] = total
    return books


def add_books(books: Iterable[Mapping[str, Any]]) -> list[Books]:
    """The funnel from the books of shards and stages, added up. Raises CurationError if it does not reconcile."""
    summed: dict[str, Books] = {}
    for entry in books:
        total = summed.setdefault(str(entry["stage"]), _empty(str(entry["stage"])))
        total["rows_in"] += entry["rows_in"]
        total["kept"] += entry["kept"]
        for status in ("rejected", "failed"):
            for reason, count in entry[status].items():
                total[status][reason] = total[status].get(reason, 0) + count
    found = [summed[stage] for stage in CURATION_STAGES if stage in summed]
    reconcile(found)
    return found


def reconcile(books: Sequence[Mapping[str, Any]]) -> None:
    """Raises CurationError unless rows in = kept + rejected + failed, and each stage takes in what was kept."""
    for number, entry in enumerate(books):
        out = entry["kept"] + sum(entry["rejected"].values()) + sum(entry["failed"].values())
        if out != entry["rows_in"]:
            raise CurationError(f"{entry['stage']}: {entry['rows_in']} rows in, {out} out")
        if number and books[number - 1]["kept"] != entry["rows_in"]:
            before = books[number - 1]["kept"]
            raise CurationError(f"{entry['stage']}: {entry['rows_in']} rows in, {before} kept before")


def print_funnel(books: Sequence[Mapping[str, Any]], console: Any = None) -> None:
    """The funnel as a table on a rich console (standard error by default)."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "in", "kept", "left because")
    for column in table.columns[1:3]:
        column.justify = "right"
    for entry in books:
        reasons = [(reason, count) for status in ("failed", "rejected") for reason, count in entry[status].items()]
        reasons.sort(key=lambda item: (-item[1], item[0]))
        told = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
        table.add_row(entry["stage"], f"{entry['rows_in']:,}", f"{entry['kept']:,}", told or "–")
    (console or Console(stderr=True)).print(table)


def _empty(stage: str) -> Books:
    return {"stage": stage, "rows_in": 0, "kept": 0, "rejected": {}, "failed": {}}
