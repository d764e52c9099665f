"""The gate: whether a candidate's scores earn it promotion. A pure function of scores and settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kiwi.configuration import GateSettings

ROUNDING = 1e-9
OF_TRUTH = ("learning", "controls", "stages")  # parts of scores.json that are measured against a ground truth
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
            the same run ({"version", "overall", "criteria"}); they win over recorded ones. `comparison` beside
            them, and beside the copy's, is the difference sample by sample; `judge_spread` how much the judge wavers.
        champion: the champion's recorded scores with its "version", "revision" and "judge"; {"version": "3"} alone
            where nothing was recorded; None where there is no champion.
        settings: margin, confidence, tolerance, least coverage and samples, floors and ceilings.

    A figure that is missing or not finite fails its check. Scores of another benchmark revision or judge are never
    compared: that is a hold with that reason.
    """
    checks = [_coverage(candidate, settings)]
    if settings.min_samples > 1:  # one sample is implied by coverage
        checks.append(_enough(candidate, settings.min_samples))
    checks += [_bound(candidate, path, floor, "floor") for path, floor in sorted(settings.floors.items())]
    checks += [_bound(candidate, path, ceiling, "ceiling") for path, ceiling in sorted(settings.ceilings.items())]
    if champion is None:
        baseline = _mapping(_mapping(candidate.get("baselines")).get("copy_source"))
        checks.append(_lead(candidate, baseline, "copying the source", settings))
        checks += _confidence(baseline, "copying the source", settings)
        return _verdict(checks, "copy_source")
    name = f"champion version {champion.get('version', '?')}"
    comparable, why_not = _comparable(candidate, champion, name, settings.min_coverage)
    if comparable is None:
        checks.append(Check("comparison", False, None, None, why_not[:1].upper() + why_not[1:]))
    else:
        checks.append(_lead(candidate, comparable, name, settings))
        checks += _confidence(comparable, name, settings)
        checks += _criteria(candidate, comparable, name, settings.criterion_tolerance)
    return _verdict(checks, "champion")


def needing_truth(settings: GateSettings) -> list[str]:
    """The floors and ceilings that a benchmark without a ground truth can never show, so that it is always a hold."""
    return [path for path in (*settings.floors, *settings.ceilings) if path.partition(".")[0] in OF_TRUTH]


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


def _enough(candidate: Scores, least: int) -> Check:
    samples, coverage = _number(candidate.get("samples")), _number(candidate.get("coverage"))
    if samples is None or coverage is None:
        return Check("samples", False, None, least, "The number of samples that were judged is not known.")
    judged = round(samples * coverage)
    passed = judged >= least
    said = f"{judged} samples were judged, {'at least' if passed else 'but at least'} {least} are needed."
    return Check("samples", passed, judged, least, said)


def _lead(candidate: Scores, other: Scores, name: str, settings: GateSettings) -> Check:
    ours, theirs = _number(candidate.get("overall")), _number(other.get("overall"))
    needed, why = _needed(candidate, other, settings)
    if ours is None or theirs is None:
        who = "the candidate" if ours is None else name
        return Check("margin", False, None, needed, f"There is no overall score of {who}, so there is no comparison.")
    lead = ours - theirs
    passed = lead >= needed - ROUNDING
    asked = f"a lead of {needed:.4g} {'was asked for' if passed else 'is needed'}{why}."
    if passed:
        said = f"Overall {ours:.3f} leads {name} ({theirs:.3f}) by {lead:.3f}; {asked}"
    elif abs(lead) < ROUNDING:
        said = f"Overall {ours:.3f} is equal to {name} ({theirs:.3f}); {asked}"
    elif lead > 0:
        said = f"Overall {ours:.3f} leads {name} ({theirs:.3f}) by only {lead:.3f}; {asked}"
    else:
        said = f"Overall {ours:.3f} is {-lead:.3f} behind {name} ({theirs:.3f}); {asked}"
    return Check("margin", passed, lead, needed, said)


def _needed(candidate: Scores, other: Scores, settings: GateSettings) -> tuple[float, str]:
    """The lead that is asked for, and why: the margin, or what the judge's own wavering could make where that is more.

    It is the same judge of both, so where the other's spread was not recorded the candidate's stands for it. Where the
    judge was asked once only, its spread is not known, and the margin and the comparison by samples are what counts.
    """
    ours = _number(_at(candidate, "judge_spread.overall"))
    theirs = _number(_at(other, "judge_spread.overall"))
    if ours is None:
        return settings.margin, ""
    wavering = settings.spreads * math.hypot(ours, ours if theirs is None else theirs)
    if wavering <= settings.margin:
        return settings.margin, ""
    return wavering, f", {settings.spreads:g} standard errors of the judge"


def _confidence(other: Scores, name: str, settings: GateSettings) -> list[Check]:
    """The chance that the candidate is the better one, over samples drawn again; see kiwi/benchmark/resampling.py."""
    if settings.confidence == 0:
        return []
    chance, least = _number(_at(other, "comparison.chance_better")), settings.confidence
    if chance is None:
        said = f"There are no scores sample by sample, or too few, to tell how sure the lead over {name} is."
        return [Check("confidence", not settings.require_comparison, None, least, said)]
    passed = chance >= least - ROUNDING
    low, high = (_number(_at(other, f"comparison.interval.{end}")) for end in (0, 1))
    between = f" (difference {low:+.3f} to {high:+.3f})" if low is not None and high is not None else ""
    word = "at least" if passed else "but at least"
    said = f"The chance of being better than {name} is {_chance(chance)}{between}, {word} {least:.1%} is needed."
    return [Check("confidence", passed, chance, least, said)]


def _chance(value: float) -> str:
    """A chance found by drawing samples again is never certain; the report writes it alike."""
    return "over 99.9%" if value > 0.9995 else "under 0.1%" if value < 0.0005 else f"{value:.1%}"


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
