"""Muon in float32: momentum, made orthogonal by Newton-Schulz steps, for the matrices of transformer blocks.

Source: Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024. torch.optim.Muon does
the same in bfloat16, one matrix at a time, which on a CPU without bfloat16 units costs more than the training step
itself (benchmarks/optimizers.py compares them in one run); this one works in float32 on all matrices of a shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kiwi.training.ranks import is_sharded, whole

COEFFICIENTS = (3.4445, -4.775, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum with Nesterov's look-ahead and decoupled weight decay.

    Args:
        params: matrices only.
        lr: step size; a tall matrix's update is scaled by the square root of its aspect.
        momentum: share of the past in the running mean of gradients.
        weight_decay: decoupled.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        matrices = list(params)
        if any(matrix.dim() != 2 for matrix in matrices):
            raise ValueError("Muon trains matrices; give vectors and convolutions to another optimiser")
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            aheads: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                gradient = matrix.grad
                if gradient is not None:
                    state = self.state[matrix]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(matrix)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    aheads[matrix.shape].append(gradient.lerp(state["momentum"], group["momentum"]))
                    shapes[matrix.shape].append(matrix)
            for shape, matrices in shapes.items():
                stacked = torch.stack([whole(ahead) for ahead in aheads[shape]])
                updates = orthogonalised(stacked) * max(1.0, shape[0] / shape[1]) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(_as(matrix, update), alpha=-group["lr"])


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are all about 1 (0.7 to 1.2 after five steps). [N, rows, columns]."""
    first, second, third = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.mT if tall else x


def _as(matrix: Tensor, update: Tensor) -> Tensor:
    """An update that every rank has in full, sharded as the matrix is; nothing is sent."""
    if not is_sharded(matrix):
        return update
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(matrix, DTensor)
    return distribute_tensor(update, matrix.device_mesh, matrix.placements, src_data_rank=None)
