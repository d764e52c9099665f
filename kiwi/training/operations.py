"""Floating-point operations of a training step, counted from the shapes that really pass through the modules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

QUERY, KEY = ("to_q", "q_proj"), ("to_k", "k_proj")
IDLE = -1  # no backward pass is under way
PEAKS = {"A100": 312.0, "H100": 989.0, "H200": 989.0}  # bfloat16, dense, 10^12 a second, as published


@dataclass
class Counted:
    """Operations of one forward and backward pass; a product of m×k and k×n counts as 2·m·k·n."""

    forward: float = 0.0
    backward: float = 0.0
    _queries: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return self.forward + self.backward

    def product(self, operations: float, *, trains: bool, passes: bool) -> None:
        """One product; backward another for the weight where it trains, and one for the input where that is asked."""
        self.forward += operations
        self.backward += operations * (trains + passes)


@contextmanager
def counting(model: nn.Module) -> Iterator[Counted]:
    """Counts linear layers, convolutions and attention while the block runs, by hooks that change no number.

    Recomputation is not counted: utilisation is of the operations that the mathematics needs.
    """
    counted, hooks = Counted(), []
    for parent in model.modules():
        for name, module in parent.named_children():
            if isinstance(module, nn.Linear | nn.Conv3d):
                hooks.append(module.register_forward_hook(_counter(counted, name, id(parent)), with_kwargs=False))
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def _counter(counted: Counted, name: str, parent: int) -> Any:
    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != IDLE:
            return  # sampling, or a block that the backward pass computes again
        weight = module.weight
        assert isinstance(weight, Tensor)
        operations = 2.0 * output.numel() * weight[0].numel()
        passes = isinstance(inputs[0], Tensor) and inputs[0].requires_grad
        counted.product(operations, trains=weight.requires_grad, passes=passes)
        if name in QUERY:
            counted._queries[parent] = (output.shape[0], output.shape[-2], output.shape[-1])
        elif name in KEY and parent in counted._queries:
            batch, length, width = counted._queries[parent]
            attention = 4.0 * batch * length * output.shape[-2] * width
            counted.product(attention, trains=output.requires_grad, passes=output.requires_grad)

    return count


class OperationsByShape:
    """Operations of a step by the shape of its data; each shape is counted once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], float] = defaultdict(float)

    def known(self, shape: tuple[Any, ...]) -> bool:
        return shape in self._known

    def learn(self, shape: tuple[Any, ...], operations: float) -> None:
        self._known[shape] += operations

    def of(self, shape: tuple[Any, ...]) -> float:
        return self._known[shape]


def peak_tflops(said: float | None, device: torch.device) -> float | None:
    """What one device could do at best, in 10^12 operations a second; None where nobody has said."""
    if said is not None or device.type != "cuda":
        return said
    name = torch.cuda.get_device_name(device)
    return next((peak for model, peak in PEAKS.items() if model in name), None)
