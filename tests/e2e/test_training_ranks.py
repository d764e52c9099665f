"""Several ranks train as one process does, and one takes up what several left. Two and four gloo ranks on the CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kiwi.model.checkpoint import load_model
from tests.e2e.training_program import write_cache

PROGRAM = Path(__file__).with_name("training_program.py")
STEPS = 8
TOLERANCE = 2e-3  # of losses of about 3, after sums in another order and eight steps of Muon
LOW = {"precision": "bfloat16"}
LOW_STAGE = {"optimizer": "adamw", "moments": "bfloat16"}
LOW_TOLERANCE = 3e-2  # one rank rounds gradients to bfloat16, several the tables that the timestep is added to


def losses(folder: Path, ranks: int, name: str = "losses", **said: Any) -> list[float]:
    """Trains, and returns the losses; empty where the training was left early."""
    stage = {"steps": STEPS, "batch_size": 6, **said.pop("stage", {})}
    out = folder / f"{name}.json"
    arguments = [str(PROGRAM), str(folder), str(out), json.dumps({"stage": stage, **said})]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *start, *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [loss for _, loss, _ in json.loads(out.read_text())] if out.exists() else []


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    write_cache(folder / "cache")
    losses(folder, 1, keep=True)
    return folder


@pytest.fixture(scope="module")
def alone(one_process: Path) -> list[float]:
    found = [loss for _, loss, _ in json.loads((one_process / "losses.json").read_text())]
    assert len(found) == STEPS
    assert found[-1] != found[0]
    return found


@pytest.mark.parametrize("trainer", [{}, {"shard_ranks": 1}], ids=["sharded", "copied"])
def test_two_ranks_have_the_losses_and_leave_the_model_of_one_process(
    tmp_path: Path, one_process: Path, alone: list[float], trainer: dict[str, Any]
) -> None:
    write_cache(tmp_path / "cache")
    assert losses(tmp_path, 2, trainer=trainer, keep=True) == pytest.approx(alone, abs=TOLERANCE)
    ours, theirs = (dict(load_model(folder / "model").named_parameters()) for folder in (tmp_path, one_process))
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert torch.allclose(parameter, theirs[name], atol=2e-2), name  # two of Muon's updates are 0.02 apart


def test_copies_spread_over_two_ranks_each_have_the_losses_of_one_process(tmp_path: Path, alone: list[float]) -> None:
    """HSDP: four ranks, two copies of the weights."""
    write_cache(tmp_path / "cache")
    assert losses(tmp_path, 4, trainer={"shard_ranks": 2}) == pytest.approx(alone, abs=TOLERANCE)


def test_in_bfloat16_ranks_and_one_process_take_up_what_the_other_left_in_float32(tmp_path: Path) -> None:
    write_cache(tmp_path / "whole" / "cache")
    expected = losses(tmp_path / "whole", 1, trainer=LOW, stage=LOW_STAGE, keep=True)
    assert len(expected) == STEPS
    trained = {p.dtype for p in load_model(tmp_path / "whole" / "model").transformer.parameters()}
    assert trained == {torch.float32}  # what training leaves is put together again
    for first, second in ((2, 1), (1, 2)):
        folder = tmp_path / f"{first}-{second}"
        write_cache(folder / "cache")
        said: dict[str, Any] = {"trainer": {**LOW, "asynchronous": False}, "stage": LOW_STAGE}
        assert losses(folder, first, "left", stop_after=5, **said) == []
        (kept,) = (folder / "stage" / "checkpoints").iterdir()
        tensors = [tensor for file in kept.glob("*.safetensors") for tensor in load_file(file).items()]
        assert {tensor.dtype for name, tensor in tensors if name.startswith("model.")} == {torch.float32}
        assert losses(folder, second, **{**said, "trainer": LOW}) == pytest.approx(expected, abs=LOW_TOLERANCE)


def test_one_process_resumes_what_two_ranks_left_and_two_what_one_left(tmp_path: Path, alone: list[float]) -> None:
    for first, second in ((2, 1), (1, 2)):
        folder = tmp_path / f"{first}-{second}"
        write_cache(folder / "cache")
        assert losses(folder, first, "left", stop_after=5, trainer={"asynchronous": False}) == []
        assert [path.name for path in (folder / "stage" / "checkpoints").iterdir()] == ["step-00000003"]
        assert losses(folder, second) == pytest.approx(alone, abs=TOLERANCE)


def test_parts_of_a_batch_worked_through_one_after_another_are_the_batch(tmp_path: Path, alone: list[float]) -> None:
    write_cache(tmp_path / "cache")
    assert losses(tmp_path, 2, stage={"accumulate": 3}) == pytest.approx(alone, abs=TOLERANCE)
