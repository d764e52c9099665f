"""Averaged weights (EMA): a slow copy of what is trained, which a stage can leave in place of its last weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


class Averaged:
    """The running mean of some parameters, in float32, sharded as they are.

    Args:
        named: the parameters.
        decay: weight of the past; early on less of it, so that the first weights are soon forgotten.
        kept: gives the float32 weights of a parameter that the model itself has in bfloat16; see Masters.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        decay: float,
        kept: Callable[[nn.Parameter], Tensor] = Tensor.detach,
    ) -> None:
        self._parameters = dict(named)
        self._decay = decay
        self._kept = kept
        self.tensors: dict[str, Tensor] = {name: kept(p).clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self.tensors[name].lerp_(self._kept(parameter), 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Gives the parameters their means."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.tensors[name])
