"""What `kiwi train` says of a stage that was finished before; no torch is needed to find it."""

import json
import shutil

import pytest

from kiwi import cli
from kiwi.presets import build
from kiwi.training.results import checkpoint_folder
from kiwi.workspace import Workspace, write_json


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A work folder whose stage1 is finished; its model is an empty folder, which nothing here opens."""
    monkeypatch.setattr("kiwi.tracking.send", lambda configuration: None)
    root = tmp_path / "demo"
    configuration = build("tiny", workspace=root, tracking_uri="")
    write_json(Workspace(root).configuration, configuration.model_dump(mode="json"))
    write_json(root / "dataset.json", {"path": str(root), "digest": "d", "version": "v1", "revision": "0" * 40})
    folder = checkpoint_folder(configuration, "stage1")
    folder.mkdir(parents=True)
    said = {"steps": 4, "loss_first": 2.0, "loss_last": 1.0, "checkpoint": str(folder)}
    write_json(folder.parent / "result.json", said)
    return root


def train(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["kiwi", "train", "stage1", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


@pytest.mark.parametrize("asked", [["--profile"], ["--samples-every", "5"], ["--set", "trainer.profile=true"]])
def test_a_finished_stage_says_that_it_wrote_no_trace_or_samples(finished, monkeypatch, capfd, asked):
    train(monkeypatch, "--workdir", finished, *asked)
    said = capfd.readouterr().err
    assert said == (
        "stage1 is finished already; no trace or samples were written (another work folder trains anew)\n"
    ), "and no progress bar"


def test_a_finished_stage_that_was_asked_for_nothing_more_says_nothing_more(finished, monkeypatch, capfd):
    train(monkeypatch, "--workdir", finished)
    assert capfd.readouterr().err == ""


def test_a_copied_work_folder_names_its_own_checkpoint(finished, monkeypatch, capfd):
    copied = finished.parent / "copied"
    shutil.copytree(finished, copied)
    train(monkeypatch, "--workdir", copied)
    printed = capfd.readouterr().out.splitlines()[-1]
    train(monkeypatch, "--workdir", copied, "--json")
    said = json.loads(capfd.readouterr().out)["checkpoint"]
    assert printed == said
    assert printed.startswith(f"{copied}/")
