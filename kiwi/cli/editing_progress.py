"""How far an edit is, on stderr: a bar on a terminal, and now and then a plain line where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SILENT_SECONDS = 10.0  # after which a line is due where something was done
STEP = 0.1  # of the whole: a line is due then too,
LEAST_SECONDS = 2.0  # but not sooner than this: a short edit says nothing


@contextmanager
def progress_of(what: str) -> Iterator[Callable[[int, int], None]]:
    """Hands out what is to be called with (done, in all)."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainProgress(what)
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@dataclass
class PlainProgress:
    """Prints "editing: 40%, 1:12 left" when it is due. What was done at the first call took no known time."""

    what: str
    clock: Callable[[], float] = time.monotonic
    _began: tuple[float, int] | None = None
    _told: tuple[float, float] = (0.0, 0.0)

    def __call__(self, done: int, total: int) -> None:
        now, share = self.clock(), done / total
        if self._began is None:
            self._began, self._told = (now, done), (now, share)
            return
        since, more = now - self._told[0], share - self._told[1]
        if since < LEAST_SECONDS or (since < SILENT_SECONDS and more < STEP):
            return
        self._told = (now, share)
        print(f"{self.what}: {share:.0%}{self._left(now, done, total)}", file=sys.stderr, flush=True)

    def _left(self, now: float, done: int, total: int) -> str:
        from kiwi.cli.live import clock

        assert self._began is not None
        started, before = self._began
        if done <= before or done >= total:
            return ""
        return f", {clock((total - done) * (now - started) / (done - before))} left"
