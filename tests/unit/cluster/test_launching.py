"""A pool with several GPUs trains with as many processes; one GPU, or a finished stage, starts none."""

from __future__ import annotations

import sys

import pytest

from kiwi.cluster import launching
from kiwi.errors import KiwiError
from kiwi.tracking import silent


@pytest.fixture
def started(monkeypatch):
    """The commands that were started, and a training that is replaced by its result: GPUs cannot be had here."""
    said = {"commands": [], "code": 0, "finished": None}

    def run(command):
        said["commands"].append(command)
        said["finished"] = None if said["code"] else {"steps": 1}
        return said["code"]

    monkeypatch.setattr(launching, "run", run)
    monkeypatch.setattr("kiwi.training.results.finished_stage", lambda configuration, stage: said["finished"])
    monkeypatch.setattr(launching, "train_stage", lambda configuration, stage, task: {"steps": 1})
    return said


def test_as_many_processes_as_the_pool_has_accelerators(configuration, started, monkeypatch):
    monkeypatch.setenv("KIWI_PROCESSES", "8")
    assert launching.train(configuration, "stage1", silent()) == {"steps": 1}
    (command,) = started["commands"]
    assert command[command.index("--nproc-per-node") + 1] == "8"
    assert command[-4:] == ["train", "stage1", "--workdir", configuration.workspace]
    launching.train(configuration, "stage1", silent())
    assert len(started["commands"]) == 1, "a finished stage starts nothing"


def test_one_process_trains_in_the_task_itself(configuration, started, monkeypatch):
    monkeypatch.delenv("KIWI_PROCESSES", raising=False)
    launching.train(configuration, "stage1", silent())
    assert started["commands"] == []


def test_processes_that_fail_fail_the_task(configuration, started, monkeypatch):
    monkeypatch.setenv("KIWI_PROCESSES", "2")
    started["code"] = 3
    with pytest.raises(KiwiError, match="ended with 3"):
        launching.train(configuration, "stage1", silent())


def test_a_pod_that_is_told_to_go_tells_its_processes():
    program = (
        "import os, signal, sys\nsignal.signal(15, lambda *_: sys.exit(7))\nos.kill(os.getppid(), 15)\nsignal.pause()"
    )
    assert launching.run([sys.executable, "-c", program]) == 7
