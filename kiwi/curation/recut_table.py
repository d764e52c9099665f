"""Shows a re-cut funnel to people: before and after, what is unmeasured, and the settings that would build it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kiwi.curation.funnel import Books, idle, told
from kiwi.curation.recut import UNMEASURED, Recut
from kiwi.curation.thresholds import Bound, Cut, settings_for


def print_recut(found: Mapping[str, Recut], cut: Cut, by: str = "", console: Any = None) -> None:
    """The funnel before → after as a table on a rich console (standard error by default), and what would build it."""
    from rich.console import Console
    from rich.table import Table

    shown, whole = console or Console(stderr=True, highlight=False), found[""]
    table = Table("stage", "in", "kept", "leave now because" if cut.asked else "left because")
    for column in table.columns[1:3]:
        column.justify = "right"
    for before, after in zip(whole.before, whole.after, strict=True):
        if not (idle(before) and idle(after)):
            moved = [_moved(before[name], after[name]) for name in ("rows_in", "kept")]
            table.add_row(after["stage"], *moved, told(after))
    shown.print(table)
    kinds = [kind for kind, rows in whole.trains_after.items() if rows or whole.trains_before.get(kind)]
    good_for = [f"{kind} {_moved(whole.trains_before.get(kind, 0), whole.trains_after[kind])}" for kind in kinds]
    shown.print(f"trains as: {', '.join(good_for)}", soft_wrap=True)
    if by:
        shown.print(_parts_table(found, by))
    for line in _remarks(whole, cut):
        shown.print(line, soft_wrap=True, markup=False)


def _parts_table(found: Mapping[str, Recut], by: str) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(by, "in", "kept", UNMEASURED, "most leave because")
    for column in table.columns[1:4]:
        column.justify = "right"
    parts = sorted(
        ((name, part) for name, part in found.items() if name), key=lambda each: -each[1].after[0]["rows_in"]
    )
    for name, part in parts:
        kept = _moved(part.before[-1]["kept"], part.after[-1]["kept"])
        unmeasured = sum(entry[UNMEASURED] for entry in part.after)
        table.add_row(escape(name), f"{part.after[0]['rows_in']:,}", kept, f"{unmeasured:,}", _reasons(part.after))
    return table


def _reasons(books: Sequence[Books], shown: int = 3) -> str:
    """The most frequent reasons of all stages together."""
    total: dict[str, int] = {}
    for entry in books:
        for reason, count in [*entry["rejected"].items(), *entry["failed"].items()]:
            total[reason] = total.get(reason, 0) + count
    ranked = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ranked[:shown]) or "–"


def _remarks(whole: Recut, cut: Cut) -> list[str]:
    """What was asked, what is not known, and what would make it so."""
    if not cut.asked:
        return []
    asked = [f"{each.name} {'≥' if each.at_least else '≤'} {each.value:g}{_instead(each)}" for each in cut.changed]
    if cut.instruction is not None and cut.instruction != cut.own_instruction:
        own = f" (the run: {cut.own_instruction:g})" if cut.own_instruction is not None else ""
        asked.append(f"instruction from score {cut.instruction:g}{own}")
    lines = [f"cut at: {', '.join(asked)}"]
    unmeasured = sum(entry[UNMEASURED] for entry in whole.after)
    if unmeasured:
        lines.append(
            f"{unmeasured:,} rows come back, or repeat one that left: what later stages say of them is unknown"
        )
    settings, without = settings_for(cut)
    if settings:
        words = " ".join(f"--set curation.{name}={value:g}" for name, value in settings.items())
        lines.append(f"to build it so, add to the command that built it: {words}")
    if without:
        lines.append(f"no setting asks for: {', '.join(without)}")
    return lines


def _instead(bound: Bound) -> str:
    return f" (the run: {bound.own:g})" if bound.own is not None else ""


def _moved(before: int, after: int) -> str:
    return f"{after:,}" if before == after else f"{before:,} → {after:,}"
