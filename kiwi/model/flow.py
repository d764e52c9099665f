"""Rectified flow: the straight path from data to noise, its training levels and its sampling schedule.

x_t = (1 - σ)·x0 + σ·ε, and the network predicts the velocity ε - x0 (paper, section 4.2, equation 2).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

TRAINING_STEPS = 1000
SHIFT = 5.0
Weighting = Literal["uniform", "bell"]


def shifted(sigmas: Tensor, shift: float = SHIFT) -> Tensor:
    """Moves noise levels towards 1, as the resolution asks for: s·σ / (1 + (s - 1)·σ)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def training_sigmas(shift: float = SHIFT) -> Tensor:
    """The 1,000 noise levels of training, from 1 down. float32 [1000]."""
    return shifted(torch.linspace(1.0, 0.0, TRAINING_STEPS + 1, dtype=torch.float64)[:-1], shift).float()


def sampling_sigmas(steps: int, shift: float = SHIFT) -> Tensor:
    """Noise levels of an Euler schedule of `steps` steps, ending in 0. float32 [steps + 1]."""
    return shifted(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64), shift).float()


def noised(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_t for data [B, ...], noise of the same shape, and levels [B]."""
    level = sigma.to(x0.dtype).view(-1, *([1] * (x0.dim() - 1)))
    return (1 - level) * x0 + level * noise


def bell_weights(timesteps: Tensor) -> Tensor:
    """The authors' loss weight over the timestep (0-1000): a bell around 500, mean 1 over the training levels."""
    levels = training_sigmas() * TRAINING_STEPS
    weights = _bell(levels)
    floor = weights.min()
    scale = TRAINING_STEPS / (weights - floor).sum()
    return (_bell(timesteps.float()) - floor) * scale


def _bell(timesteps: Tensor) -> Tensor:
    return torch.exp(-2 * ((timesteps - TRAINING_STEPS / 2) / TRAINING_STEPS) ** 2)
