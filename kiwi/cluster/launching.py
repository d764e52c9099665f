"""One stage of the curriculum over several processes: torchrun in the task's own pod, or on several nodes.

Several nodes are a TrainJob where KIWI_TRAIN_JOB says how (following_jobs.py), and processes of this host elsewhere
(local_nodes.py). What runs on a node is the same command in both.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

from kiwi.cluster import local_nodes
from kiwi.cluster.following_jobs import launch
from kiwi.cluster.train_jobs import Placement
from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError, UsageError
from kiwi.training import train_stage
from kiwi.training.preemption import Notice, Preempted

if TYPE_CHECKING:
    from kiwi.tracking import TaskRun

PATIENT = ("--shutdown-timeout", "110")  # seconds in which ranks save after SIGTERM; the pods have 120


def train(configuration: RunConfiguration, stage: str, task: TaskRun) -> dict[str, Any]:
    """The stage's result. The profile's pool says by KIWI_NODES and KIWI_PROCESSES how it is trained.

    Raises Preempted (143) where they ended because this process got SIGTERM, and KiwiError where they failed; what
    they had saved is found by the next try. torchrun itself ends with 1 in both cases.
    """
    nodes, processes = _number("KIWI_NODES"), _number("KIWI_PROCESSES")
    if nodes * processes > 1:
        _train_together(configuration, stage, nodes, processes)
    return train_stage(configuration, stage, task)


def _number(variable: str) -> int:
    said = os.environ.get(variable, "1")
    if not said.isdecimal() or int(said) < 1:
        raise UsageError(f"{variable}={said!r} is no number from 1", "unset it, or mend the profile's pool")
    return int(said)


def _train_together(configuration: RunConfiguration, stage: str, nodes: int, processes: int) -> None:
    from kiwi.training.results import finished_stage

    def finished() -> bool:
        return finished_stage(configuration, stage) is not None

    if finished():
        return
    if nodes > 1 and (placement := Placement.told()) is not None:
        launch(configuration, stage, node_command(configuration, stage, "python"), placement, finished)
        return
    notice = Notice()
    if nodes > 1:
        code = local_nodes.run(node_command(configuration, stage), nodes, processes, notice)
    else:
        code = run(command(configuration, stage, processes), notice)
    if code or not finished():
        where = f"on {nodes} nodes " if nodes > 1 else ""
        said = f"training {stage} {where}with {processes} processes ended with {code}"
        if notice.given:
            raise Preempted(f"{said} after SIGTERM", "the next try resumes from the newest checkpoint")
        raise KiwiError(said, "see the task's log")


def command(configuration: RunConfiguration, stage: str, processes: int) -> list[str]:
    """torchrun on one node."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *PATIENT, "--standalone"]
    launcher += ["--nproc-per-node", str(processes)]
    return [*launcher, *_entry(configuration, stage)]


def node_command(configuration: RunConfiguration, stage: str, python: str = sys.executable) -> list[str]:
    """torchrun on one of several nodes, which learns all else from PET_ variables."""
    return [python, "-m", "torch.distributed.run", *PATIENT, *_entry(configuration, stage)]


def _entry(configuration: RunConfiguration, stage: str) -> list[str]:
    return ["-m", "kiwi", "train", stage, "--workdir", configuration.workspace]


def run(said: list[str], notice: Notice | None = None) -> int:
    """Runs a command to its end; SIGTERM, with which a pod is told to go, is passed on so that it can save,
    and told to `notice`.
    """
    running: list[subprocess.Popen[bytes]] = []
    told = False

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal told
        told = True
        if notice is not None:
            notice.give()
        for process in running:
            process.send_signal(signum)

    # Before the command runs: process 1 of a container never hears of a SIGTERM that it does not catch.
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        with subprocess.Popen(said) as process:
            running.append(process)
            if told:
                process.terminate()
            return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
