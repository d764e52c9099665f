"""benchmarks/gpu.py on the CPU, at the middle size: what it would run on a GPU, small. No time is looked at."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
CPU = torch.device("cpu")
Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def beside_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """They import each other as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(*arguments): what the benchmark wrote."""

    def run(*arguments: str) -> dict[str, Any]:
        import gpu

        out = tmp_path / "gpu.json"
        given = ["gpu.py", "--device", "cpu", "--size", "middle", "--out", str(out), *arguments]
        monkeypatch.setattr(sys, "argv", given)
        gpu.main()
        written: dict[str, Any] = json.loads(out.read_text())
        return written

    return run


def test_without_a_gpu_it_says_so_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "gpu.json")])
    gpu.main()
    assert "no GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_step_and_an_edit_are_measured_beside_their_floor_and_rows_are_kept(run: Run) -> None:
    run("--only", "floor")
    run("--only", "training", "--lever", "32x32x5", "none")
    said = run("--only", "denoising", "edit", "--lever", "32x32x5", "--steps", "1")
    rows = {row["section"]: row for row in said["rows"]}
    assert {"floor", "training", "denoising", "edit"} == rows.keys()
    assert said["machine"]["torch"] == torch.__version__
    for section in ("training", "denoising"):
        assert rows[section]["ms"] > 0
        assert rows[section]["floor_ms"] > 0
        assert rows[section]["tera_operations"] > 0
    assert rows["denoising"]["blocks_computed"] == 1.0
    assert rows["edit"]["steps"] == 1
    again = run("--only", "floor")
    assert len(again["rows"]) == len(said["rows"])  # measured anew, in place of the old


def test_levers_are_held_against_float32() -> None:
    import gpu_correctness
    from gpu_cases import Case

    levers = {
        "recompute": {"recompute": "attention"},
        "bfloat16": {"precision": "bfloat16"},
        "absent": {"attention": "fast"},
    }
    found = gpu_correctness.checks("middle", Case(32, 32, 5, reference=True), CPU, levers)
    rows = {row["lever"]: row for row in found}
    assert rows["recompute"]["right"]
    assert rows["recompute"]["gradient"] < 1e-5
    assert rows["bfloat16"]["right"]
    assert rows["bfloat16"]["gradient"] > 1e-4
    assert rows["absent"]["right"] is None


def test_a_lever_whose_gradients_are_wrong_is_found_and_nothing_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What levers compute is made up here, wrong for one of them."""
    import gpu
    import gpu_correctness

    def computed(size: str, case: Any, device: torch.device, **said: Any) -> Any:
        off = 0.5 if said.get("recompute") == "full" else 0.001
        return gpu_correctness.Found(1.0, {"weight": torch.ones(4) + (off if said else 0.0)})

    monkeypatch.setattr(gpu_correctness, "computed", computed)
    results = gpu.Results(tmp_path / "gpu.json", {})
    with pytest.raises(SystemExit, match="recompute full"):
        gpu.run_correctness("middle", CPU, results)
    right = {row["lever"]: row["right"] for row in results.rows}
    assert right["recompute full"] is False
    assert right["recompute attention"] is True


def test_a_lever_that_breaks_is_a_row_and_the_others_are_still_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What levers compute is made up here, and one of them breaks as a kernel does."""
    import gpu_correctness
    from gpu_cases import Case

    def computed(size: str, case: Any, device: torch.device, **said: Any) -> Any:
        if said.get("recompute") == "full":
            raise RuntimeError("no kernel image is available\nand more")
        return gpu_correctness.Found(1.0, {"weight": torch.ones(4)})

    monkeypatch.setattr(gpu_correctness, "computed", computed)
    levers = {"breaks": {"recompute": "full"}, "works": {"recompute": "attention"}}
    broken, works = gpu_correctness.checks("middle", Case(32, 32, 5), CPU, levers)
    assert (broken["right"], broken["failed"]) == (False, "RuntimeError: no kernel image is available")
    assert works["right"] is True


def test_the_optimizer_is_held_against_torchs_own() -> None:
    import gpu_correctness

    assert gpu_correctness.optimizer_check(CPU, compiled=False)["right"]


def test_what_does_not_fit_is_a_row_and_the_next_lever_is_measured(tmp_path: Path) -> None:
    import gpu

    results = gpu.Results(tmp_path / "gpu.json", {"size": "middle"})

    def full() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    named = {"section": "training", "case": "large"}
    gpu.measured(results, gpu.Budget(None), {**named, "lever": "none"}, full)
    gpu.measured(results, gpu.Budget(None), {**named, "lever": "full"}, lambda: {**named, "lever": "full", "ms": 1.0})
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert ["out_of_memory" in row for row in rows] == [True, False]
    assert not results.failed
    gpu.measured(results, gpu.Budget(0.0), {**named, "lever": "late"}, full)
    assert len(results.rows) == 2  # there was no time for it


def test_rows_of_another_machine_are_not_kept(tmp_path: Path) -> None:
    import gpu

    gpu.Results(tmp_path / "gpu.json", {"device": "one"}).add({"section": "floor", "case": "a", "lever": "b"})
    assert len(gpu.Results(tmp_path / "gpu.json", {"device": "one"}).rows) == 1
    assert gpu.Results(tmp_path / "gpu.json", {"device": "another"}).rows == []


def test_the_memory_plan_and_the_operations_of_the_5b_model_are_counted_without_making_it() -> None:
    import gpu_plan
    from gpu_cases import CASES, editor, forward_operations, recomputed_operations

    model = editor("wan2.2-5b", torch.device("meta"), torch.bfloat16)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    counts = [forward_operations(model, case) / 1e12 for case in CASES["wan2.2-5b"][:2]]
    assert counts[0] == pytest.approx(290, rel=0.005)  # as published for 704x1280x81
    assert counts[1] == pytest.approx(319, rel=0.03)  # with a reference
    forward, language = counts[0] * 1e12 + 41e12, 41e12  # of the language model, as published
    again = {
        policy: recomputed_operations(model, CASES["wan2.2-5b"][0], forward, policy)
        for policy in ("none", "selective", "attention", "full")
    }
    assert (again["none"], again["full"]) == (0.0, forward)
    assert again["selective"] == pytest.approx(language, rel=1e-3)
    assert language + 0.5 * 290e12 < again["attention"] < language + 0.6 * 290e12  # attention is 45% of a block
    found = gpu_plan.plan("wan2.2-5b", model)
    trained = found["weights"]["trained weights, bfloat16"]
    assert trained == pytest.approx(10.1, abs=0.2)  # five billion at two bytes
    assert found["weights"]["two moments, bfloat16"] == pytest.approx(2 * trained, rel=0.01)
    large = found["cases"]["704x1280x81"]
    assert large["full"] < large["attention"] < large["selective"] < large["none"]
    assert large["attention"] < 83.7 < large["selective"]  # what one 80 GB card holds decides the policy
    kept = found["activations"]["704x1280x81"]
    block = 18_480 * 3_072 * 2 / 1e9  # one tensor of a block
    assert kept["full"] == pytest.approx(30 * block)
    assert kept["attention"] == pytest.approx(30 * (3 * block + 2 * 18_480 * 24 * 4 / 1e9), rel=0.01)
