"""The nodes of a training as processes of this host: the variables that Kubeflow Trainer sets in pods are set here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from types import FrameType

from kiwi.training.preemption import Notice

POLL_SECONDS = 0.2
GRACE_SECONDS = 120.0  # between telling the other nodes to end and ending them


def run(command: list[str], nodes: int, processes: int, notice: Notice | None = None) -> int:
    """Runs the command once for each node, and returns the first exit code that is not 0, or 0.

    A node that fails ends the others, which would wait for it. SIGTERM is passed on to all, so that they can save, and
    told to `notice`.
    """
    port = _free_port()
    started = [
        subprocess.Popen(command, env={**os.environ, **environment(number, nodes, processes, port)})
        for number in range(nodes)
    ]

    def pass_on(signum: int, frame: FrameType | None) -> None:
        if notice is not None:
            notice.give()
        for process in started:
            process.send_signal(signum)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, pass_on) if main else None
    try:
        return _first_failure(started)
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
        _end(started)


def environment(node: int, nodes: int, processes: int, port: int, address: str = "127.0.0.1") -> dict[str, str]:
    """What torchrun reads in a node's pod; the names are torchrun's, the values those that Trainer would give."""
    return {
        "PET_NNODES": str(nodes),
        "PET_NPROC_PER_NODE": str(processes),
        "PET_NODE_RANK": str(node),
        "PET_MASTER_ADDR": address,
        "PET_MASTER_PORT": str(port),
    }


def _first_failure(started: list[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [process.poll() for process in started]
        failed = next((code for code in codes if code), None)
        if failed is not None:
            return failed
        if all(code == 0 for code in codes):
            return 0
        time.sleep(POLL_SECONDS)


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    """Ends what is still at work: by SIGTERM, and by SIGKILL what does not heed it."""
    left = [process for process in started if process.poll() is None]
    for process in left:
        process.terminate()
    until = time.monotonic() + GRACE_SECONDS
    for process in left:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
