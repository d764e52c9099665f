"""Calls that may hang, ended by the clock: each in a thread that nobody waits for longer than was said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class _Call(Generic[T]):
    """One call at work; `error` is raised where the result is asked for."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self.results: list[T] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.results.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            self.error = error


def all_within(seconds: float, calls: Sequence[Callable[[], T]]) -> list[T | None]:
    """The results of all calls, which run side by side; None for one that was not done in time.

    Raises what a call raised. A call that hangs goes on in a daemon thread, which ends with the process.
    """
    until = time.monotonic() + seconds
    started = [_Call(call) for call in calls]
    found: list[T | None] = []
    for call in started:
        call.thread.join(max(0.0, until - time.monotonic()))
        if call.error is not None:
            raise call.error
        found.append(call.results[0] if call.results else None)
    return found


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of one call. Raises TimeoutError where it takes longer."""
    done = all_within(seconds, [lambda: (call(),)])[0]
    if done is None:
        raise TimeoutError(f"not done within {seconds:g} s")
    return done[0]
