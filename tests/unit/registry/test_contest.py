"""What is recorded of the champion reaches the gate: with a real MLflow, sample by sample."""

from __future__ import annotations

from typing import Any

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.registry import decide, promote_candidate, register
from kiwi.registry.contest import benchmark_with_champion
from kiwi.tracking import silent
from kiwi.workspace import write_json

ROWS = [{"id": str(number), "criteria": {"video_quality": 2.0 + number / 10}} for number in range(12)]


def trained(configuration: RunConfiguration, **changes: Any) -> None:
    root = configuration.workdir
    model = root / "checkpoints" / "k1" / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "weights.safetensors").write_bytes(b"weights")
    write_json(root / "training" / "stage1.json", {"name": "stage1", "checkpoint": str(model), "key": "k1"})
    scores = {
        "overall": 3.0, "criteria": {"video_quality": 3.0}, "coverage": 1.0, "revision": "r1", "judge": "measured",
        "baselines": {"copy_source": {"overall": 1.5}}, "per_sample": ROWS, "judge_spread": {"overall": 0.1},
    }  # fmt: skip
    write_json(root / "benchmark" / "scores.json", {**scores, **changes})


@pytest.fixture
def champion_at_benchmark(configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A champion is registered; returns what the benchmark is then given of it."""
    trained(configuration)
    register(configuration, silent())
    assert decide(configuration, silent()) == "promote"
    promote_candidate(configuration, silent())
    given: list[Any] = []
    monkeypatch.setattr("kiwi.registry.contest.run_benchmark", lambda *asked, told: given.append(asked[2]) or {})

    def ask() -> Any:
        benchmark_with_champion(configuration, silent())
        return given[-1]

    return ask


def test_the_champions_scores_come_sample_by_sample(champion_at_benchmark: Any) -> None:
    scores = champion_at_benchmark().scores
    assert scores["per_sample"] == ROWS
    assert scores["judge_spread"] == {"overall": 0.1}
    assert (scores["overall"], scores["version"]) == (3.0, "1")


def test_a_champion_whose_run_lost_its_scores_is_still_compared_by_its_overall(
    champion_at_benchmark: Any, configuration: RunConfiguration
) -> None:
    kept = configuration.workdir.parent.rglob("scores.json")
    lost = [path for path in kept if path.parent.name != "benchmark"]
    assert lost
    for path in lost:
        path.unlink()
    scores = champion_at_benchmark().scores
    assert scores["overall"] == 3.0
    assert "per_sample" not in scores
