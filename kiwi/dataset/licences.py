"""Licences of the sources added up: what may be done with a dataset that mixes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """What a licence asks. `known` is False for one that this table does not hold: then nothing is promised."""

    known: bool
    commercial: bool
    share_alike: bool
    attribution: bool
    derivatives: bool = True


_OPEN = Terms(known=True, commercial=True, share_alike=False, attribution=True)
_FREE = Terms(known=True, commercial=True, share_alike=False, attribution=False)
_UNKNOWN = Terms(known=False, commercial=False, share_alike=False, attribution=True)


def terms_of(licence: str) -> Terms:
    """The terms of a licence by its usual names ("CC BY-NC-SA 4.0", "cc-by-4.0", "Apache-2.0", "MIT")."""
    name = re.sub(r"[\s_]+", "-", licence.strip().lower())
    if name.startswith(("cc0", "public-domain", "unlicense")):
        return _FREE
    if name.startswith("cc-by"):
        parts = name.split("-")
        return Terms(
            known=True,
            commercial="nc" not in parts,
            share_alike="sa" in parts,
            attribution=True,
            derivatives="nd" not in parts,
        )
    if name.startswith(("apache", "mit", "bsd", "isc")):
        return _OPEN
    return _UNKNOWN


def added_up(licences: Mapping[str, int]) -> list[str]:
    """What holds for the whole of rows under `licences` {name: rows}: one sentence each, the gravest first."""
    terms = {name: terms_of(name) for name in licences}
    unknown = [name or "(none)" for name, term in terms.items() if not term.known]
    closed = [name for name, term in terms.items() if term.known and not term.commercial]
    alike = [name for name, term in terms.items() if term.share_alike]
    credited = [name for name, term in terms.items() if term.known and term.attribution]
    said = []
    if unknown:
        said.append(
            f"**Not cleared.** Rows under {_listed(unknown)} have no licence that could be read: find out before use."
        )
    if closed:
        said.append(f"**Non-commercial.** {_listed(closed)} forbid commercial use, and with it that of the whole.")
    fixed = [name for name, term in terms.items() if not term.derivatives]
    if fixed:
        said.append(f"**No derivatives.** {_listed(fixed)} forbid passing on what was changed, which every edit is.")
    if alike:
        said.append(f"**Share alike.** What is derived from it and passed on stays under {_listed(alike)}.")
    if credited:
        said.append(f"**Attribution.** Name the sources under {_listed(credited)}.")
    if not said:
        said.append("**Free.** All rows are in the public domain or the like.")
    return said


def forbidden(licences: Mapping[str, int]) -> list[str]:
    """What may not be done with the whole of rows under `licences`, by the strictest terms; [] if nothing is known to
    forbid anything."""
    terms = {name: terms_of(name) for name in licences}
    said = []
    if any(not term.known for term in terms.values()):
        said.append("publish or sell it, or models trained on it, before the unknown licences are cleared")
    if any(term.known and not term.commercial for term in terms.values()):
        said.append("use it, or pass it on, for commercial ends")
    if any(not term.derivatives for term in terms.values()):
        said.append("pass on clips, references or other works made from those that forbid derivatives")
    if any(term.share_alike for term in terms.values()):
        said.append("pass on what is derived from it under other terms than its own")
    if any(term.known and term.attribution for term in terms.values()):
        said.append("pass it on without naming its sources")
    return said


def identifier(licences: Mapping[str, int]) -> str:
    """The licence's identifier for the card's header: its own where there is one, `other` for a mixture or unknown."""
    if len(licences) == 1:
        only = next(iter(licences))
        if terms_of(only).known:
            return re.sub(r"[\s_]+", "-", only.strip().lower())
    return "other"


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names))
