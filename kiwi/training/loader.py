"""Batches made ready ahead of their steps, by a thread: drawing, tokenising and noise cost the training no time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kiwi.training.mixture import Batch, Mixture, Step, training_noise
from kiwi.training.ranks import Ranks


@dataclass(frozen=True)
class Piece:
    """One part of a step's work on one rank.

    Attributes:
        noise, levels: of its samples.
        share: its samples over those that an equal part would have, so that the mean over all parts and ranks is the
            mean over the batch.
    """

    batch: Batch
    noise: Tensor
    levels: Tensor
    share: float


@dataclass(frozen=True)
class Ready:
    """A step's data: pieces to work through one after another; `size` samples of `tokens` in all, over all ranks."""

    step: int
    pieces: list[Piece]
    size: int
    tokens: int


class Loader:
    """Iterates over a plan from a step on. `waited` are the seconds that the steps waited for data."""

    def __init__(
        self, mixture: Mixture, plan: list[Step], start: int, seed: int, ranks: Ranks, parts: int, ahead: int
    ) -> None:
        self._mixture, self._plan, self._start = mixture, plan, start
        self._seed, self._ranks, self._parts = seed, ranks, parts
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
        self.waited = 0.0

    def __iter__(self) -> Iterator[Ready]:
        for _ in range(self._start, len(self._plan)):
            began = time.monotonic()
            item = self._queue.get()
            self.waited += time.monotonic() - began
            if isinstance(item, BaseException):
                raise item
            yield item

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            while not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(timeout=0.05)

    def _work(self) -> None:
        torch.set_num_threads(1)  # this thread's own: a second OpenMP team would spin on the cores of the training's
        try:
            for step in range(self._start, len(self._plan)):
                if not self._give(self._ready(step)):
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised again by the step that wanted the data
            self._give(error)

    def _give(self, item: Ready | BaseException) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _ready(self, step: int) -> Ready:
        drawn = self._plan[step]
        size = self._mixture.size(*drawn[:2])
        parts = [self._ranks.part(size, number, self._parts) for number in range(self._parts)]
        pieces = [self._piece(step, drawn, size, part) for part in parts]
        return Ready(step, pieces, size, size * self._mixture.tokens(*drawn[:2]))

    def _piece(self, step: int, drawn: Step, size: int, part: slice) -> Piece:
        alone = part == slice(0, size)
        batch = self._mixture.batch(*drawn) if alone else self._mixture.batch(*drawn, part)
        noise, levels = training_noise((size, *batch.target.shape[1:]), (self._seed, 3, step), part)
        return Piece(batch, noise, levels, (part.stop - part.start) * self._ranks.world * self._parts / size)


@contextmanager
def loading(
    mixture: Mixture, plan: list[Step], start: int, seed: int, ranks: Ranks, *, parts: int, ahead: int
) -> Iterator[Loader]:
    """A loader at work; its thread ends with the block."""
    loader = Loader(mixture, plan, start, seed, ranks, parts, ahead)
    loader.start()
    try:
        yield loader
    finally:
        loader.stop()
