"""The loop of one stage: it learns, it stops on a loss that is no number, and it resumes exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kiwi.configuration import StageSettings
from kiwi.model.editor import KiwiEditModel
from kiwi.tracking import silent
from kiwi.training.checkpoints import FOLDER
from kiwi.training.errors import TrainingError
from kiwi.training.loop import flow_matching_loss, train
from kiwi.training.mixture import Batch, Mixture

NewEditor = Callable[[], KiwiEditModel]
Staged = Callable[..., StageSettings]
SEED = 5


class Interrupted(Exception):  # noqa: N818
    pass


def interrupted_at(mixture: Mixture, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the mixture give `step` batches, then stops as a kill would."""
    original, given = mixture.batch, []

    def batch(*drawn: Any) -> Batch:
        if len(given) == step:
            raise Interrupted
        given.append(drawn)
        return original(*drawn)

    monkeypatch.setattr(mixture, "batch", batch)


def same_weights(one: KiwiEditModel, other: KiwiEditModel) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_was_interrupted_and_resumed_has_the_losses_and_weights_of_one_that_was_not(
    cache: Path, new_editor: NewEditor, staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    recorded: Any, optimizer: str,
) -> None:  # fmt: skip
    stage = staged(steps=8, optimizer=optimizer, checkpoint_every=3)
    whole = new_editor()
    expected = train(whole, Mixture(cache, stage, whole.context_encoder, SEED), stage, SEED, tmp_path / "a", silent())
    assert [step for step, _, _ in expected.losses] == list(range(8))
    killed = new_editor()
    mixture = Mixture(cache, stage, killed.context_encoder, SEED)
    interrupted_at(mixture, 5, monkeypatch)
    with pytest.raises(Interrupted):
        train(killed, mixture, stage, SEED, tmp_path / "b", silent())
    resumed = new_editor()
    mixture = Mixture(cache, stage, resumed.context_encoder, SEED)
    progress = train(resumed, mixture, stage, SEED, tmp_path / "b", recorded)
    assert recorded.notes == ["resumed at step 3"]
    assert progress.losses == expected.losses
    assert progress.step == 8
    assert same_weights(resumed, whole)
    assert not same_weights(resumed, new_editor())


def test_the_seed_decides_the_losses(cache: Path, new_editor: NewEditor, staged: Staged, tmp_path: Path) -> None:
    losses = []
    for number, seed in enumerate((1, 1, 2)):
        stage, model = staged(steps=3), new_editor()
        mixture = Mixture(cache, stage, model.context_encoder, seed)
        losses.append(train(model, mixture, stage, seed, tmp_path / str(number), silent()).losses)
    assert losses[0] == losses[1] != losses[2]


def test_checkpoints_appear_whole_and_only_between_the_first_step_and_the_last(
    cache: Path, new_editor: NewEditor, staged: Staged, tmp_path: Path
) -> None:
    for steps, left in ((3, []), (4, [f"{FOLDER}/step-00000003"])):
        stage, model, folder = staged(steps=steps, checkpoint_every=3), new_editor(), tmp_path / str(steps)
        train(model, Mixture(cache, stage, model.context_encoder, SEED), stage, SEED, folder, silent())
        found = sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("index.json"))
        assert found == left
        assert not list(folder.rglob("*.tmp"))


def test_a_loss_that_is_no_number_stops_training_and_names_its_samples(
    cache: Path, new_editor: NewEditor, staged: Staged, tmp_path: Path
) -> None:
    stage, model = staged(steps=20, mix={"image": 1.0}, batch_size=2), new_editor()
    mixture = Mixture(cache, stage, model.context_encoder, SEED)
    bucket = mixture.buckets["image"][0]
    bucket.parts[0].tensors["target"][3, 0, 0, 0, 0] = float("nan")
    bucket.parts[0].checked.add(3)  # a number that was cached so, not a damaged file
    first = next(i for i, step in enumerate(mixture.plan(20)) if bucket.rows[3][0] in mixture.batch(*step).iids)
    with pytest.raises(TrainingError, match=f"the loss of step {first} is nan") as error:
        train(model, mixture, stage, SEED, tmp_path, silent())
    assert error.value.message.endswith(f"its samples: {bucket.rows[3][0]}")  # and not the other of its batch
    assert error.value.remedy
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["image", "reference"])
def test_the_loss_falls_on_a_few_samples(
    cache: Path, new_editor: NewEditor, staged: Staged, tmp_path: Path, kind: str
) -> None:
    stage, model = staged(steps=60, mix={kind: 1.0}, batch_size=4, checkpoint_every=1000), new_editor()
    mixture = Mixture(cache, stage, model.context_encoder, SEED)

    def loss() -> float:
        model.eval()
        with torch.no_grad():  # the same noise before and after, and none that training saw
            batches = [mixture.batch(kind, 0, number) for number in range(2)]
            return sum(float(flow_matching_loss(model, batch, (99, n))) for n, batch in enumerate(batches)) / 2

    before = loss()
    progress = train(model, mixture, stage, SEED, tmp_path, silent())
    assert {of for _, _, of in progress.losses} == {kind}
    assert loss() < 0.6 * before


def test_a_stage_tells_its_losses_by_kind_and_its_progress(
    cache: Path, new_editor: NewEditor, staged: Staged, tmp_path: Path, recorded: Any
) -> None:
    stage, model = staged(steps=11, batch_size=2), new_editor()
    progress = train(model, Mixture(cache, stage, model.context_encoder, SEED), stage, SEED, tmp_path, recorded)
    curves = [each for each in recorded.said if each["event"] == "metrics"]
    assert [each["step"] for each in curves] == [10, 11]
    losses = progress.losses[:10]
    assert curves[0]["metrics"]["loss"] == pytest.approx(sum(loss for _, loss, _ in losses) / 10)
    for kind in {kind for _, _, kind in losses}:
        own = [loss for _, loss, of in losses if of == kind]
        assert curves[0]["metrics"][f"loss_{kind}"] == pytest.approx(sum(own) / len(own))
    assert recorded.said[-1]["event"] == "progress"
    assert (recorded.said[-1]["done"], recorded.said[-1]["total"]) == (11, 11)
