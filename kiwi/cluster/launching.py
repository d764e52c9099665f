"""One stage of the curriculum in a pod with several GPUs: torchrun inside the pod, on the same entry point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError
from kiwi.training import train_stage

if TYPE_CHECKING:
    from kiwi.tracking import TaskRun


def train(configuration: RunConfiguration, stage: str, task: TaskRun) -> dict[str, Any]:
    """The stage's result. KIWI_PROCESSES, which a profile's pool sets, says over how many processes it is trained.

    Raises KiwiError where the processes failed; what they had saved is found by the next try.
    """
    processes = int(os.environ.get("KIWI_PROCESSES", "1"))
    if processes > 1:
        _train_together(configuration, stage, processes)
    return train_stage(configuration, stage, task)


def _train_together(configuration: RunConfiguration, stage: str, processes: int) -> None:
    from kiwi.training.results import finished_stage

    if finished_stage(configuration, stage) is not None:
        return
    code = run(command(configuration, stage, processes))
    if code or finished_stage(configuration, stage) is None:
        raise KiwiError(f"training {stage} with {processes} processes ended with {code}", "see the task's log")


def command(configuration: RunConfiguration, stage: str, processes: int) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, "-m", "kiwi", "train", stage, "--workdir", configuration.workspace]


def run(said: list[str]) -> int:
    """Runs a command to its end; SIGTERM, with which a pod is told to go, is passed on so that it can save."""
    with subprocess.Popen(said) as process:

        def pass_on(signum: int, frame: FrameType | None) -> None:
            process.send_signal(signum)

        before = signal.signal(signal.SIGTERM, pass_on)
        try:
            return process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
