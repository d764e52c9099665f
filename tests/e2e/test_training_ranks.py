"""Several ranks train as one process does, and one takes up what several left. Two and four gloo ranks on the CPU.

torchrun starts the ranks of one test. Those of the others are forks of one process that has imported everything, with
the variables that torchrun sets: importing would take each of the twenty processes longer than its training.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
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


Losses = Callable[..., list[float]]


@pytest.fixture(scope="module")
def losses() -> Iterator[Losses]:
    """losses(folder, ranks, name, torchrun=False, **settings): trains; empty where the training was left early."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        [sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as trainer:
        assert trainer.stdin is not None
        assert trainer.stdout is not None

        def found(folder: Path, ranks: int, name: str = "losses", torchrun: bool = False, **said: Any) -> list[float]:
            said["stage"] = {"steps": STEPS, "batch_size": 6, **said.get("stage", {})}
            out = folder / f"{name}.json"
            if torchrun:
                launched(folder, out, ranks, said)
            else:
                job = {"folder": str(folder), "out": str(out), "ranks": ranks, "said": said}
                print(json.dumps(job), file=trainer.stdin, flush=True)
                assert json.loads(trainer.stdout.readline()) == [0] * ranks, Path(f"{out}.log").read_text()
            return [loss for _, loss, _ in json.loads(out.read_text())] if out.exists() else []

        yield found
        trainer.stdin.close()


def launched(folder: Path, out: Path, ranks: int, said: dict[str, Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"]
    done = subprocess.run(
        [sys.executable, *start, str(PROGRAM), str(folder), str(out), json.dumps(said)], capture_output=True, text=True,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def one_process(losses: Losses, tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    losses: Losses, tmp_path: Path, one_process: Path, alone: list[float], trainer: dict[str, Any]
) -> None:
    write_cache(tmp_path / "cache")
    ours = losses(tmp_path, 2, torchrun=not trainer, trainer=trainer, keep=True)
    assert ours == pytest.approx(alone, abs=TOLERANCE)
    made, theirs = (dict(load_model(folder / "model").named_parameters()) for folder in (tmp_path, one_process))
    assert made.keys() == theirs.keys()
    for name, parameter in made.items():
        assert torch.allclose(parameter, theirs[name], atol=2e-2), name  # two of Muon's updates are 0.02 apart


def test_copies_spread_over_two_ranks_each_have_the_losses_of_one_process(
    losses: Losses, tmp_path: Path, alone: list[float]
) -> None:
    """HSDP: four ranks, two copies of the weights."""
    write_cache(tmp_path / "cache")
    assert losses(tmp_path, 4, trainer={"shard_ranks": 2}) == pytest.approx(alone, abs=TOLERANCE)


def test_in_bfloat16_ranks_and_one_process_take_up_what_the_other_left_in_float32(
    losses: Losses, tmp_path: Path
) -> None:
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


def test_one_process_resumes_what_two_ranks_left_and_two_what_one_left(
    losses: Losses, tmp_path: Path, alone: list[float]
) -> None:
    for first, second in ((2, 1), (1, 2)):
        folder = tmp_path / f"{first}-{second}"
        write_cache(folder / "cache")
        assert losses(folder, first, "left", stop_after=5, trainer={"asynchronous": False}) == []
        assert [path.name for path in (folder / "stage" / "checkpoints").iterdir()] == ["step-00000003"]
        assert losses(folder, second) == pytest.approx(alone, abs=TOLERANCE)


def test_parts_of_a_batch_worked_through_one_after_another_are_the_batch(
    losses: Losses, tmp_path: Path, alone: list[float]
) -> None:
    write_cache(tmp_path / "cache")
    assert losses(tmp_path, 2, stage={"accumulate": 3}) == pytest.approx(alone, abs=TOLERANCE)
