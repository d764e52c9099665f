"""The gate, as a table: what is promoted, what is held, and the sentence that says why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiwi.configuration import GateSettings
from kiwi.registry import decide_gate
from kiwi.reports.figures import chance as written

CRITERIA = {"identity_consistency": 3.0, "video_quality": 3.0}


def _scores(overall: float = 3.0, **changes: Any) -> dict[str, Any]:
    return {
        "overall": overall,
        "criteria": dict(CRITERIA),
        "coverage": 1.0,
        "revision": "r1",
        "judge": "measured-1",
        "baselines": {"copy_source": {"overall": 1.5, "criteria": {}}},
        "learning": {"psnr_full": 22.0, "kinds": [{"accuracy": 0.9}]},
        "champion": None,
        **changes,
    }


def _champion(overall: float = 2.5, **changes: Any) -> dict[str, Any]:
    kept = {"overall": overall, "criteria": dict(CRITERIA), "coverage": 1.0, "revision": "r1", "judge": "measured-1"}
    return {"version": "4", **kept, **changes}


def _beside(chance: float | None, low: float = 0.01, high: float = 0.2, overall: float = 2.5, **more: Any) -> Any:
    """A champion that edited in the candidate's run, with the comparison sample by sample."""
    comparison = {"chance_better": chance, "interval": [low, high]} if chance is not None else None
    return {"version": "4", "overall": overall, "criteria": dict(CRITERIA), "comparison": comparison, **more}


def _wavering(overall: float | None) -> dict[str, Any]:
    return {"repeats": 3, "overall": overall}


TABLE = [
    ("surely better", _scores(champion=_beside(0.998)), _champion(), {}, "promote", "leads champion version 4"),
    (
        "a lead that may be chance",
        _scores(champion=_beside(0.8, -0.02, 0.08)), _champion(), {},
        "hold", "better than champion version 4 is 80.0% (difference -0.020 to +0.080), but at least 95.0%",
    ),
    ("chance is enough if it is set so", _scores(champion=_beside(0.8)), _champion(), {"confidence": 0.8},
     "promote", "leads"),
    ("the same edits", _scores(champion=_beside(0.5, 0.0, 0.0, 3.0)), _champion(3.0), {}, "hold", "is equal to"),
    (
        "surely better by less than the margin",
        _scores(3.01, champion=_beside(0.99, overall=3.0)), _champion(3.0), {}, "hold", "by only 0.010",
    ),
    (
        "too few samples to compare, and a comparison required",
        _scores(champion=_beside(None)), _champion(), {"require_comparison": True},
        "hold", "no scores sample by sample, or too few",
    ),
    ("too few samples to compare", _scores(champion=_beside(None)), _champion(), {}, "promote", "leads"),
    (
        "a copy nearly as good",
        _scores(baselines={"copy_source": _beside(0.9, -0.1, 0.3)}), None, {},
        "hold", "better than copying the source is 90.0%",
    ),
    (
        "surely better than a copy",
        _scores(baselines={"copy_source": _beside(1.0)}), None, {}, "promote", "leads copying the source",
    ),
    (
        "a lead within the judge's wavering",
        _scores(judge_spread=_wavering(0.2)), _champion(judge_spread=_wavering(0.2)), {},
        "hold", "by only 0.500; a lead of 0.5657 is needed, 2 standard errors of the judge",
    ),
    ("a lead beyond it", _scores(judge_spread=_wavering(0.1)), _champion(), {}, "promote", "a lead of 0.2828 was"),
    ("an exact judge", _scores(3.02, judge_spread=_wavering(0.0)), _champion(3.0), {}, "promote", "a lead of 0.02"),
    ("wavering not known", _scores(3.02, judge_spread=_wavering(None)), _champion(3.0), {}, "promote", "of 0.02 was"),
    ("enough samples", _scores(samples=40), _champion(), {"min_samples": 40}, "promote", "leads"),
    ("too few samples", _scores(samples=39), _champion(), {"min_samples": 40}, "hold", "39 samples were judged, but"),
    (
        "enough samples, too few of them judged",
        _scores(samples=41, coverage=0.96), _champion(), {"min_samples": 40}, "hold", "39 samples were judged, but",
    ),
    ("samples not counted", _scores(), _champion(), {"min_samples": 2}, "hold", "number of samples that were judged"),
    ("better than the champion", _scores(), _champion(), {}, "promote", "leads champion version 4 (2.500) by 0.500"),
    ("worse", _scores(), _champion(3.4), {}, "hold", "0.400 behind champion version 4"),
    ("equal", _scores(), _champion(3.0), {}, "hold", "equal to champion version 4 (3.000)"),
    ("better by less than the margin", _scores(3.01), _champion(3.0), {}, "hold", "by only 0.010"),
    ("better by exactly the margin", _scores(3.02), _champion(3.0), {}, "promote", "by 0.020"),
    ("no champion, better than a copy", _scores(), None, {}, "promote", "leads copying the source (1.500)"),
    ("no champion, worse than a copy", _scores(1.0), None, {}, "hold", "0.500 behind copying the source"),
    ("no champion, no baseline", _scores(baselines={}), None, {}, "hold", "no overall score of copying the source"),
    ("other judge", _scores(), _champion(judge="mllm"), {}, "hold", "scored with judge mllm"),
    ("other revision", _scores(), _champion(revision="r0"), {}, "hold", "scored with benchmark revision r0"),
    ("no revision on either", _scores(revision=None), _champion(revision=None), {}, "hold", "revision None"),
    ("champion without scores", _scores(), {"version": "4"}, {}, "hold", "no recorded scores"),
    ("too few judged", _scores(coverage=0.9), _champion(), {}, "hold", "90.0% of the samples could be judged, but"),
    ("coverage unknown", _scores(coverage=None), _champion(), {}, "hold", "is not known"),
    ("overall is no number", _scores(float("nan")), _champion(), {}, "hold", "no overall score of the candidate"),
    ("a floor is met", _scores(), None, {"floors": {"learning.psnr_full": 21.0}}, "promote", "leads"),
    ("a floor is missed", _scores(), None, {"floors": {"learning.psnr_full": 23.0}}, "hold", "22 is below the floor"),
    ("a floor in a list", _scores(), None, {"floors": {"learning.kinds.0.accuracy": 0.95}}, "hold", "0.9 is below"),
    ("a floor not measured", _scores(), None, {"floors": {"learning.ssim": 0.5}}, "hold", "ssim was not measured"),
    ("a ceiling is met", _scores(), None, {"ceilings": {"learning.psnr_full": 22.0}}, "promote", "leads"),
    ("a ceiling is passed", _scores(), None, {"ceilings": {"learning.psnr_full": 20.0}}, "hold", "above the ceiling"),
    (
        "one criterion far behind",
        _scores(criteria={**CRITERIA, "video_quality": 2.5}), _champion(), {},
        "hold", "video_quality of 2.500 is more than 0.25 below champion version 4's 3.000",
    ),
    (
        "one criterion a little behind",
        _scores(criteria={**CRITERIA, "video_quality": 2.8}), _champion(), {}, "promote", "leads",
    ),
    (
        "one criterion not measured",
        _scores(criteria={"identity_consistency": 3.0}), _champion(), {}, "hold", "not measured for the candidate",
    ),
    (
        "champion of another judge, measured again in this run",
        _scores(champion={"version": "4", "overall": 2.0, "criteria": CRITERIA}), _champion(judge="mllm"), {},
        "promote", "leads champion version 4 (2.000) by 1.000",
    ),
    (
        "the champion could not be measured",
        _scores(champion={"version": "4", "overall": None, "criteria": {}, "unmeasured": "its files are gone"}),
        _champion(judge="mllm"), {}, "hold", "could not be measured in this run: its files are gone",
    ),
    (
        "the champion was judged on too few",
        _scores(champion={"version": "4", "overall": 2.0, "criteria": {}, "coverage": 0.5}),
        _champion(judge="mllm"), {}, "hold", "Only 50.0% of champion version 4's samples",
    ),
    (
        "another version was measured again",
        _scores(champion={"version": "3", "overall": 2.0, "criteria": CRITERIA}), _champion(judge="mllm"), {},
        "hold", "scored with judge mllm",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "scores", "champion", "settings", "decision", "said"), TABLE, ids=lambda x: str(x)[:40]
)
def test_the_gate(case: str, scores: Any, champion: Any, settings: Any, decision: str, said: str) -> None:
    verdict = decide_gate(scores, champion, GateSettings(**settings))
    assert verdict.decision == decision
    assert said in verdict.reasons[0]
    assert verdict.compared_with == ("copy_source" if champion is None else "champion")


@pytest.mark.parametrize("chance", [0.0, 0.0004, 0.0006, 0.5, 0.95, 0.9994, 0.9996, 1.0])
def test_no_chance_is_certain_and_the_report_writes_it_alike(chance: float) -> None:
    checks = decide_gate(_scores(champion=_beside(chance)), _champion(), GateSettings()).checks
    (said,) = [check.sentence for check in checks if check.name == "confidence"]
    assert f"better than champion version 4 is {written(chance)} (" in said
    assert "100.0%" not in said


def test_every_failure_is_a_reason_and_every_reason_of_a_hold_a_failure() -> None:
    settings = GateSettings(floors={"learning.psnr_full": 30.0}, min_coverage=0.99)
    verdict = decide_gate(_scores(2.0, coverage=0.5), _champion(), settings)
    assert len(verdict.reasons) == 3
    assert {check.sentence for check in verdict.checks if not check.passed} == set(verdict.reasons)
    said = verdict.as_dict()
    assert said["decision"] == "hold"
    assert said["checks"][0]["name"] == "coverage"


@given(
    ours=st.floats(1, 5), theirs=st.floats(1, 5), margin=st.floats(0.01, 1), coverage=st.floats(0, 1),
    criterion=st.floats(1, 5),
)  # fmt: skip
def test_what_is_promoted_leads_by_the_margin_and_falls_behind_nowhere(
    ours: float, theirs: float, margin: float, coverage: float, criterion: float
) -> None:
    settings = GateSettings(margin=margin)
    scores = _scores(ours, coverage=coverage, criteria={**CRITERIA, "video_quality": criterion})
    verdict = decide_gate(scores, _champion(theirs), settings)
    good = ours - theirs >= margin - 1e-9 and coverage >= 0.95 - 1e-9 and criterion >= 3.0 - 0.25 - 1e-9
    assert (verdict.decision == "promote") == good


@given(
    lead=st.floats(0, 2), margin=st.floats(0, 1), ours=st.floats(0, 1), theirs=st.none() | st.floats(0, 1),
    chance=st.floats(0, 1),
)  # fmt: skip
def test_no_lead_within_the_judges_wavering_and_no_unsure_lead_is_promoted(
    lead: float, margin: float, ours: float, theirs: float | None, chance: float
) -> None:
    beside = _beside(chance, overall=2.0, judge_spread=_wavering(theirs))
    scores = _scores(2.0 + lead, champion=beside, judge_spread=_wavering(ours))
    verdict = decide_gate(scores, _champion(2.0), GateSettings(margin=margin))
    wavering = 2 * (ours**2 + (ours if theirs is None else theirs) ** 2) ** 0.5
    if verdict.decision == "promote":
        assert lead >= max(margin, wavering) - 1e-6
        assert chance >= 0.95 - 1e-6
    else:
        assert lead < max(margin, wavering) + 1e-6 or chance < 0.95 + 1e-6


@given(st.floats(1, 5), st.floats(0.001, 1))
def test_a_model_never_beats_itself(overall: float, margin: float) -> None:
    champion = {**_champion(overall), "version": "1"}
    assert decide_gate(_scores(overall), champion, GateSettings(margin=margin)).decision == "hold"
