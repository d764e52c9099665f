"""The processes of a training: one alone, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process's number, and how many there are."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.world > 1

    def part(self, size: int, number: int = 0, parts: int = 1) -> slice:
        """This rank's samples of a batch of `size`, or part `number` of them; parts differ by one sample at most."""
        pieces = self.world * parts
        index = self.rank * parts + number
        return slice(index * size // pieces, (index + 1) * size // pieces)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.several:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.several:
            dist.barrier()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; told by its method, for importing the class takes a second."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor in full on every rank (a collective where it is sharded)."""
    gather: Any = getattr(tensor, "full_tensor", None)
    full: Tensor = tensor if gather is None else gather()
    return full


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """The ranks as torchrun's environment tells them; the process group ends with the block."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    ranks = Ranks(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(ranks.local)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
