"""Runs the end-to-end pipeline on this machine: `python -m pipelines.local WORKSPACE PARENT BACKEND`.

`kiwi run` starts this as a process of its own, at the head of its own process group, with its output in a log file:
KFP's logging stays out of the terminal, and one signal to the group ends every task with all that it started. Tasks
are subprocesses (BACKEND "local") or containers ("docker"), which are no members of the group and are removed.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kfp.local.config import LocalRunnerType

    from kiwi.configuration import RunConfiguration

PR_SET_PDEATHSIG = 1
SEND_SECONDS = 15.0


def end_with_parent(parent: int, containers_of: Path | None) -> None:
    """Ends this process group, and the containers of a work folder, when the parent is gone, also when it was killed
    without a chance to say so."""

    def end_group(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        if containers_of is not None:
            from pipelines.containers import EngineError, remove_containers

            try:
                remove_containers(containers_of)
            except EngineError as error:  # the next run in this folder removes them
                print(error, flush=True)
        os._exit(128 + signum)

    signal.signal(signal.SIGTERM, end_group)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        end_group(signal.SIGTERM, None)


def run(workspace: Path, backend: str) -> None:
    """Runs the pipeline on the configuration that lies in the workspace. Raises RuntimeError where a task failed."""
    from kfp import local

    from kiwi.configuration import RunConfiguration

    configuration = RunConfiguration.parse((workspace / "configuration.json").read_text())
    os.environ["KIWI_STAGES"] = ",".join(stage.name for stage in configuration.stages)
    from pipelines.end_to_end import end_to_end

    threading.Thread(target=send_records, args=(configuration,), daemon=True).start()
    # KFP deletes its workspace after each run; results lie elsewhere.
    local.init(
        runner=_runner(configuration, backend),
        pipeline_root=str(workspace / "kfp"),
        workspace_root=str(workspace / "tmp" / "kfp-workspace"),
    )
    end_to_end(config=configuration.canonical())


def _runner(configuration: "RunConfiguration", backend: str) -> "LocalRunnerType":
    if backend == "docker":
        from pipelines.containers import use_docker

        return use_docker(configuration)
    from kfp import local

    return local.SubprocessRunner(use_venv=False)


def send_records(configuration: "RunConfiguration") -> None:
    """Keeps MLflow up to date while the tasks work; the exit task sends the rest."""
    from kiwi.tracking import TrackingError, send

    while True:
        try:
            send(configuration)
        except TrackingError as error:
            print(f"tracking server is away, records are kept: {error}", flush=True)
        time.sleep(SEND_SECONDS)


def main() -> None:
    workspace = Path(sys.argv[1])
    parent = int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid()
    backend = sys.argv[3] if len(sys.argv) > 3 else "local"
    end_with_parent(parent, workspace if backend == "docker" else None)
    try:
        run(workspace, backend)
    except RuntimeError as error:
        sys.exit(f"failed: {error}")


if __name__ == "__main__":
    main()
