"""Wan's autoencoder as a latent codec: the stock `AutoencoderKLWan`, its mean, normalised by its own statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kiwi.model.errors import ModelError


class WanCodec:
    """See LatentCodec. Wan 2.1: stride 8, 16 channels. Wan 2.2: stride 16, 48 channels. Both: 4 frames a step.

    Encoding is deterministic: the mean of the posterior, not a sample. Nothing of it is trained.

    Args:
        vae: an `AutoencoderKLWan`.
    """

    folder = "vae"

    def __init__(self, vae: Any) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.channels = int(vae.config.z_dim)
        self.spatial_stride = int(vae.config.scale_factor_spatial)
        self.temporal_stride = int(vae.config.scale_factor_temporal)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """See LatentCodec. Raises ModelError where the frames do not fit the layout."""
        _, colours, length, height, width = frames.shape
        if (
            colours != 3
            or (length - 1) % self.temporal_stride
            or height % self.spatial_stride
            or width % self.spatial_stride
        ):
            raise ModelError(
                f"Wan's autoencoder cannot encode {length} frames of {width}×{height} in {colours} colours",
                f"it takes {self.temporal_stride}k+1 RGB frames whose sides are multiples of {self.spatial_stride}",
            )
        latents: Tensor = self.vae.encode(frames.to(self.vae.device, self.vae.dtype)).latent_dist.mode().float()
        mean, deviation = self._statistics(latents)
        return (latents - mean) / deviation

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See LatentCodec. The result is within [-1, 1]."""
        mean, deviation = self._statistics(latents)
        raw = (latents.float() * deviation + mean).to(self.vae.device, self.vae.dtype)
        frames: Tensor = self.vae.decode(raw).sample.float()
        return frames

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The latents' mean and standard deviation by channel, [1, C, 1, 1, 1]."""
        config = self.vae.config
        mean, deviation = (
            torch.tensor(values, device=like.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, deviation

    def to(self, *place: Any) -> WanCodec:
        """Moves the autoencoder, in place, as `Module.to` does; diffusers' own warns of parts that this one lacks."""
        nn.Module.to(self.vae, *place)
        return self

    def save(self, folder: Path) -> None:
        self.vae.save_pretrained(folder, safe_serialization=True)

    @classmethod
    def load(cls, folder: Path) -> WanCodec:
        """Reads a diffusers folder of the autoencoder. Raises ModelError where it is none, or damaged."""
        from diffusers import AutoencoderKLWan

        from kiwi.model.folders import loaded_whole

        return cls(loaded_whole(AutoencoderKLWan, folder, "autoencoder"))
