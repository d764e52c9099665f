"""SIGTERM while training: the step in hand ends, the state is saved, and the exit code asks to be run again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kiwi.training.errors import TrainingError

RETRY = 143  # 128 + SIGTERM, by which a retry policy tells it from a failure; torchrun turns it into 1


class Preempted(TrainingError):  # noqa: N818
    """Training was told to stop, and can be resumed."""

    exit_code = RETRY


class Notice:
    """Whether a stop was asked for."""

    def __init__(self) -> None:
        self.given = False

    def give(self, *_: object) -> None:
        self.given = True


@contextmanager
def notice_of_sigterm() -> Iterator[Notice]:
    """A notice that SIGTERM gives; outside the main thread, where signals cannot be caught, none ever."""
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    before = signal.signal(signal.SIGTERM, notice.give)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before)
