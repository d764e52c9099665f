"""JSON lists and JSON lines as streams of entries, in little memory however long the file.

Bytes that are no UTF-8, and half escapes, stay in their text as lone surrogates, for `entries.pair_of` to tell.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO, Any, NamedTuple

from kiwi import storage
from kiwi.sources.adapter import SourceError
from kiwi.sources.entries import readable

LOOKED_AT = 100  # entries that a quick check looks at
LONGEST_LINE = 1 << 24  # characters
_CHUNK = 1 << 20  # characters read at once
_LONGEST = 1 << 26  # characters of one entry
_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(strict=False, parse_int=float)  # float: an integer of 5,000 digits is no error


class Entry(NamedTuple):
    """One entry: its place in the file (a count from 1, or a line), and why it is no object, if so."""

    number: int
    values: dict[str, Any]
    problem: str


def read_json_list(path: str) -> Iterator[Entry]:
    """`json_list` of a path or address."""
    try:
        with storage.open_read(path) as file:
            yield from json_list(file, path)
    except storage.StorageError as error:
        raise SourceError(error.message, error.remedy) from error


def read_json_lines(path: str) -> Iterator[Entry]:
    """`json_lines` of a path or address."""
    try:
        with storage.open_read(path) as file:
            yield from json_lines(file, path)
    except storage.StorageError as error:
        raise SourceError(error.message, error.remedy) from error


def require_keys(entries: Iterator[Entry], keys: Sequence[str], name: str) -> None:
    """Raises SourceError where none of the first entries has all `keys`: it is a list of something else."""
    found: list[str] = []
    for entry in islice(entries, LOOKED_AT):
        if all(key in entry.values for key in keys):
            return
        found = found or list(entry.values)
    missing, shown = ", ".join(key for key in keys if key not in found), ", ".join(found)[:200] or "nothing"
    said = readable(f"{name}: no key {missing} (found: {shown})")
    raise SourceError(said, f"expected objects with {', '.join(keys)}")


def json_list(file: IO[bytes], name: str) -> Iterator[Entry]:
    """The entries of a file that is one JSON list of objects.

    Raises:
        SourceError: it is no JSON list, is broken (with the line), or ends early.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
    window = _Window(text, name)
    if window.next_sign() != "[":
        raise SourceError(f"{name}: is no JSON list", "expected [{...}, ...]")
    window.at += 1
    number = 0
    closed = window.next_sign() == "]"
    while not closed:
        number += 1
        yield _entry(number, window.value())
        sign = window.next_sign()
        if sign not in (",", "]"):
            raise window.broken("a comma or the list's end is missing")
        window.at += 1
        closed = sign == "]"
    text.detach()


def json_lines(file: IO[bytes], name: str) -> Iterator[Entry]:
    """The entries of a file with one JSON object a line; a line that is none has its `problem`."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
    number = 0
    while line := text.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise SourceError(f"{name}: line {number}: more than {LONGEST_LINE} characters", "one object a line")
        if not line.strip():
            continue
        try:
            yield _entry(number, _DECODER.decode(line))
        except (ValueError, RecursionError) as error:
            yield Entry(number, {}, f"line {number}: is no JSON ({_said(error)})")
    text.detach()


class _Window:
    """The part of the text that is held: `buffer` from `at` on is still to be read."""

    def __init__(self, text: io.TextIOWrapper, name: str) -> None:
        self.text, self.name = text, name
        self.buffer, self.at, self.lines = "", 0, 1
        self.ended = False

    def next_sign(self) -> str:
        """The next character that is no blank, not consumed."""
        while True:
            if self.at < len(self.buffer) and (sign := self.buffer[self.at]) > " ":
                return sign
            found = _BLANKS.match(self.buffer, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if self.ended:
                raise self.broken("the file ends early")
            self._fill()

    def value(self) -> Any:
        """The JSON value that begins here, consumed."""
        self.next_sign()
        while True:
            try:
                found, end = _DECODER.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                if self.ended or len(self.buffer) - self.at > _LONGEST:
                    raise self.broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self.broken(_said(error)) from error
            else:
                if self.ended or end < len(self.buffer):
                    self.at = end
                    return found
            self._fill()

    def broken(self, said: str, at: int | None = None) -> SourceError:
        place = self.at if at is None else at
        line = self.lines + self.buffer.count("\n", 0, place)
        return SourceError(f"{self.name}: line {line}: broken JSON: {said}", "fetch the file again, or mend that line")

    def _fill(self) -> None:
        self.lines += self.buffer.count("\n", 0, self.at)
        more = self.text.read(max(_CHUNK, len(self.buffer) - self.at))
        self.buffer, self.at, self.ended = self.buffer[self.at :] + more, 0, not more


def _entry(number: int, value: Any) -> Entry:
    if isinstance(value, dict):
        return Entry(number, value, "")
    return Entry(number, {}, f"entry {number} is no object")


def _said(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
