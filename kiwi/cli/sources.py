"""What `kiwi data sources` prints: the adapters, or what one of them finds at a location."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_adapters(as_json: bool) -> None:
    """The sources that pairs can come from."""
    from kiwi.sources.survey import adapter_table

    rows = adapter_table()
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['title']}")
        print(f"{'':<{width}}  licence: {row['license']}")
        print(f"{'':<{width}}  layout: {row['layout']}")
    print("\nlook into one: kiwi data sources NAME LOCATION", file=sys.stderr)


def print_survey(name: str, location: str, check: int, as_json: bool) -> None:
    """Counts one collection's listing and opens the media of a sample of it."""
    from kiwi.sources.survey import survey

    found = survey(name, location, check, _progress)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print(f"{found['pairs']:,} pairs in {location} ({name})")
    for title, key in (("licence", "license"), ("task", "tasks"), ("media", "media"), ("cannot be used", "problems")):
        for word, count in found[key].items():
            print(_printable(f"  {title:<16}{word:<28}{count:>12,}"))
    print(f"  {'references':<16}{'eligible':<28}{found['eligible_for_references']:>12,}")
    print(f"  {'':<16}{'given':<28}{found['given_references']:>12,}")
    _print_check(found)


def _print_check(found: dict[str, Any]) -> None:
    missing = sum(found["checked"]["missing"].values())
    print(f"  {'media checked':<16}{'pairs':<28}{found['checked']['pairs']:>12,}")
    print(f"  {'':<16}{'that cannot be opened':<28}{missing:>12,}")
    for told in found["first_problems"]:
        print(_printable(f"  row {told['position']} ({told['id']}): {told['reason']}: {told['detail']}"))


def _printable(text: str) -> str:
    """What a listing says may hold control characters, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _progress(rows: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{rows:,} listed", end="", file=sys.stderr, flush=True)
