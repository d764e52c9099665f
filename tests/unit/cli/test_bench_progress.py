"""`kiwi bench run` and `kiwi bench prefer` say in a pipe how far they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kiwi.benchmark.preference.edit_sets import read_edit_set
from kiwi.benchmark.preference.preparing import Plan
from kiwi.cli import editing_progress
from kiwi.cli.bench import app
from kiwi.cli.prefer import _prepared
from kiwi.configuration import RunConfiguration
from tests.unit.benchmark.preference.test_preference_preparing import write_set


@pytest.fixture(autouse=True)
def _told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are due at every tenth, however short it took: a test does not wait."""
    monkeypatch.setattr(editing_progress, "LEAST_SECONDS", 0.0)


def test_a_benchmark_run_says_how_far_its_held_out_samples_are(
    configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def four_batches(configuration: RunConfiguration, task: Any, *, told: Any) -> dict[str, Any]:
        """A FAKE benchmark: the real one needs a trained model."""
        for done in range(0, 321, 80):
            told(done, 320)
        return {"samples": 320}

    (configuration.workdir / "configuration.json").write_text(configuration.canonical())
    monkeypatch.setattr("kiwi.registry.contest.benchmark_with_champion", four_batches)
    monkeypatch.setattr("kiwi.tracking.send", lambda configuration: None)
    done = CliRunner().invoke(app, ["run", "--workdir", str(configuration.workdir)], catch_exceptions=False)
    assert [line.split(",")[0] for line in done.stderr.splitlines()] == [
        "editing: 25%", "editing: 50%", "editing: 75%", "editing: 100%"
    ]  # fmt: skip
    assert json.loads(done.stdout) == {"samples": 320}


def test_a_study_in_the_making_says_so_and_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [read_edit_set(write_set(tmp_path / name, shade)) for name, shade in (("one", 30), ("two", 200))]
    _prepared(tmp_path / "study", sets, Plan())
    first, *others = capsys.readouterr().err.splitlines()
    assert first == f"preparing clips of one and two in {tmp_path / 'study'}"
    assert others[0].startswith("clips: 12%")
    assert others[-1] == "clips: 100%"
    _prepared(tmp_path / "study", sets, Plan())
    assert capsys.readouterr().err == "", "the study is there"
