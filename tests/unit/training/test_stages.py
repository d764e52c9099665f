"""Stages as tasks: one after another, each from the one before; finished ones are found without importing torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kiwi.configuration import RunConfiguration, StageSettings, TrainerSettings
from kiwi.model.checkpoint import load_model
from kiwi.model.start import new_editor
from kiwi.tracking import silent
from kiwi.training import checkpoint_folder, train_stage
from kiwi.training.checkpoints import FOLDER
from kiwi.training.errors import TrainingError
from kiwi.training.results import stage_key
from kiwi.workspace import read_json

Configured = Callable[..., RunConfiguration]
Staged = Callable[..., StageSettings]

REUSE = """
import sys
from kiwi.configuration import RunConfiguration
from kiwi.tracking import silent
import kiwi.training

configuration = RunConfiguration.parse({text!r})
cache = kiwi.training.cache_latents(configuration, silent())
stages = [kiwi.training.train_stage(configuration, stage.name, silent())["key"] for stage in configuration.stages]
print(cache["key"], *stages, "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def stages(staged: Staged) -> tuple[StageSettings, ...]:
    return (
        staged("first", steps=4, mix={"image": 1.0}),
        staged("second", steps=1, mix={"video": 1.0}, start_queries=(("image", "video"),), trainable=("connectors",)),
    )


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, workspace: Path, configured: Configured, stages: tuple[StageSettings, ...]
) -> RunConfiguration:
    """Both stages, finished, in a workspace of their own."""
    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(workspace, root, dirs_exist_ok=True)
    configuration = configured(root, *stages)
    for stage in stages:
        train_stage(configuration, stage.name, silent())
    return configuration


def test_a_stage_leaves_a_model_its_card_and_its_result_and_no_state(trained: RunConfiguration) -> None:
    result = train_stage(trained, "first", silent())
    folder = Path(result["checkpoint"])
    assert folder == checkpoint_folder(trained, "first")
    assert (result["steps"], result["samples"], result["start"]) == (4, 16, "random weights")
    assert [step for step, _, _ in result["losses"]] == [0, 1, 2, 3]
    assert {kind for _, _, kind in result["losses"]} == {"image"}
    assert not (folder.parent / FOLDER).exists()
    card = (folder / "README.md").read_text()
    assert "random" in card
    assert "v1" in card
    assert read_json(trained.workdir / "training" / "first.json") == result


def test_a_stage_starts_from_the_one_before_and_trains_its_part_alone(trained: RunConfiguration) -> None:
    assert train_stage(trained, "second", silent())["start"] == "first"
    first = load_model(checkpoint_folder(trained, "first"))
    second = load_model(checkpoint_folder(trained, "second"))
    theirs = second.state_dict()
    moved = {name for name, tensor in first.state_dict().items() if not torch.equal(tensor, theirs[name])}
    assert "context_encoder.query_connector.2.weight" in moved
    moved.discard("context_encoder.queries.video")
    assert all("_connector." in name for name in moved)
    queries = first.context_encoder.queries
    assert not torch.equal(queries["image"], queries["video"])  # stage 1 moved only the images' bank
    assert torch.equal(second.context_encoder.queries["video"], queries["image"])


def test_a_stage_without_the_one_before_is_refused(
    workspace: Path, tmp_path: Path, configured: Configured, stages: tuple[StageSettings, ...]
) -> None:
    shutil.copytree(workspace, tmp_path / "run")
    with pytest.raises(TrainingError, match="starts from first, which was not trained") as error:
        train_stage(configured(tmp_path / "run", *stages), "second", silent())
    assert "train first" in error.value.remedy


def test_a_stage_follows_one_in_bfloat16_which_leaves_what_is_frozen_as_it_found_it(
    workspace: Path, tmp_path: Path, configured: Configured, staged: Staged
) -> None:
    """Rounded weights of the vision tower would be another encoder than the one that the latent cache was made by."""
    root = tmp_path / "own"
    shutil.copytree(workspace, root, ignore=shutil.ignore_patterns("checkpoints"))
    stages = [staged(name, steps=1, mix={"image": 1.0}, trainable=("queries", "lora")) for name in ("first", "second")]
    configuration = configured(root, *stages).model_copy(update={"trainer": TrainerSettings(precision="bfloat16")})
    for stage in stages:
        train_stage(configuration, stage.name, silent())
    start, left = new_editor(configuration.model, []), load_model(checkpoint_folder(configuration, "second"))
    before, after = (dict(model.named_parameters()) for model in (start, left))
    visual = next(name for name in before if ".visual." in name)
    for name in ("transformer.blocks.0.attn1.to_q.weight", visual):
        assert torch.equal(before[name], after[name]), name
    queries = "context_encoder.queries.image"
    assert not torch.equal(before[queries], after[queries])


def test_a_killed_stage_resumes_from_its_checkpoint_to_the_same_losses(
    trained: RunConfiguration, workspace: Path, tmp_path: Path, configured: Configured,
    stages: tuple[StageSettings, ...], monkeypatch: pytest.MonkeyPatch, recorded: Any,
) -> None:  # fmt: skip
    from kiwi.training import loop

    shutil.copytree(workspace, tmp_path / "run")
    configuration = configured(tmp_path / "run", *stages)
    original, steps = loop.losses, []

    def killed(*inputs: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return original(*inputs)

    monkeypatch.setattr(loop, "losses", killed)
    with pytest.raises(KeyboardInterrupt):
        train_stage(configuration, "first", silent())
    folder = checkpoint_folder(configuration, "first")
    assert [path.parent.name for path in (folder.parent / FOLDER).rglob("index.json")] == ["step-00000003"]
    assert not folder.exists()
    monkeypatch.undo()
    result = train_stage(configuration, "first", recorded)
    assert "resumed at step 3" in recorded.notes
    assert result["losses"] == train_stage(trained, "first", silent())["losses"]


def test_a_stages_key_is_of_everything_that_made_it_and_of_nothing_after(
    workspace: Path, configured: Configured, stages: tuple[StageSettings, ...]
) -> None:
    first, second = stages
    key = stage_key(configured(workspace, first, second), "first")
    later = configured(workspace, first, second.model_copy(update={"steps": 9}))
    assert stage_key(later, "first") == key
    assert stage_key(later, "second") != stage_key(configured(workspace, first, second), "second")
    earlier = configured(workspace, first.model_copy(update={"learning_rate": 1e-4}), second)
    assert stage_key(earlier, "second") != stage_key(configured(workspace, first, second), "second")
    assert stage_key(configured(workspace, first, second, seed=3), "first") != key
    assert stage_key(configured(workspace, first, second).model_copy(update={"seed": 3}), "first") != key
    assert stage_key(configured(workspace, first, second).model_copy(update={"threads": 4}), "first") == key


def test_finished_work_is_found_without_importing_torch(
    trained: RunConfiguration, run_apart: Callable[[str], str]
) -> None:
    key, *stages, torch_was_imported = run_apart(REUSE.format(text=trained.canonical())).split()
    assert key
    assert stages == [stage_key(trained, stage.name) for stage in trained.stages]
    assert torch_was_imported == "False"
