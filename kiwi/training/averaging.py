"""Averaged weights (EMA): a slow copy of what is trained, which a stage can leave in place of its last weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Averaged:
    """The running mean of some parameters, in float32, sharded as they are.

    Args:
        named: the parameters.
        decay: weight of the past; early on less of it, so that the first weights are soon forgotten.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self._parameters = dict(named)
        self._decay = decay
        self.tensors: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self.tensors[name].lerp_(parameter.detach().float(), 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Gives the parameters their means."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.tensors[name])
