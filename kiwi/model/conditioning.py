"""How source and reference latents enter the diffusion transformer (paper, section 4.1, hybrid latent injection).

The stock `WanTransformer3DModel.forward` serves unchanged: everything a block needs is packed into one 5-D input,
and a composite patch embedding takes it apart again. Nothing is kept between calls, so recomputation, compilation
and sharding see an ordinary module.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

ReferencePosition = Literal["last", "first"]


class CompositePatchEmbedding(nn.Module):
    """Patch embedding of noisy, source and reference latents: `base(noisy) + source(source) · σ | reference(ref)`.

    The added convolutions start at zero, so a new editor computes what its backbone computes.

    Args:
        base: the backbone's own patch embedding (Conv3d, kernel = stride = patch).
    """

    def __init__(self, base: nn.Conv3d) -> None:
        super().__init__()
        self.base = base
        self.source = _zero_convolution(base)
        self.reference = _zero_convolution(base)

    @property
    def latent_channels(self) -> int:
        return self.base.in_channels

    def forward(self, packed: Tensor) -> Tensor:
        """Embeds what `pack` made: [B, 2·C + 2, F, H, W] -> [B, dim, F, H/p, W/p]."""
        channels = self.latent_channels
        latents, source = packed[:, :channels], packed[:, channels : 2 * channels]
        patch = self.base.stride
        sigma, is_reference = packed[:, 2 * channels :, :, :: patch[1], :: patch[2]].chunk(2, dim=1)
        video = self.base(latents) + self.source(source) * sigma
        if not bool(is_reference.any()):
            return cast(Tensor, video)
        return torch.where(is_reference > 0, self.reference(latents), video)


def _zero_convolution(like: nn.Conv3d) -> nn.Conv3d:
    convolution = nn.Conv3d(
        like.in_channels,
        like.out_channels,
        cast("tuple[int, int, int]", like.kernel_size),
        stride=cast("tuple[int, int, int]", like.stride),
    )
    nn.init.zeros_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def pack(
    noisy: Tensor,
    sigma: Tensor,
    source: Tensor | None,
    reference: Tensor | None,
    position: ReferencePosition = "last",
) -> Tensor:
    """Packs latents for `CompositePatchEmbedding`.

    Args:
        noisy: [B, C, F, H, W].
        sigma: [B], the noise level in 0-1, which scales the source.
        source: [B, C, F, H, W], or None where no source is given.
        reference: [B, C, R, H, W], concatenated in time (after the video or before it), or None.

    Returns:
        [B, 2·C + 2, F (+ R), H, W].
    """
    batch, _, frames, height, width = noisy.shape
    plane = noisy.new_ones(batch, 1, frames, height, width)
    level = sigma.to(noisy.dtype).view(-1, 1, 1, 1, 1)
    source = torch.zeros_like(noisy) if source is None else source.to(noisy.dtype)
    video = torch.cat([noisy, source, plane * level, torch.zeros_like(plane)], dim=1)
    if reference is None:
        return video
    reference = reference.to(noisy.dtype)
    mark = reference.new_ones(batch, 1, *reference.shape[2:])
    extra = torch.cat([reference, torch.zeros_like(reference), torch.zeros_like(mark), mark], dim=1)
    return torch.cat([video, extra] if position == "last" else [extra, video], dim=2)


def drop_reference(output: Tensor, frames: int, position: ReferencePosition = "last") -> Tensor:
    """The video part of the transformer's output: [B, C, F + R, H, W] -> [B, C, F, H, W]."""
    return output[:, :, :frames] if position == "last" else output[:, :, -frames:]
