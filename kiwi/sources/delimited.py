"""Delimited text (CSV and its kin) as a stream of records: the delimiter found out, and no bad line passed over.

Read as UTF-8, with or without a byte-order mark; any line end; cells may hold quoted newlines. Bytes that are no UTF-8
stay in their cell as lone surrogates, for `entries.pair_of` to tell, so that one bad line does not fail the file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kiwi import storage
from kiwi.sources.adapter import SourceError

DELIMITERS = (",", ";", "\t", "|")
LONGEST_CELL = 1 << 20  # characters; beyond it, a quote was most likely never closed
LONGEST_LINE = 1 << 24  # characters
_END = "\x00end of file\x00"  # a line fed after the last one: a quote that is still open swallows it


class Record(NamedTuple):
    """One line: its cells by the header's names (lower case), and why it cannot be used, if so."""

    line: int
    cells: dict[str, str]
    problem: str


def read_records(path: str, required: Sequence[str], known: Sequence[str] = ()) -> Iterator[Record]:
    """The records of a file whose header holds `required`. Columns that are neither required nor `known` are ignored.

    A line with fewer cells than the header lacks the last ones ("" for them); one with more has a `problem`.

    Raises:
        SourceError: the file cannot be read, is empty or no text, lacks a column, or has a quote without end.
    """
    csv.field_size_limit(LONGEST_CELL)
    try:
        with storage.open_read(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            header, delimiter, lines = _header(path, text, required, known)
            yield from _records(path, text, header, delimiter, lines, {*required, *known})
            text.detach()
    except storage.StorageError as error:
        raise SourceError(error.message, error.remedy) from error


def _header(
    path: str, text: io.TextIOWrapper, required: Sequence[str], known: Sequence[str]
) -> tuple[list[str], str, int]:
    """The header's names, the delimiter, and the lines read so far."""
    lines, first = 0, ""
    while not first.strip():
        first = text.readline(LONGEST_CELL)
        lines += 1
        if not first:
            raise SourceError(f"{path}: is empty", f"write a header ({', '.join(required)}) and a row for each pair")
    if any(0xDC80 <= ord(letter) <= 0xDCFF for letter in first) or "\0" in first:
        raise SourceError(f"{path}: is no UTF-8 text (line {lines})", "save the CSV as UTF-8")
    found: list[str] = []
    for delimiter in DELIMITERS:
        names = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
        if set(required) <= set(names):
            twice = sorted({name for name in (*required, *known) if names.count(name) > 1})
            if twice:
                raise SourceError(f"{path}: column {', '.join(twice)} comes twice", "leave one of each")
            return names, delimiter, lines
        found = names if len(names) > len(found) else found
    missing, shown = ", ".join(name for name in required if name not in found), ", ".join(found)[:200]
    remedy = f"columns: {', '.join((*required, *known))}"
    raise SourceError(f"{path}: no column {missing} (found: {shown})", remedy)


def _records(
    path: str, text: io.TextIOWrapper, header: list[str], delimiter: str, lines: int, wanted: set[str]
) -> Iterator[Record]:
    reader = csv.reader(_fed(text), delimiter=delimiter)
    places = [(index, name) for index, name in enumerate(header) if name in wanted]
    width, line, began = len(header), lines, lines + 1
    try:
        for row in reader:
            line, began = began, lines + reader.line_num + 1
            if len(row) == 1 and row[0] == _END:
                return
            if not any(row):
                continue
            problem = ""
            if len(row) < width:
                row.extend([""] * (width - len(row)))
            elif len(row) > width and any(cell.strip() for cell in row[width:]):
                problem = (
                    f"line {line}: {len(row)} cells where the header has {width}; quote a cell that holds {delimiter!r}"
                )
            yield Record(line, {name: row[index].strip() for index, name in places}, problem)
    except csv.Error as error:
        raise SourceError(
            f"{path}: line {began}: {error}", "save the file as a plain CSV, every quote closed"
        ) from error
    raise SourceError(
        f"{path}: line {line}: a quote is opened and never closed", "close it, or double it inside a cell"
    )


def _fed(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(LONGEST_LINE):
        if line.endswith(("\n", "\r")):
            yield line
        elif len(line) < LONGEST_LINE:
            yield line + "\n"
        else:
            raise csv.Error(f"a line of more than {LONGEST_LINE} characters")
    yield _END
