"""How versions and their history are printed: folded to the terminal's width, never cut, and whole in a pipe."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from kiwi.registry import Entry, ModelVersion

NO_FOLD = 10_000  # columns of a pipe, where no line is folded unless COLUMNS asks for it
LEAST = 40


def print_versions(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of a model's versions, as `kiwi model list` has them."""
    from rich.table import Column, Table

    shown = ("version", "aliases", "overall", "dataset", "registered")
    view = Table(*(Column(title, overflow="fold") for title in shown))
    for row in rows:
        view.add_row(*(_text(row[key]) for key in shown))
    print(name)
    _print(view)


def print_version(version: ModelVersion) -> None:
    """What `kiwi model show` says of one version, a line for each thing that is known."""
    from rich.table import Column, Table

    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    print(f"{version.name} version {version.version}{aliases}")
    view = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
    for title, value in _about(version):
        if value:
            view.add_row(f"  {title}", value)
    _print(view)


def _about(version: ModelVersion) -> Iterable[tuple[str, str]]:
    tags, scores = version.tags, version.scores or {}
    yield "registered", f"{datetime.fromtimestamp(version.created, UTC):%Y-%m-%d %H:%M:%S} UTC"
    yield "trained by", " in ".join(filter(None, (tags.get("kiwi.trained_by"), tags.get("kiwi.attempt"))))
    yield "dataset", ", commit ".join(filter(None, (tags.get("dataset.version"), tags.get("dataset.revision"))))
    yield "overall", _text(scores.get("overall"))
    for criterion, score in (scores.get("criteria") or {}).items():
        yield f"  {criterion}", _text(score)
    yield "judge", ", benchmark ".join(filter(None, (scores.get("judge"), scores.get("revision"))))
    said = version.as_dict()
    yield "gate", str(said["decision"] or "has not decided")
    for reason in said["reasons"]:
        yield "", str(reason)
    needed = int(tags.get("kiwi.approvals", "0"))
    yield "approvals", f"{needed} needed" if needed else "none needed"
    yield "configuration", tags.get("kiwi.configuration", "")
    yield "MLflow run", version.run_id
    yield "files", version.source


def print_history(entries: Sequence[Entry]) -> None:
    """A line for each change, and beneath it why."""
    if not entries:
        print("nothing yet")
    width = _width()
    for entry in entries:
        forced = ", forced" if entry.forced else ""
        line = f"{_when(entry.at)}: {entry.action} version {entry.version or 'none'}"
        print(_folded(f"{line}, {_champion(entry)}, by {entry.who}{forced}", width, "", "    "))
        if entry.why:
            print(_folded(entry.why, width, "    ", "    "))


def _when(at: str) -> str:
    return f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _champion(entry: Entry) -> str:
    if entry.champion_before == entry.champion_after:
        return f"champion stays {entry.champion_after}" if entry.champion_after else "no champion"
    return f"champion {entry.champion_before or 'none'} to {entry.champion_after or 'none'}"


def _folded(text: str, width: int, first: str, rest: str) -> str:
    """The text in lines of `width`; words that are longer are broken, and nothing is lost. Who entered it cannot make
    it move the cursor."""
    shown = "".join(sign if sign.isprintable() else "�" for sign in " ".join(text.split()))
    return textwrap.fill(shown, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _print(view: Table) -> None:
    """Without markup or emojis of what others wrote, and without blanks at the ends of lines."""
    from rich.console import Console

    console = Console(width=_width(), markup=False, emoji=False, highlight=False)
    with console.capture() as caught:
        console.print(view)
    print("\n".join(line.rstrip() for line in caught.get().splitlines()))


def _width() -> int:
    from rich.console import Console

    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return max(LEAST, Console().width)
    return NO_FOLD


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
