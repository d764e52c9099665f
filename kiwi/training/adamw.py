"""AdamW whose moments are kept in bfloat16: half the memory of the optimiser, with arithmetic in float32.

With five billion weights, float32 ones with float32 moments are 60 GB before any gradient; with these moments 40 GB.
It steps float32 weights in place, and weights that are kept in two halves (kiwi/training/masters.py) as the float32
that they are together. Work goes on in pieces, so that what it needs meanwhile does not grow with a matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kiwi.training.masters import halves, joined

PIECE = 1 << 24  # values that are worked on at once: 64 MB in float32


class LeanAdamW(torch.optim.Optimizer):
    """torch.optim.AdamW's arithmetic; only what is kept between steps is rounded.

    The second moment's decay must leave steps that bfloat16 can hold (1 - beta2 of at least about 2^-8).

    Args:
        params: parameters or groups of them.
        lr, betas, eps, weight_decay: as of torch.optim.AdamW.
        low: by parameter, the missing halves of those that are bfloat16.
        compiled: one kernel for a piece; without it each operation passes over memory by itself.
    """

    def __init__(
        self, params: Iterable[nn.Parameter] | list[dict[str, Any]], lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8, weight_decay: float = 0.01,
        *, low: Mapping[Tensor, Tensor] | None = None, compiled: bool = False,
    ) -> None:  # fmt: skip
        if 1 - betas[1] < 2**-8:
            raise ValueError(f"beta2 {betas[1]}: bfloat16 would round its steps away")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._low = low if low is not None else {}
        self._compiled = compiled

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, parameter.grad, group)

    def _step_one(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        low = self._low.get(parameter)
        if low is None and parameter.dtype != torch.float32:
            raise ValueError(f"{parameter.dtype} weights without their other halves lose small steps")
        own = [parameter, gradient, state["exp_avg"], state["exp_avg_sq"], *([] if low is None else [low])]
        numbers: Any = _numbers(float(state["step"]), group)
        if self._compiled:
            numbers = torch.tensor(numbers, device=gradient.device).unbind()
        update = _update(low is not None, self._compiled)
        for piece in _pieces([_local(tensor) for tensor in own]):
            update(*piece, *numbers)


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; the steps are element by element, so that it is enough."""
    part: Any = getattr(tensor, "to_local", None)
    own: Tensor = tensor if part is None else part()
    return own


def _pieces(tensors: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors of one shape, a piece of each at a time, in one axis: what is compiled sees a single shape."""
    if not all(tensor.is_contiguous() for tensor in tensors):
        yield tuple(tensors)
        return
    yield from zip(*(torch.split(tensor.view(-1), PIECE) for tensor in tensors), strict=True)


def _numbers(count: float, group: dict[str, Any]) -> tuple[float, ...]:
    """(1 - beta1, beta2, decay of the weights, bias correction of the second moment, eps, rate) of step `count`."""
    first, second = group["betas"]
    decay, rate = 1 - group["lr"] * group["weight_decay"], group["lr"] / (1 - first**count)
    return 1 - first, second, decay, 1 - second**count, group["eps"], rate


def _plain_update(
    weights: Tensor, gradient: Tensor, mean: Tensor, square: Tensor,
    share: float, second: float, decay: float, correction: float, eps: float, rate: float,
) -> None:  # fmt: skip
    """One step of float32 weights and bfloat16 moments, in place."""
    slope = gradient.float()
    moved = mean.float().lerp_(slope, share)
    deviation = square.float().mul_(second).addcmul_(slope, slope, value=1 - second)
    mean.copy_(moved)
    square.copy_(deviation)
    weights.mul_(decay)
    deviation = deviation.div_(correction).sqrt_().add_(eps)
    weights.addcdiv_(moved, deviation, value=-rate)


def _fused_update(weights: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, *numbers: Tensor) -> None:
    """The same in a form that compiles to one kernel; the numbers are scalars on the device, so that a new learning
    rate compiles nothing anew.
    """
    share, second, decay, correction, eps, rate = numbers
    slope = gradient.float()
    moved = torch.lerp(mean.float(), slope, share)
    deviation = square.float() * second + slope * slope * (1 - second)
    mean.copy_(moved)
    square.copy_(deviation)
    weights.copy_(weights * decay - rate * moved / ((deviation / correction).sqrt() + eps))


def _of_halves(update: Callable[..., None]) -> Callable[..., None]:
    """The same step of weights that are kept in halves."""

    def step(high: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, low: Tensor, *numbers: Any) -> None:
        weights = joined(high, low)
        update(weights, gradient, mean, square, *numbers)
        nearest, missing = halves(weights)
        high.copy_(nearest)
        low.copy_(missing)

    return step


@functools.cache
def _update(in_halves: bool, compiled: bool) -> Callable[..., None]:
    update: Callable[..., None] = _fused_update if compiled else _plain_update
    if in_halves:
        update = _of_halves(update)
    return torch.compile(update, dynamic=True) if compiled else update
