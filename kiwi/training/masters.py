"""float32 weights of a model that computes in bfloat16, kept as two halves: four bytes a weight and not six.

A float32 is the bfloat16 nearest to it and a difference that 16 bits hold exactly. The model has the one, this file
the other; put together they are the float32 weight to the last bit. Five billion weights with copies in float32 would
take 30 GB, so they take 20.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kiwi.training.ranks import is_sharded

_LOW_BITS = 0xFFFF


def halves(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(bfloat16 nearest to each float32, ties away from zero; what is missing, int16). NaN stays NaN in both forms."""
    bits = weights.view(torch.int32)
    nearest = (bits + 0x8000) & ~_LOW_BITS
    high = torch.where(weights.isnan(), weights, nearest.view(torch.float32))  # else a GPU's NaN would be shown as -0
    return high.to(torch.bfloat16), (bits - nearest).to(torch.int16)


def joined(high: Tensor, low: Tensor) -> Tensor:
    """The inverse of `halves`, exactly. float32."""
    return (high.float().view(torch.int32) + low.to(torch.int32)).view(torch.float32)


class Masters:
    """The missing halves of some parameters, which become bfloat16 here.

    Args:
        parameters: float32, in one piece; FSDP keeps float32 shards by itself.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.low: dict[Tensor, Tensor] = {}
        for parameter in parameters:
            assert not is_sharded(parameter)
            parameter.data, self.low[parameter] = halves(parameter.detach().contiguous())

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """The weights in float32: joined anew, or the parameter's own where it is no bfloat16 one."""
        low = self.low.get(parameter)
        return parameter.detach() if low is None else joined(parameter.detach(), low)

    @torch.no_grad()
    def put(self, parameter: nn.Parameter, weights: Tensor) -> None:
        """Gives a parameter float32 weights, which may lie elsewhere."""
        low = self.low.get(parameter)
        if low is None:
            parameter.copy_(weights)
            return
        high, missing = halves(weights.to(parameter.device))
        parameter.copy_(high)
        low.copy_(missing)

    @contextmanager
    def together(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """In the block the parameters and their gradients are float32, for an optimiser that knows no halves.

        They all are at once: this is for small models.
        """
        held = [parameter for parameter in parameters if parameter in self.low]
        for parameter in held:
            gradient = parameter.grad
            parameter.grad = None
            parameter.data = self.whole(parameter)
            parameter.grad = None if gradient is None else gradient.float()
        yield
        for parameter in held:
            parameter.grad = None
            parameter.data, self.low[parameter] = halves(parameter.detach())

    def settle(self) -> None:
        """The parameters become their float32 weights, for good."""
        for parameter in list(self.low):
            assert isinstance(parameter, nn.Parameter)
            parameter.grad = None
            parameter.data = self.whole(parameter)
            del self.low[parameter]
