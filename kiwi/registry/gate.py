"""The gate: whether a candidate's scores earn it promotion. A pure function of scores and settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kiwi.configuration import GateSettings

ROUNDING = 1e-9
Scores = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One question the gate asked: what was measured, what was asked for, and the answer as a sentence."""

    name: str
    passed: bool
    value: float | None
    bound: float | None
    sentence: str


@dataclass(frozen=True)
class Decision:
    """The gate's verdict. `reasons` are sentences with figures: what failed on hold, what was shown on promote."""

    decision: Literal["promote", "hold"]
    reasons: tuple[str, ...]
    compared_with: Literal["champion", "copy_source"]
    checks: tuple[Check, ...]

    def as_dict(self) -> dict[str, Any]:
        said = asdict(self)
        return {**said, "reasons": list(self.reasons), "checks": [asdict(check) for check in self.checks]}


def decide_gate(candidate: Scores, champion: Scores | None, settings: GateSettings) -> Decision:
    """Decides on a candidate's scores (scores.json) against the champion's, or against copying the source.

    Args:
        candidate: overall, criteria, coverage, revision, judge, baselines.copy_source.overall, and whatever the
            floors and ceilings address by dotted path. `champion` in it holds scores of the champion measured in
            the same run ({"version", "overall", "criteria"}); they win over recorded ones.
        champion: the champion's recorded scores with its "version", "revision" and "judge"; {"version": "3"} alone
            where nothing was recorded; None where there is no champion.
        settings: margin, tolerance, least coverage, floors and ceilings.

    A figure that is missing or not finite fails its check. Scores of another benchmark revision or judge are never
    compared: that is a hold with that reason.
    """
    checks = [_coverage(candidate, settings)]
    checks += [_bound(candidate, path, floor, "floor") for path, floor in sorted(settings.floors.items())]
    checks += [_bound(candidate, path, ceiling, "ceiling") for path, ceiling in sorted(settings.ceilings.items())]
    if champion is None:
        baseline = _mapping(_mapping(candidate.get("baselines")).get("copy_source"))
        checks.append(_lead(candidate, baseline, "copying the source", settings.margin))
        return _verdict(checks, "copy_source")
    name = f"champion version {champion.get('version', '?')}"
    comparable, why_not = _comparable(candidate, champion, name, settings.min_coverage)
    if comparable is None:
        checks.append(Check("comparison", False, None, None, why_not))
    else:
        checks.append(_lead(candidate, comparable, name, settings.margin))
        checks += _criteria(candidate, comparable, name, settings.criterion_tolerance)
    return _verdict(checks, "champion")


def _verdict(checks: list[Check], compared_with: Literal["champion", "copy_source"]) -> Decision:
    failed = tuple(check.sentence for check in checks if not check.passed)
    if failed:
        return Decision("hold", failed, compared_with, tuple(checks))
    lead = [check.sentence for check in checks if check.name == "margin"]
    others = [check.sentence for check in checks if check.name != "margin"]
    return Decision("promote", (*lead, *others), compared_with, tuple(checks))


def _comparable(candidate: Scores, champion: Scores, name: str, least: float) -> tuple[Scores | None, str]:
    """The champion's scores that may stand beside the candidate's, or None and why there are none."""
    again = _mapping(candidate.get("champion"))
    if again and str(again.get("version", champion.get("version"))) == str(champion.get("version")):
        if again.get("unmeasured"):
            return None, f"{name} could not be measured in this run: {again['unmeasured']}."
        judged = _number(again.get("coverage"))
        if judged is not None and judged < least - ROUNDING:
            return None, f"only {judged:.1%} of {name}'s samples could be judged; {least:.1%} are needed to compare."
        return again, ""
    if _number(champion.get("overall")) is None:
        return None, f"{name} has no recorded scores and was not measured in this run, so there is no comparison."
    for key, word in (("revision", "benchmark revision"), ("judge", "judge")):
        if candidate.get(key) is None or candidate.get(key) != champion.get(key):
            return None, (
                f"{name} was scored with {word} {champion.get(key)}, the candidate with {candidate.get(key)}: "
                "such scores are not compared; measure the champion again in this run."
            )
    return champion, ""


def _coverage(candidate: Scores, settings: GateSettings) -> Check:
    value, least = _number(candidate.get("coverage")), settings.min_coverage
    if value is None:
        return Check("coverage", False, None, least, "The share of samples that could be judged is not known.")
    passed = value >= least - ROUNDING
    verb = "could be judged, at least" if passed else "could be judged, but at least"
    return Check("coverage", passed, value, least, f"{value:.1%} of the samples {verb} {least:.1%} are needed.")


def _bound(candidate: Scores, path: str, bound: float, kind: Literal["floor", "ceiling"]) -> Check:
    value = _number(_at(candidate, path))
    name = f"{kind} {path}"
    if value is None:
        return Check(name, False, None, bound, f"{path} was not measured, so its {kind} of {bound:g} is not shown.")
    if kind == "floor":
        passed, word = value >= bound - ROUNDING, "reaches" if value >= bound - ROUNDING else "is below"
    else:
        passed, word = value <= bound + ROUNDING, "stays under" if value <= bound + ROUNDING else "is above"
    return Check(name, passed, value, bound, f"{path} of {value:.4g} {word} the {kind} of {bound:g}.")


def _lead(candidate: Scores, other: Scores, name: str, margin: float) -> Check:
    ours, theirs = _number(candidate.get("overall")), _number(other.get("overall"))
    if ours is None or theirs is None:
        who = "the candidate" if ours is None else name
        return Check("margin", False, None, margin, f"There is no overall score of {who}, so there is no comparison.")
    lead = ours - theirs
    passed = lead >= margin - ROUNDING
    if passed:
        said = f"Overall {ours:.3f} leads {name} ({theirs:.3f}) by {lead:.3f}; a lead of {margin:g} was asked for."
    elif abs(lead) < ROUNDING:
        said = f"Overall {ours:.3f} is equal to {name} ({theirs:.3f}); a lead of {margin:g} is needed."
    elif lead > 0:
        said = f"Overall {ours:.3f} leads {name} ({theirs:.3f}) by only {lead:.3f}; a lead of {margin:g} is needed."
    else:
        said = f"Overall {ours:.3f} is {-lead:.3f} behind {name} ({theirs:.3f}); a lead of {margin:g} is needed."
    return Check("margin", passed, lead, margin, said)


def _criteria(candidate: Scores, other: Scores, name: str, tolerance: float) -> list[Check]:
    """No criterion of the other's may be missed by more than the tolerance."""
    ours, theirs = _mapping(candidate.get("criteria")), _mapping(other.get("criteria"))
    checks = []
    for criterion in sorted(theirs):
        mine, its = _number(ours.get(criterion)), _number(theirs[criterion])
        check = f"criterion {criterion}"
        if its is None:
            continue
        if mine is None:
            said = f"{criterion} of {name} is {its:.3f}, and was not measured for the candidate."
            checks.append(Check(check, False, None, tolerance, said))
            continue
        passed = mine >= its - tolerance - ROUNDING
        word = "within" if passed else "more than"
        said = f"{criterion} of {mine:.3f} is {word} {tolerance:g} of {name}'s {its:.3f}."
        if passed and mine >= its:
            said = f"{criterion} of {mine:.3f} is no worse than {name}'s {its:.3f}."
        elif not passed:
            said = f"{criterion} of {mine:.3f} is more than {tolerance:g} below {name}'s {its:.3f}."
        checks.append(Check(check, passed, mine - its, -tolerance, said))
    return checks


def _at(value: Any, path: str) -> Any:
    """What lies at a dotted path, such as "per_kind.recolour.accuracy"; None where there is nothing."""
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
