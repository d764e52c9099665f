"""Runs the end-to-end pipeline with KFP's subprocess runner: `python -m pipelines.local WORKSPACE`.

`kiwi run` starts this as a process of its own, at the head of its own process group, with its output in a log file:
KFP's logging stays out of the terminal, and one signal to the group ends every task with all that it started.
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
    from kiwi.configuration import RunConfiguration

PR_SET_PDEATHSIG = 1
SEND_SECONDS = 15.0


def end_with_parent(parent: int) -> None:
    """Ends this process group when the parent is gone, also when it was killed without a chance to say so."""

    def end_group(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        os._exit(128 + signum)

    signal.signal(signal.SIGTERM, end_group)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        end_group(signal.SIGTERM, None)


def run(workspace: Path) -> None:
    """Runs the pipeline on the configuration that lies in the workspace. Raises RuntimeError where a task failed."""
    from kfp import local

    from kiwi.configuration import RunConfiguration

    configuration = RunConfiguration.parse((workspace / "configuration.json").read_text())
    os.environ["KIWI_STAGES"] = ",".join(stage.name for stage in configuration.stages)
    from pipelines.end_to_end import end_to_end

    threading.Thread(target=send_records, args=(configuration,), daemon=True).start()
    # KFP deletes its workspace after each run; results lie elsewhere.
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(workspace / "kfp"),
        workspace_root=str(workspace / "tmp" / "kfp-workspace"),
    )
    end_to_end(config=configuration.canonical())


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
    end_with_parent(int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid())
    try:
        run(workspace)
    except RuntimeError as error:
        sys.exit(f"failed: {error}")


if __name__ == "__main__":
    main()
