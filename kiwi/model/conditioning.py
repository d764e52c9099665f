"""How source and reference latents enter the diffusion transformer (paper, section 4.1, hybrid latent injection).

The stock `WanTransformer3DModel.forward` serves unchanged: everything a block needs is packed into one 5-D input,
and a composite patch embedding takes it apart again. Nothing is kept between calls, so recomputation, compilation
and sharding see an ordinary module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from kiwi.model.errors import ModelError

ReferencePosition = Literal["last", "first"]
SourceEmbedding = Literal["separate", "shared", "channels"]
SourceScaling = Literal["sigma", "learned", "none"]
_CHOICES: dict[str, tuple[object, ...]] = {
    "source_embedding": get_args(SourceEmbedding),
    "source_scaling": get_args(SourceScaling),
    "reference_position": get_args(ReferencePosition),
    "reference_features": (True, False),
}
NO_SOURCE = -1.0  # the level where there are no source latents
KNOTS = 33


@dataclass(frozen=True)
class Conditioning:
    """How the transformer is conditioned: the paper's choice, and those that its tables 4 and 5 compare it with.

    Attributes:
        source_embedding: "separate": a convolution of its own, added; "shared": the backbone's own, added;
            "channels": source latents beside the noisy ones in one widened convolution, without scaling.
        source_scaling: of what is added: "sigma", the noise level; "learned", a curve over the noise level that
            starts as the noise level; "none".
        reference_position: where reference frames stand in time.
        reference_features: whether the context holds the reference's visual features beside the queries.
    """

    source_embedding: SourceEmbedding = "separate"
    source_scaling: SourceScaling = "sigma"
    reference_position: ReferencePosition = "last"
    reference_features: bool = True

    def __post_init__(self) -> None:
        """Raises ModelError for a choice that there is not, such as a damaged folder may name."""
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                said = f"no {name} {getattr(self, name)!r}"
                raise ModelError(said, f"choices: {', '.join(map(str, known))}")


class LearnedScale(nn.Module):
    """A learnable scalar of the noise level: piecewise linear between evenly spaced knots, σ itself at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.linspace(0.0, 1.0, KNOTS))

    def forward(self, sigma: Tensor) -> Tensor:
        """Scales at noise levels in 0-1, of any shape."""
        place = sigma.float().clamp(0, 1) * (KNOTS - 1)
        below = place.floor().clamp(max=KNOTS - 2)
        left = below.long()
        share = place - below
        return (self.values[left] * (1 - share) + self.values[left + 1] * share).to(sigma.dtype)


class CompositePatchEmbedding(nn.Module):
    """Patch embedding of noisy, source and reference latents: `base(noisy) + source(source) · scale | reference(ref)`.

    The added convolutions start at zero, so a new editor computes what its backbone computes. So does one with
    "shared" at σ = 0 only, and one with "channels" never: the added channels keep the convolution's own random
    start, for at zero they would be the same function as adding without scaling.

    Args:
        base: the backbone's own patch embedding (Conv3d, kernel = stride = patch).
        conditioning: see Conditioning.
    """

    def __init__(self, base: nn.Conv3d, conditioning: Conditioning | None = None) -> None:
        super().__init__()
        self.conditioning = conditioning or Conditioning()
        self.latent_channels = base.in_channels
        self.base = _widened(base) if self.conditioning.source_embedding == "channels" else base
        if self.conditioning.source_embedding == "separate":
            self.source = _zero_convolution(base)
        self.reference = _zero_convolution(base)
        if self.has_learned_scale:
            self.scale = LearnedScale().to(base.weight.device)

    @property
    def has_learned_scale(self) -> bool:
        return self.conditioning.source_embedding != "channels" and self.conditioning.source_scaling == "learned"

    def forward(self, packed: Tensor) -> Tensor:
        """Embeds what `pack` made: [B, 2·C + 2, F, H, W] -> [B, dim, F, H/p, W/p].

        Latents and result are in the weights' precision; the scale is applied in that of `packed`.
        """
        channels, precision = self.latent_channels, self.base.weight.dtype
        latents = packed[:, :channels].to(precision)
        source = packed[:, channels : 2 * channels].to(precision)
        patch = self.base.stride
        level, is_reference = packed[:, 2 * channels :, :, :: patch[1], :: patch[2]].chunk(2, dim=1)
        video = self._video(latents, source, level)
        if not bool(is_reference.any()):
            return video
        return torch.where(is_reference > 0, self.reference(latents), video)

    def _video(self, latents: Tensor, source: Tensor, level: Tensor) -> Tensor:
        kind = self.conditioning.source_embedding
        if kind == "channels":
            return cast(Tensor, self.base(torch.cat([latents, source], dim=1)))
        embedded = self.source(source) if kind == "separate" else self.base(source)
        return cast(Tensor, self.base(latents) + embedded * self._scale(level)).to(self.base.weight.dtype)

    def _scale(self, level: Tensor) -> Tensor:
        """What the source's embedding is multiplied with; 0 where there is no source."""
        scaling = self.conditioning.source_scaling
        if scaling == "sigma":
            return level.clamp(min=0)
        given = (level >= 0).to(level.dtype)
        return given if scaling == "none" else self.scale(level) * given


def _zero_convolution(like: nn.Conv3d) -> nn.Conv3d:
    convolution = _convolution(like, like.in_channels)
    nn.init.zeros_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def _widened(base: nn.Conv3d) -> nn.Conv3d:
    """A convolution of noisy and source latents side by side; its first half is `base`."""
    wide = _convolution(base, 2 * base.in_channels)
    with torch.no_grad():
        wide.weight[:, : base.in_channels] = base.weight
        if wide.bias is not None and base.bias is not None:
            wide.bias.copy_(base.bias)
    return wide


def _convolution(like: nn.Conv3d, channels: int) -> nn.Conv3d:
    return nn.Conv3d(
        channels,
        like.out_channels,
        cast("tuple[int, int, int]", like.kernel_size),
        stride=cast("tuple[int, int, int]", like.stride),
        device=like.weight.device,
        dtype=like.weight.dtype,
    )


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
    level = plane * NO_SOURCE if source is None else plane * sigma.to(noisy.dtype).view(-1, 1, 1, 1, 1)
    source = torch.zeros_like(noisy) if source is None else source.to(noisy.dtype)
    video = torch.cat([noisy, source, level, torch.zeros_like(plane)], dim=1)
    if reference is None:
        return video
    reference = reference.to(noisy.dtype)
    mark = reference.new_ones(batch, 1, *reference.shape[2:])
    extra = torch.cat([reference, torch.zeros_like(reference), torch.zeros_like(mark), mark], dim=1)
    return torch.cat([video, extra] if position == "last" else [extra, video], dim=2)


def drop_reference(output: Tensor, frames: int, position: ReferencePosition = "last") -> Tensor:
    """The video part of the transformer's output: [B, C, F + R, H, W] -> [B, C, F, H, W]."""
    return output[:, :, :frames] if position == "last" else output[:, :, -frames:]
