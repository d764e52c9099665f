"""Checkpoints on disk: whole or not there, the newest few, refused where they are damaged, foreign or a pickle."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kiwi.training import checkpoints
from kiwi.training.checkpoints import FOLDER, Checkpoints
from kiwi.training.errors import TrainingError
from kiwi.training.ranks import Ranks


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"model.weight": torch.full((4, 3), value), "optimizer.weight/step": torch.tensor(value)}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Checkpoints]:
    """saved(*steps): checkpoints of these steps."""

    def save(*steps: int, keep: int = 2) -> Checkpoints:
        writer = Checkpoints(tmp_path, Ranks(), keep)
        for step in steps:
            writer.save(step, tensors(step), {"step": step}, wait=True)
        return writer

    return save


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / FOLDER).iterdir())


def test_the_newest_checkpoint_is_read_back_and_so_many_are_kept(
    saved: Callable[..., Checkpoints], tmp_path: Path
) -> None:
    stored = saved(1, 2, 3, 4).latest()
    assert stored is not None
    assert stored.said == {"step": 4}
    blank = tensors(0.0)
    stored.check(blank)
    stored.fill(blank)
    assert all(torch.equal(blank[name], tensor) for name, tensor in tensors(4.0).items())
    assert steps(tmp_path) == ["step-00000003", "step-00000004"]


def test_what_is_being_written_is_a_copy_and_no_checkpoint_before_it_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    held, original = threading.Event(), checkpoints.save_file
    monkeypatch.setattr(checkpoints, "save_file", lambda *said: (held.wait(10), original(*said)))
    writer, live = Checkpoints(tmp_path, Ranks(), 2), tensors(1.0)
    writer.save(1, live, {})
    live["model.weight"].fill_(99.0)  # training goes on
    assert not writer.written
    assert writer.latest() is None
    held.set()
    writer.finish()
    stored = writer.latest()
    assert stored is not None
    blank = tensors(0.0)
    stored.fill(blank)
    assert torch.equal(blank["model.weight"], tensors(1.0)["model.weight"])


def test_a_save_that_never_ended_is_not_taken_up(saved: Callable[..., Checkpoints], tmp_path: Path) -> None:
    writer = saved(1, 2)
    (tmp_path / FOLDER / "step-00000002" / "index.json").unlink()
    stored = writer.latest()
    assert stored is not None
    assert stored.said == {"step": 1}


@pytest.mark.parametrize("damage", ["truncated", "missing", "pickle", "index", "layout"])
def test_a_damaged_or_hostile_checkpoint_is_one_clear_line(
    saved: Callable[..., Checkpoints], tmp_path: Path, damage: str
) -> None:
    writer = saved(1)
    folder = tmp_path / FOLDER / "step-00000001"
    file, index = folder / "rank-00000.safetensors", folder / "index.json"
    size = file.stat().st_size
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "missing":
        file.unlink()
    elif damage == "pickle":  # of the right length, so that only its content tells
        file.write_bytes(pickle.dumps(Bomb(tmp_path / "bang")).ljust(size, b"\0"))
    elif damage == "index":
        index.write_text("[")
    else:
        index.write_text(json.dumps({**json.loads(index.read_text()), "layout": 99}))
    with pytest.raises(TrainingError, match="cannot be resumed from") as error:
        read(writer)
    assert str(folder) in error.value.message
    assert str(folder) in error.value.remedy
    assert not (tmp_path / "bang").exists()


def read(writer: Checkpoints) -> None:
    stored = writer.latest()
    assert stored is not None
    stored.fill(tensors(0.0))


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self._path,))


@pytest.mark.parametrize("other", [{"model.weight": torch.zeros(4, 5)}, {"model.bias": torch.zeros(3)}])
def test_a_checkpoint_of_another_model_is_refused(
    saved: Callable[..., Checkpoints], other: dict[str, torch.Tensor]
) -> None:
    stored = saved(1).latest()
    assert stored is not None
    with pytest.raises(TrainingError, match="checkpoint of another model: model"):
        stored.check(other)


def test_a_disk_that_refuses_is_said_by_the_training(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    writer = Checkpoints(tmp_path, Ranks(), 2)
    with pytest.raises(TrainingError, match="cannot be written"):
        writer.save(1, tensors(1.0), {}, wait=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_the_thread_that_writes_goes_after_training_unless_training_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import threading

    original, found = checkpoints.save_file, []

    def save(*said: object) -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        original(*said)

    monkeypatch.setattr(checkpoints, "save_file", save)
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    writer = Checkpoints(tmp_path, Ranks(), 2)
    writer.save(1, tensors(1.0), {})
    writer.save(2, tensors(2.0), {}, wait=True)
    assert found == [max(ours, checkpoints.WRITING_NICENESS), ours]
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours
