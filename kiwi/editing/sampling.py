"""From noise to latents along the learned velocity: Euler steps, or diffusers' UniPC, over the same noise levels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kiwi.model.flow import SHIFT, noised, sampling_sigmas

Sampler = Literal["euler", "unipc"]
SAMPLERS: tuple[Sampler, ...] = ("euler", "unipc")
Velocity = Callable[[Tensor, Tensor], Tensor]
StepLook = Callable[[int, Tensor, Tensor], Tensor]


def denoised(
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    sampler: Sampler = "euler",
    *,
    shift: float = SHIFT,
    known: Tensor | None = None,
    progress: Callable[[], None] = lambda: None,
    look: StepLook | None = None,
) -> Tensor:
    """Latents [B, C, F, H, W] from `noise` of that shape.

    Args:
        velocity: (latents, noise level as a scalar) -> velocity.
        shift: of the noise levels.
        known: the first frames of the result, [B, C, f, H, W]; at each level they are what the noise makes of them.
        progress: called after each step.
        look: called with (step, its noise level, the latents after it); what it returns is gone on with.
    """
    sigmas = sampling_sigmas(steps, shift)
    follow = _unipc_steps(sigmas) if sampler == "unipc" else _euler_step
    latents = noise
    for step, (now, following) in enumerate(itertools.pairwise(sigmas)):
        latents = _with_known(latents, known, noise, now)
        latents = follow(velocity(latents, now), latents, now, following)
        if look is not None:
            latents = look(step, now, latents)
        progress()
    return _with_known(latents, known, noise, torch.zeros(()))


def _euler_step(velocity: Tensor, latents: Tensor, now: Tensor, following: Tensor) -> Tensor:
    return latents + (following - now) * velocity


def _unipc_steps(sigmas: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """UniPC of second order over our noise levels; it remembers the steps before, so each sampling has its own."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    scheduler.set_timesteps(sigmas=sigmas[:-1].numpy())
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
