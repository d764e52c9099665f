"""What the gate asked and answered, in a reader's words, and what a model that passed it still waits for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kiwi.reports.figures import chance, count, decimal, number, percent, signed, words
from kiwi.reports.findings import Findings, Json

AGAINST = ("margin", "confidence", "criterion", "comparison")


@dataclass(frozen=True)
class Check:
    """One thing the candidate must show; `passed` is None where nothing has decided yet and it was not measured."""

    name: str
    value: str
    bound: str
    passed: bool | None
    note: str = ""
    against: str = ""


def checks(found: Findings) -> list[Check]:
    """The gate's own checks once it has decided; before that, its floors and ceilings against the scores."""
    decided = (found.decision or {}).get("checks")
    if isinstance(decided, list):
        compared = _compared_with(found.decision or {})
        return [_decided_check(check, compared) for check in decided if isinstance(check, dict)]
    if found.scores is None:
        return []
    gate = found.configuration.gate
    bounds = [("floor", path, bound) for path, bound in gate.floors.items()]
    bounds += [("ceiling", path, bound) for path, bound in gate.ceilings.items()]
    return [_open_check(kind, path, bound, _at(found.scores, path)) for kind, path, bound in bounds]


def _compared_with(decision: Json) -> str:
    if decision.get("compared_with") == "copy_source":
        return "copying the source (there was no champion)"
    champion = decision.get("champion")
    return f"champion version {champion.get('version')}" if isinstance(champion, dict) else "the champion before"


def asked(found: Findings) -> list[tuple[str, str]]:
    """The gate's rules of this run, those that are on."""
    gate = found.configuration.gate
    named = f" of {', '.join(gate.approvers)}" if gate.approvers else ""
    rules = [
        ("Lead in the overall", f"at least {decimal(gate.margin, 3)}"),
        ("and over the judge's own spread", f"{decimal(gate.spreads, 1)} standard errors" if gate.spreads else ""),
        ("Chance of being better", f"at least {percent(gate.confidence)}" if gate.confidence else ""),
        ("Any criterion may fall behind by", f"at most {decimal(gate.criterion_tolerance)}"),
        ("Samples judged", f"at least {percent(gate.min_coverage)}"),
        ("and in number", f"at least {count(gate.min_samples)}" if gate.min_samples > 1 else ""),
        ("Approvals", f"{gate.approvals}{named}" if gate.approvals else "none asked for"),
    ]
    return [(name, value) for name, value in rules if value]


def _decided_check(check: Json, compared: str) -> Check:
    """A check as the gate records it: {name: "floor learning.psnr_full", passed, value, bound, sentence}."""
    name, passed = str(check.get("name") or ""), check.get("passed")
    value, bound = number(check.get("value")), number(check.get("bound"))
    known = passed if isinstance(passed, bool) else None
    note = in_words(str(check.get("sentence") or "")) if value is None else ""
    kind, _, path = name.partition(" ")
    if name == "margin":
        title, shown, limit = "lead in the overall", signed(value), signed(bound, 3)
    elif name == "confidence":
        title, shown, limit = "chance of being better", chance(value), percent(bound)
    elif kind == "criterion":
        title, shown, limit = words(path), signed(value), signed(bound)
    elif name == "coverage":
        title, shown, limit = "samples judged", percent(value, 1), percent(bound, 1)
    elif name == "samples":
        title, shown, limit = "samples judged, in number", count(value), count(bound)
    else:
        title, shown, limit = said(path or name), written(path or name, value), written(path or name, bound)
    sense = "at most" if kind == "ceiling" else "at least"
    against = compared if kind in AGAINST else ""
    return Check(title, shown, f"{sense} {limit}" if bound is not None else "", known, note, against)


def _open_check(kind: str, path: str, bound: float, value: float | None) -> Check:
    passed = None if value is None else value >= bound if kind == "floor" else value <= bound
    sense = "at least" if kind == "floor" else "at most"
    return Check(said(path), written(path, value), f"{sense} {written(path, bound)}", passed)


def in_words(reason: str) -> str:
    """The gate's sentence with the figure it names by path in a reader's words: "accuracy, recolour of 0.62 is …"."""
    return re.sub(r"^(?:learning|per_kind|controls)\.[\w.]*\w", lambda path: said(path[0]), reason)


def reasons(decision: Json | None) -> tuple[str, ...]:
    """The recorded reasons in a reader's words."""
    listed = (decision or {}).get("reasons")
    return tuple(in_words(str(reason)) for reason in listed) if isinstance(listed, list) else ()


def said(path: str) -> str:
    """A figure's dotted path as a reader's words: "learning.psnr_full_gain" -> "PSNR, frame, over copy"."""
    text = path.removeprefix("learning.").removeprefix("per_kind.").removesuffix("_db")
    for code, plain in (("psnr_full", "PSNR, frame"), ("psnr_edit", "PSNR, edit"), ("_gain", ", over copy")):
        text = text.replace(code, plain)
    return words(re.sub(r"^accuracy_", "accuracy, ", text.replace(".", ", ")))


def written(path: str, value: float | None) -> str:
    """A figure with its unit, which its path tells: shares as per cent, PSNR in dB."""
    if "psnr" in path or path.endswith("_db"):
        return f"{decimal(value, 1)} dB"
    return percent(value) if "accuracy" in path or path == "coverage" else decimal(value)


def _at(value: Any, path: str) -> float | None:
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return number(value)
