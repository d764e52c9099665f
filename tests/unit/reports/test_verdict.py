"""Claims about what a run says at its end: summary.json for programs, the verdict for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kiwi.cli.verdict import print_verdict
from kiwi.configuration import GateSettings
from kiwi.summary import write_summary, write_summary_so_far
from kiwi.workspace import Workspace, read_json, write_json

Make = Callable[..., Any]
DOCUMENTED = {
    "run": {"id", "backend", "seconds"},
    "dataset": {"version", "revision", "pairs", "quadruplets", "rejected", "failed"},
    "benchmark": {"overall", "criteria", "samples", "judge", "baselines"},
    "model": {"name", "version", "aliases"},
}


@pytest.fixture
def ended(whole_run: Make) -> Make:
    """A made-up run that has ended: `aliases` of its model and what it waits for, values of its scores."""

    def made(aliases: str = "champion", waits: Any = None, scores: dict[str, Any] | None = None, **changes: Any) -> Any:
        run = whole_run("promote", **changes)
        clock = {"started": run.clock, "finished": run.clock + 400}
        write_json(run.root / "run.json", {"id": "made-up-0001", "backend": "local", **clock})
        published = read_json(run.root / "dataset.json")
        write_json(run.root / "dataset.json", published | {"path": str(run.root / "data" / "dataset")})
        write_json(run.root / "model.json", read_json(run.root / "model.json") | {"aliases": [aliases], "waits": waits})
        path = run.root / "benchmark" / "scores.json"
        write_json(path, read_json(path) | (scores or {}))
        return run

    return made


def verdict(run: Any, capsys: pytest.CaptureFixture[str]) -> str:
    write_summary(run.configuration)
    print_verdict(Workspace(run.root))
    return capsys.readouterr().out


def test_the_summary_has_every_documented_key(ended: Make) -> None:
    run = ended()
    said = read_json(write_summary(run.configuration))
    for name, keys in DOCUMENTED.items():
        assert keys <= said[name].keys(), name
    assert {"stages", "tracking_uri", "report"} <= said.keys()
    assert said["decision"]["waits"] is None
    assert said["benchmark"]["comparison"]["with"] == "champion"
    assert said["benchmark"]["comparison"]["chance_better"] == 0.9985


def test_the_summary_of_a_stopped_run_has_the_same_keys_and_says_where_it_broke_off(ended: Make) -> None:
    run = ended()
    whole = read_json(write_summary(run.configuration))
    write_json(run.root / "run.json", read_json(run.root / "run.json") | {"status": "interrupted"})
    for name in ("train_stage3", "run_benchmark", "judge", "register_model", "report", "decide"):
        (run.root / "records" / "made-up-0001" / f"{name}.jsonl").unlink(missing_ok=True)
    run.task("train_stage3", 300, 20, progress=(200, "steps"), error="Preempted: told to stop")
    said = read_json(write_summary_so_far(run.configuration))
    assert said.keys() == whole.keys()
    assert said["run"].keys() == whole["run"].keys()
    assert (whole["run"]["status"], whole["run"]["broke_off"]) == ("finished", None)
    assert said["run"]["status"] == "interrupted"
    assert said["run"]["broke_off"] == {
        "task": "train_stage3", "at_work": True, "done": 200, "total": 200, "unit": "steps"
    }  # fmt: skip
    assert said["dataset"] == whole["dataset"]
    assert said["stages"] == whole["stages"][:2]
    assert (said["benchmark"], said["model"], said["decision"]) == (None, None, None), "of an earlier attempt"


def test_a_promoted_model_is_said_with_intervals_and_the_chance(ended: Make, capsys: Any) -> None:
    said = verdict(ended(), capsys)
    assert "promoted: kiwi-edit-tiny version 2 is the champion" in said
    assert "3.230 of 5 (95%: 3.170 to 3.290)" in said
    assert "over champion version 1 (3.047): +0.183 (95%: +0.143 to +0.223), chance of being better 99.9%" in said


def test_a_model_that_waits_for_approvals_says_so_and_how_to_give_them(ended: Make, capsys: Any) -> None:
    gate = GateSettings(approvals=2, approvers=("Ada", "Grace"))
    waiting = {"for": "approvals", "why": "kiwi-edit-tiny version 2 has 0 of 2 approvals"}
    run = ended("challenger", waiting, gate=gate)
    said = verdict(run, capsys)
    assert "waits for approvals: kiwi-edit-tiny version 2 passed the gate" in said
    assert "0 of 2 approvals; may approve: Ada, Grace" in said
    assert f"kiwi model approve 2 --as NAME --workdir {run.root}" in said
    assert "promoted" not in said
    waits = read_json(run.root / "summary.json")["decision"]["waits"]
    assert waits["for"] == "approvals"
    assert waits["promote"] == f"kiwi model promote 2 --workdir {run.root}"


def test_a_model_that_was_rolled_back_meanwhile_is_not_called_promoted(ended: Make, capsys: Any) -> None:
    waiting = {"for": "rolled back", "why": "kiwi-edit-tiny version 2 was rolled back by ada on 2026-01-01"}
    said = verdict(ended("challenger", waiting), capsys)
    assert "not promoted: kiwi-edit-tiny version 2 passed the gate" in said
    assert "--force --reason TEXT" in said


def test_a_run_in_which_nothing_could_be_judged_still_gets_its_verdict(ended: Make, capsys: Any) -> None:
    scores = {"overall": None, "criteria": {}, "intervals": None, "coverage": 0.0, "champion": None}
    said = verdict(ended("challenger", scores=scores), capsys)
    assert "no edit could be judged" in said
    assert "None" not in said


def test_names_that_look_like_markup_are_printed_as_they_are(ended: Make, capsys: Any) -> None:
    run = ended()
    write_json(run.root / "model.json", read_json(run.root / "model.json") | {"name": "[red]odd[/red]"})
    assert "[red]odd[/red] version 2" in verdict(run, capsys)
