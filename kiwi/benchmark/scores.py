"""What scores.json says: criterion means and overalls, figures by kind, what was learnt, and the controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import variance
from typing import Any, Protocol

from kiwi.benchmark.averages import equal_weight
from kiwi.benchmark.edits import RESULT, SWAPPED_REFERENCE, WRONG_INSTRUCTION, WRONG_LATENTS
from kiwi.benchmark.metrics import SampleMetrics
from kiwi.benchmark.resampling import difference, intervals
from kiwi.benchmark.rubric import ALL_CRITERIA, Category, Rubric
from kiwi.benchmark.samples import Group

CONTROLS = (WRONG_INSTRUCTION, SWAPPED_REFERENCE, WRONG_LATENTS)


class Sampled(Protocol):
    """What scores say of a sample, apart from its figures."""

    @property
    def sample_id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def group(self) -> Group: ...
    @property
    def rubric(self) -> Rubric: ...
    @property
    def category(self) -> Category: ...


@dataclass
class Outcome:
    """What is known of one model's edits: capped scores by sample, figures by (arm, sample), and what failed.

    `repeats` holds each judgement that a sample's scores are the mean of; `exact`: the judge always says the same.
    """

    samples: list[Sampled]
    exact: bool = True
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    repeats: dict[str, tuple[dict[str, float], ...]] = field(default_factory=dict)
    figures: dict[tuple[str, str], SampleMetrics] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)


def averaged(outcome: Outcome) -> dict[str, Any]:
    """Criterion means and both overalls, 1-5, over what could be judged.

    `overall` is the paper's: criteria with equal weight, whatever the number of samples that each was asked of.
    `overall_sample_weighted` is the authors' script's: the mean over samples of the mean of their three criteria.
    `overall_reference` is the former over reference-guided samples alone, the form of RefVIE-Bench. Criteria that no
    sample was asked for are left out and named in `criteria_missing`; an overall of nothing is None. `intervals` are
    the middle 95% of the bootstrap over samples, `judge_spread` is how much the judge itself wavers.
    """
    rows = [scores_as_written(scores) for scores in outcome.scores.values()]
    criteria = _criterion_means(list(outcome.scores.values()))
    guided = {each.sample_id for each in outcome.samples if each.group != "instruction"}
    by_reference = _criterion_means([scores for name, scores in outcome.scores.items() if name in guided])
    return {
        "overall": mean(criteria.values()),
        "overall_sample_weighted": mean(mean_of(scores) for scores in outcome.scores.values()),
        "overall_reference": mean(by_reference.values()),
        "criteria": {name: round(value, 4) for name, value in criteria.items()},
        "criteria_missing": [name for name in ALL_CRITERIA if name not in criteria],
        "intervals": intervals(rows),
        "judge_spread": judge_spread(outcome),
        "samples": len(outcome.samples),
        "coverage": round(len(outcome.scores) / len(outcome.samples), 4) if outcome.samples else 0.0,
    }


def _criterion_means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means: dict[str, float] = {}
    for name in ALL_CRITERIA:
        values = [row[name] for row in rows if name in row]
        if values:
            means[name] = sum(values) / len(values)
    return means


def judge_spread(outcome: Outcome) -> dict[str, Any]:
    """How much the judge wavers: {"repeats": judgements of a sample, "overall": standard error of the overall}.

    The standard error is the one that is due to the judge alone, from judgements of the same edits again: 0 for an
    exact judge, None where a sample was judged once by one that is not.
    """
    if outcome.exact:
        return {"repeats": 1, "overall": 0.0}
    repeats = min((len(each) for each in outcome.repeats.values()), default=0)
    if repeats < 2:
        return {"repeats": repeats, "overall": None}
    asked = [name for row in outcome.scores.values() for name in row]
    share = {name: 1 / (len(set(asked)) * asked.count(name)) for name in set(asked)}
    parts = [
        variance([sum(share[name] * score for name, score in row.items()) for row in rows]) / len(rows)
        for rows in outcome.repeats.values()
    ]
    return {"repeats": repeats, "overall": round(float(sum(parts) ** 0.5), 6)}


def scores_as_written(scores: Mapping[str, float]) -> dict[str, float]:
    """A sample's scores to the four places that scores.json keeps, so that equal records are equal."""
    return {name: round(value, 4) for name, value in scores.items()}


def mean_of(scores: Mapping[str, float]) -> float:
    return equal_weight(scores.values())


def mean(values: Iterable[float]) -> float | None:
    """The mean to four places; None of no values."""
    listed = list(values)
    return round(equal_weight(listed), 4) if listed else None


def of_kind(outcome: Outcome, kind: str) -> dict[str, Any]:
    """One kind's figures: PSNR of edit and copy in dB, accuracy (left out where it cannot be told), its criteria."""
    samples = [sample for sample in outcome.samples if sample.kind == kind]
    names = [sample.sample_id for sample in samples]
    scores = [outcome.scores[name] for name in names if name in outcome.scores]
    return {
        "group": samples[0].group,
        "rubric": samples[0].rubric,
        "samples": len(samples),
        "judged": len(scores),
        "overall": mean(mean_of(each) for each in scores),
        "criteria": {name: round(value, 4) for name, value in _criterion_means(scores).items()},
        **_figures(outcome, RESULT, names),
    }


def _figures(outcome: Outcome, arm: str, names: Iterable[str]) -> dict[str, float]:
    """Means over those of `names` that were measured; a figure that nothing was measured for is left out."""
    found = [outcome.figures[arm, name] for name in names if (arm, name) in outcome.figures]
    said = {
        name: mean(getattr(each, name) for each in found)
        for name in ("psnr_full", "psnr_edit", "copy_psnr_full", "copy_psnr_edit")
    }
    said["accuracy"] = mean(float(each.accurate) for each in found if each.accurate is not None)
    return {name: value for name, value in said.items() if value is not None}


def learning(outcome: Outcome) -> dict[str, float]:
    """What was learnt, on held-out samples: PSNR in dB and its gain over a copy, accuracies 0-1, and the controls.

    Accuracies under a control are against the *right* answer: low means that the model follows what it was given.
    `background_reference_loss_db` is the full PSNR that background references lose under another one's latents.
    Figures that the samples cannot give (the user's own pairs have no answers) are left out.
    """
    every = [sample.sample_id for sample in outcome.samples]
    figures = _figures(outcome, RESULT, every)
    figures.pop("accuracy", None)
    for name in ("psnr_full", "psnr_edit"):
        if name in figures:
            figures[f"{name}_gain"] = round(figures[name] - figures[f"copy_{name}"], 4)
    for kind in dict.fromkeys(sample.kind for sample in outcome.samples):
        names = [sample.sample_id for sample in outcome.samples if sample.kind == kind]
        result = _figures(outcome, RESULT, names)
        if "accuracy" in result:
            figures[f"accuracy_{kind}"] = result["accuracy"]
    for arm in (WRONG_INSTRUCTION, SWAPPED_REFERENCE):
        control = _figures(outcome, arm, every)
        if "accuracy" in control:
            figures[f"accuracy_{arm}"] = control["accuracy"]
    both = [name for name in every if (RESULT, name) in outcome.figures and (WRONG_LATENTS, name) in outcome.figures]
    if both:
        right, wrong = _figures(outcome, RESULT, both), _figures(outcome, WRONG_LATENTS, both)
        figures["background_reference_loss_db"] = round(right["psnr_full"] - wrong["psnr_full"], 4)
    return figures


def controls(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Figures of each control that was run, held against the right answer and the right truth."""
    said: dict[str, dict[str, Any]] = {}
    for arm in CONTROLS:
        names = [name for made, name in outcome.figures if made == arm]
        if names:
            kinds = sorted({sample.kind for sample in outcome.samples if sample.sample_id in set(names)})
            said[arm] = {"kinds": kinds, "samples": len(names), **_figures(outcome, arm, names)}
    return said


def first_of_each_kind(outcome: Outcome, number: int) -> Outcome:
    """The same outcome for the first `number` samples of each kind, to compare with stages that edited only those."""
    kept: list[Sampled] = []
    for kind in dict.fromkeys(sample.kind for sample in outcome.samples):
        kept += [sample for sample in outcome.samples if sample.kind == kind][:number]
    names = {sample.sample_id for sample in kept}
    return Outcome(
        kept,
        outcome.exact,
        {name: scores for name, scores in outcome.scores.items() if name in names},
        {name: repeats for name, repeats in outcome.repeats.items() if name in names},
        {(arm, name): each for (arm, name), each in outcome.figures.items() if name in names and arm == RESULT},
        [failure for failure in outcome.failures if failure["id"] in names],
    )


def champion_side(
    said: Mapping[str, Any] | None, champion: Outcome | None, candidate: Outcome
) -> dict[str, Any] | None:
    """The champion's side of the comparison: recorded scores, scores of this run, or why there are none.

    `comparison` is the candidate less the champion, sample by sample; None where no such scores are at hand.
    """
    if said is None:
        return None
    about = {"name": said["name"], "version": said["version"], "unmeasured": said["unmeasured"]}
    if said["recorded"] is not None:
        known = {name: value for name, value in said["recorded"].items() if name != "per_sample"}
        former = recorded(said)
        more = {"intervals": intervals(list(former.values())), "comparison": compared(candidate, former)}
        return about | {"scores_from": "record"} | known | more
    if champion is None:
        return about | {"scores_from": None, "overall": None, "criteria": {}, "comparison": None}
    return about | {"scores_from": "this run"} | beside(candidate, champion)


def recorded(said: Mapping[str, Any] | None) -> dict[str, dict[str, float]]:
    """By sample: what the champion scored when it was registered; empty where its run does not keep that."""
    rows = ((said or {}).get("recorded") or {}).get("per_sample") or ()
    return {row["id"]: row["criteria"] for row in rows if row["criteria"]}


def beside(candidate: Outcome, other: Outcome) -> dict[str, Any]:
    """The other's averages, and the candidate less the other, sample by sample."""
    return averaged(other) | {"comparison": compared(candidate, other.scores)}


def compared(candidate: Outcome, other: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """The paired difference over the samples that both have scores of; None where there are none."""
    shared = [name for name in candidate.scores if name in other]
    if not shared:
        return None
    ours = [scores_as_written(candidate.scores[name]) for name in shared]
    return difference(ours, [scores_as_written(other[name]) for name in shared])


def per_sample(
    outcome: Outcome, champion: Outcome | None, former: Mapping[str, Mapping[str, float]] | None = None
) -> list[dict[str, Any]]:
    """One row a sample: its criteria, its mean, and the champion's where it edited here or where `former` has it."""
    beside_it = champion.scores if champion is not None else former or {}
    rows: list[dict[str, Any]] = []
    for sample in outcome.samples:
        name = sample.sample_id
        scores = outcome.scores.get(name)
        row: dict[str, Any] = {"id": name, "kind": sample.kind, "group": sample.group, "category": sample.category}
        row |= {"criteria": None, "overall": None}
        if scores is not None:
            row["criteria"] = scores_as_written(scores)
            row["overall"] = round(mean_of(scores), 4)
        if len(outcome.repeats.get(name, ())) > 1:
            row["repeats"] = [scores_as_written(each) for each in outcome.repeats[name]]
        if name in beside_it:
            row["champion_overall"] = round(mean_of(beside_it[name]), 4)
        rows.append(row)
    return rows
