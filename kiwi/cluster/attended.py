"""A node of a TrainJob ends when nobody waits for it any more: its launcher leaves a sign on the work volume.

Kubeflow Pipelines runs no exit task after a run was cancelled, and a launcher that is killed cannot delete its job. So
a launcher touches a file while it waits, and each node runs its command under this program, which tells it to end
(SIGTERM, at which it saves) when the file was not touched for half an hour: more than a launcher's retries take.

    python -m kiwi.cluster.attended FILE COMMAND…
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

LOST_SECONDS = 1800.0
POLL_SECONDS = 10.0
LOST = 75  # EX_TEMPFAIL: whoever starts it again goes on


def command(file: Path, inner: list[str]) -> list[str]:
    """What a node runs."""
    return [inner[0], "-m", "kiwi.cluster.attended", str(file), *inner]


def touch(file: Path) -> None:
    """The launcher's sign that it waits. A volume that does not answer is said, and tried again at the next wait."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        print(f"{file}: {error.strerror}; if this lasts for {LOST_SECONDS / 60:g} minutes the nodes end", flush=True)


def run(file: Path, inner: list[str], lost: float = LOST_SECONDS, poll: float = POLL_SECONDS) -> int:
    """Runs the command to its end and returns its exit code, or LOST where nobody waits. SIGTERM is passed on.

    128 and the signal's number for a command that a signal ended, as a shell has it.
    """
    waited_for = _watch(file, lost)
    if not waited_for():
        print(f"nobody waits for this job: {file} was not touched for {lost:g} s", flush=True)
        return LOST
    running: list[subprocess.Popen[bytes]] = []
    told = False

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal told
        told = True
        for process in running:
            process.send_signal(signum)

    # Before the command runs: process 1 of a container never hears of a SIGTERM that it does not catch.
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        with subprocess.Popen(inner) as process:
            running.append(process)
            if told:
                process.terminate()
            return _ended(process, waited_for, poll)
    finally:
        signal.signal(signal.SIGTERM, before)


def _ended(process: subprocess.Popen[bytes], waited_for: Callable[[], bool], poll: float) -> int:
    while True:
        try:
            code = process.wait(poll)
            return code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            if not waited_for():
                break
    print("nobody waits for this job any more: it saves and ends", flush=True)
    process.terminate()
    process.wait()  # Kubernetes ends what does not heed this when the job is deleted
    return LOST


def _watch(file: Path, lost: float) -> Callable[[], bool]:
    """Whether the file was touched lately. A volume that does not answer is no news; before the file is first seen,
    the time counts from now."""
    seen = time.time()

    def waited_for() -> bool:
        nonlocal seen
        with suppress(OSError):
            seen = file.stat().st_mtime
        return time.time() - seen < lost

    return waited_for


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("kiwi.cluster.attended FILE COMMAND…")
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
