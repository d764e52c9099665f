"""A pool with several GPUs trains with as many processes; one GPU, or a finished stage, starts none."""

from __future__ import annotations

import sys

import pytest

from kiwi.cluster import launching, local_nodes
from kiwi.errors import KiwiError
from kiwi.tracking import silent
from kiwi.training.preemption import Preempted

run_for_real = launching.run


@pytest.fixture
def started(monkeypatch):
    """The commands that were started, and a training that is replaced by its result: GPUs cannot be had here."""
    said = {"commands": [], "code": 0, "finished": None}

    def run(command, notice):
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


def test_processes_that_end_because_the_launcher_was_told_to_go_ask_to_be_run_again(
    configuration, started, monkeypatch
):
    monkeypatch.setenv("KIWI_PROCESSES", "2")
    monkeypatch.setattr(launching, "run", run_for_real)
    as_torchrun = (
        "import os, signal, sys\nsignal.signal(15, lambda *_: sys.exit(1))\nos.kill(os.getppid(), 15)\nsignal.pause()"
    )
    monkeypatch.setattr(launching, "command", lambda *_: [sys.executable, "-c", as_torchrun])
    with pytest.raises(Preempted, match="ended with 1 after SIGTERM") as error:
        launching.train(configuration, "stage1", silent())
    assert error.value.exit_code == 143


def test_a_pod_that_is_told_to_go_tells_its_processes():
    program = (
        "import os, signal, sys\nsignal.signal(15, lambda *_: sys.exit(7))\nos.kill(os.getppid(), 15)\nsignal.pause()"
    )
    assert launching.run([sys.executable, "-c", program]) == 7


NODE = "import os, signal, sys, time\nrank = os.environ['PET_NODE_RANK']\n"


def test_nodes_on_this_host_are_told_what_trainer_tells_their_pods(tmp_path):
    program = NODE + (
        f"open({str(tmp_path)!r} + '/' + rank, 'w').write(' '.join(os.environ['PET_' + name] for name in "
        "('NNODES', 'NPROC_PER_NODE', 'MASTER_ADDR', 'MASTER_PORT')))"
    )
    assert local_nodes.run([sys.executable, "-c", program], 2, 8) == 0
    first, second = ((tmp_path / name).read_text() for name in ("0", "1"))
    assert first == second
    assert first.startswith("2 8 127.0.0.1 ")


def test_a_node_that_fails_ends_the_others_and_its_code_is_the_launchers(tmp_path):
    ready, told = str(tmp_path / "ready"), str(tmp_path / "told")
    waiting = f"signal.signal(15, lambda *_: (open({told!r}, 'w'), sys.exit(0)))\nopen({ready!r}, 'w')\nsignal.pause()"
    failing = f"while not os.path.exists({ready!r}): time.sleep(0.01)\nsys.exit(9)"
    program = NODE + f"exec({waiting!r} if rank == '0' else {failing!r})"
    assert local_nodes.run([sys.executable, "-c", program], 2, 1) == 9
    assert (tmp_path / "told").exists()


def test_a_node_that_does_not_heed_being_told_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(local_nodes, "GRACE_SECONDS", 0.3)
    ready = str(tmp_path / "ready")
    deaf = f"signal.signal(15, signal.SIG_IGN)\nopen({ready!r}, 'w')\nwhile True: signal.pause()"
    failing = f"while not os.path.exists({ready!r}): time.sleep(0.01)\nsys.exit(9)"
    program = NODE + f"exec({deaf!r} if rank == '0' else {failing!r})"
    assert local_nodes.run([sys.executable, "-c", program], 2, 1) == 9


def test_nodes_are_told_to_go_when_their_launcher_is(tmp_path):
    ready = str(tmp_path / "ready")
    program = NODE + (
        "signal.signal(15, lambda *_: sys.exit(7))\n"
        f"if rank == '0': open({ready!r}, 'w')\n"
        f"while not os.path.exists({ready!r}): time.sleep(0.01)\n"
        "if rank == '1': os.kill(os.getppid(), 15)\n"
        "signal.pause()"
    )
    assert local_nodes.run([sys.executable, "-c", program], 2, 1) == 7
