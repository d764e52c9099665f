"""The gate, as a table: what is promoted, what is held, and the sentence that says why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiwi.configuration import GateSettings
from kiwi.registry import decide_gate

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


TABLE = [
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
        _champion(judge="mllm"), {}, "hold", "only 50.0% of champion version 4's samples",
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


@given(st.floats(1, 5), st.floats(0.001, 1))
def test_a_model_never_beats_itself(overall: float, margin: float) -> None:
    champion = {**_champion(overall), "version": "1"}
    assert decide_gate(_scores(overall), champion, GateSettings(margin=margin)).decision == "hold"
