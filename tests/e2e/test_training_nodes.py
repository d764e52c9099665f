"""The launcher's local form: two torchrun processes as two nodes, real gloo between them, equal to one process.

What a node runs, and the PET_ variables that it reads, are those of a TrainJob's pod; Kubeflow Trainer, which sets
them there, is not here (tests/unit/cluster/fake_kubernetes.py says what is faked).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kiwi.configuration import RunConfiguration
from kiwi.model.checkpoint import load_model
from kiwi.tracking import silent
from kiwi.training import cache_latents, train_stage
from kiwi.workspace import Workspace, write_json
from tests.unit.training import conftest as training

STEPS = 24
TOLERANCE = 5e-3  # of losses of about 1, after sums in another order and as many steps
PROGRAM = """
import json, sys
from pathlib import Path
from kiwi.cli.stored import stored_configuration
from kiwi.cluster.launching import train
from kiwi.tracking import silent
print(json.dumps(train(stored_configuration(Path(sys.argv[1])), "stage1", silent())["losses"]))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a published dataset, its latents, and the configuration of a run."""
    root = tmp_path_factory.mktemp("prepared")
    training._publish(root, [*training.IMAGES, *training.VIDEOS, *training.QUADRUPLETS])
    cache_latents(configured(root), silent())
    return root


def configured(root: Path) -> RunConfiguration:
    stage = training._staged(steps=STEPS, checkpoint_every=2, learning_rate=1e-3, optimizer="adamw")
    uri = f"sqlite:///{root}/tracking/mlflow.db"
    return training._configured(root, stage).model_copy(update={"tracking_uri": uri})


def workspace(prepared: Path, place: Path) -> Path:
    shutil.copytree(prepared, place)
    dataset = json.loads((place / "dataset.json").read_text())
    write_json(place / "dataset.json", {**dataset, "path": dataset["path"].replace(str(prepared), str(place))})
    write_json(Workspace(place).configuration, configured(place).model_dump(mode="json"))
    return place


def started(folder: Path, nodes: int) -> subprocess.Popen[str]:
    said = {"KIWI_NODES": str(nodes), "KIWI_PROCESSES": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KIWI_", "PET_", "MLFLOW_"))}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], env={**kept, **said}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def losses(folder: Path, nodes: int) -> list[Any]:
    process = started(folder, nodes)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def recorded(folder: Path) -> list[Any]:
    """What rank 0 alone has said, in all tries."""
    (record,) = Workspace(folder).records.glob("*/train_stage1.jsonl")
    return [json.loads(line) for line in record.read_text().splitlines()]


def checkpoint(folder: Path) -> Path:
    (found,) = folder.glob("training/stage1.json")
    return Path(json.loads(found.read_text())["checkpoint"])


@pytest.mark.timeout(900)  # four starts of torch, and the machine may have other work
def test_two_nodes_that_are_told_to_go_resume_and_learn_what_one_process_learns(prepared: Path, tmp_path: Path) -> None:
    one, folder = workspace(prepared, tmp_path / "one"), workspace(prepared, tmp_path / "two")
    process = started(folder, 2)
    until = time.monotonic() + 300
    while not list(folder.glob("**/checkpoints/*/index.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "on 2 nodes with 1 processes ended with" in err

    ours, theirs = losses(folder, 2), train_stage(configured(one), "stage1", silent())["losses"]
    said = recorded(folder)
    assert [each for each in said if each.get("text", "").startswith("resumed at step ")]
    assert {each["params"]["ranks"] for each in said if "ranks" in each.get("params", {})} == {2}
    assert [(step, kind) for step, _, kind in ours] == [(step, kind) for step, _, kind in theirs]
    assert [loss for _, loss, _ in ours] == pytest.approx([loss for _, loss, _ in theirs], abs=TOLERANCE)
    learned, expected = (dict(load_model(checkpoint(it)).named_parameters()) for it in (folder, one))
    assert learned.keys() == expected.keys()
    for name, parameter in learned.items():
        assert torch.allclose(parameter, expected[name], atol=1e-2), name
