"""Cron lines as Kubeflow Pipelines takes them: six fields, seconds first, in UTC."""

from __future__ import annotations

import re

from kiwi.errors import UsageError

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of week", 0, 6, DAYS),
)
LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
PART = re.compile(r"(\*|\?|[0-9a-z]+(?:-[0-9a-z]+)?)(?:/([0-9]+))?")


def check_cron(line: str) -> str:
    """The line with single blanks. Raises UsageError naming the field that does not fit."""
    fields = line.split()
    if len(fields) != len(FIELDS):
        hint = f"with seconds in front it would be '0 {line.strip()}'" if len(fields) == 5 else "such as '0 30 2 * * *'"
        raise UsageError(f"cron line {line!r} has {len(fields)} fields, not six (seconds first)", hint)
    for said, (name, least, most, names) in zip(fields, FIELDS, strict=True):
        for part in said.lower().split(","):
            if not _fits(part, least, most, names):
                raise UsageError(f"cron line {line!r}: {part!r} is no {name}", f"{least} to {most}, *, a-b or */n")
    if fields[0].startswith("*"):
        raise UsageError(f"cron line {line!r} starts a run every few seconds", "write 0 as its first field")
    if fields[5] in "*?" and fields[3] not in "*?" and not _comes(fields[3], fields[4].lower()):
        raise UsageError(f"cron line {line!r} names a day that never comes", "such as the 30th of February")
    return " ".join(fields)


def _comes(days: str, months: str) -> bool:
    """Whether some month named has some day named; a list of days has its first one soonest."""
    first = min(int(re.match(r"[0-9]+", part)[0]) if part[0].isdigit() else 1 for part in days.split(","))  # type: ignore[index]
    return any(first <= LONGEST[month - 1] for month in range(1, 13) if _named(months, month))


def _named(months: str, month: int) -> bool:
    for part in months.split(","):
        ends, _, step = part.partition("/")
        low, _, high = ends.partition("-")
        least = 1 if low in ("*", "?") else _month(low)
        most = _month(high) if high else least if low not in ("*", "?") and not step else 12
        if least <= month <= most and (month - least) % int(step or 1) == 0:
            return True
    return False


def _month(said: str) -> int:
    return MONTHS.index(said) + 1 if said in MONTHS else int(said)


def _fits(part: str, least: int, most: int, names: tuple[str, ...]) -> bool:
    found = PART.fullmatch(part)
    if not found or (found[2] is not None and not 1 <= int(found[2]) <= most):
        return False
    if found[1] == "?":
        return most in (31, 6) and found[2] is None  # one of the two days, left open
    if found[1] == "*":
        return True
    values = [names.index(end) + least if end in names else _number(end) for end in found[1].split("-")]
    return all(least <= value <= most for value in values) and values == sorted(values)


def _number(said: str) -> int:
    return int(said) if said.isdigit() else -1
