"""How a figure is written for a reader: counts, decibels, durations, shares, and words for identifiers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

MISSING = "–"
MINUS = "−"


def number(value: Any) -> float | None:
    """`value` as a finite float, None for everything else (a bool is no figure)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def count(value: Any) -> str:
    """6000 -> "6,000"."""
    known = number(value)
    return MISSING if known is None else f"{round(known):,}".replace("-", MINUS)


def decimal(value: Any, digits: int = 2) -> str:
    """3.14159 -> "3.14"."""
    known = number(value)
    return MISSING if known is None else f"{known:,.{digits}f}".replace("-", MINUS)


def signed(value: Any, digits: int = 2) -> str:
    """A difference, with its sign: "+0.31", "−1.20"."""
    known = number(value)
    if known is None:
        return MISSING
    return f"{known:+,.{digits}f}".replace("-", MINUS) if round(known, digits) else f"{0:.{digits}f}"


def percent(value: Any, digits: int = 0) -> str:
    """A share of one: 0.925 -> "92%" (rounded half to even, as Python does)."""
    known = number(value)
    return MISSING if known is None else f"{known * 100:.{digits}f}%".replace("-", MINUS)


def chance(value: Any) -> str:
    """A chance found by drawing samples again: "97.3%", and never certain: "over 99.9%", "under 0.1%"."""
    known = number(value)
    if known is None:
        return MISSING
    return "over 99.9%" if known > 0.9995 else "under 0.1%" if known < 0.0005 else percent(known, 1)


def duration(seconds: Any) -> str:
    """Seconds in the two largest units that say something: "0.42 s", "38 s", "3 min 12 s", "2 h 05 min"."""
    known = number(seconds)
    if known is None:
        return MISSING
    if known < 9.95:
        return f"{max(known, 0.0):.2g} s" if known < 1 else f"{known:.1f} s"
    whole = round(known)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock(seconds: float) -> str:
    """A moment on a time line: 95 -> "1:35"."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def words(identifier: Any) -> str:
    """`no_visible_edit` -> "no visible edit", `stage1` -> "stage 1"."""
    return re.sub(r"(?<=[a-z]{3})(?=\d+$)", " ", str(identifier).replace("_", " "))


def slug(text: Any) -> str:
    """A file name's worth of `text`: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", str(text)).strip("-").lower()[:48] or "unnamed"


def short(identifier: Any, digits: int = 10) -> str:
    """The first digits of a hash."""
    return str(identifier)[:digits] if identifier else MISSING


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values between `low` and `high`, about `wanted` of them, for an axis."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / max(wanted, 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def time_ticks(seconds: float, wanted: int = 6) -> list[int]:
    """Round moments on a time line of `seconds`, about `wanted` of them, from 0 on."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((each for each in steps if each * wanted >= seconds), steps[-1])
    return list(range(0, int(seconds) + 1, step))


def mean(values: Sequence[float | None], weights: Sequence[float] | None = None) -> float | None:
    """Weighted mean of the known values; None if none is known."""
    pairs = [
        (value, weight)
        for value, weight in zip(values, weights or [1.0] * len(values), strict=True)
        if value is not None and weight > 0
    ]
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None
