"""From noise to latents along the learned velocity: Euler steps, or diffusers' UniPC, over the same noise levels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kiwi.model.flow import noised, sampling_sigmas

Sampler = Literal["euler", "unipc"]
SAMPLERS: tuple[Sampler, ...] = ("euler", "unipc")
Velocity = Callable[[Tensor, Tensor], Tensor]


def denoised(
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    sampler: Sampler = "euler",
    *,
    known: Tensor | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Tensor:
    """Latents [B, C, F, H, W] from `noise` of that shape.

    Args:
        velocity: (latents, noise level as a scalar) -> velocity.
        known: the first frames of the result, [B, C, f, H, W]; at each level they are what the noise makes of them.
        progress: called after each step.
    """
    follow = _unipc_steps(steps) if sampler == "unipc" else _euler_step
    latents = noise
    for now, following in itertools.pairwise(sampling_sigmas(steps)):
        latents = _with_known(latents, known, noise, now)
        latents = follow(velocity(latents, now), latents, now, following)
        progress()
    return _with_known(latents, known, noise, torch.zeros(()))


def _euler_step(velocity: Tensor, latents: Tensor, now: Tensor, following: Tensor) -> Tensor:
    return latents + (following - now) * velocity


def _unipc_steps(steps: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """UniPC of second order over our noise levels; it remembers the steps before, so each sampling has its own."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    scheduler.set_timesteps(sigmas=sampling_sigmas(steps)[:-1].numpy())
    scheduler.set_begin_index(0)
    places = iter(scheduler.timesteps)

    def follow(velocity: Tensor, latents: Tensor, now: Tensor, following: Tensor) -> Tensor:
        result: Tensor = scheduler.step(velocity, next(places), latents, return_dict=False)[0]
        return result

    return follow


def _with_known(latents: Tensor, known: Tensor | None, noise: Tensor, sigma: Tensor) -> Tensor:
    if known is None:
        return latents
    count = known.shape[2]
    start = noised(known, noise[:, :, :count], sigma.to(noise.device).expand(len(noise)))
    return torch.cat([start, latents[:, :, count:]], dim=2)
