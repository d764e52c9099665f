"""How references are varied in training: fitted inside a white canvas at a random scale, centred."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kiwi.media.resizing import resize_frames

WHITE = 255


def shrunk_references(
    canvases: Tensor, bounds: tuple[float, float], seed: tuple[int, ...], numbers: list[int]
) -> Tensor:
    """References at random scales on white.

    Args:
        canvases: uint8 [B, H, W, 3], fitted inside white already; shrinking the canvas shrinks what is on it.
        bounds: least and most scale; the authors' are 0.7 and 1.
        numbers: of the samples in the order of training; with `seed` they decide the scales.

    Returns:
        uint8 [B, H, W, 3].
    """
    return torch.stack(
        [
            torch.from_numpy(_shrunk(canvas.numpy(), np.random.default_rng([*seed, number]).uniform(*bounds)))
            for canvas, number in zip(canvases, numbers, strict=True)
        ]
    )


def _shrunk(canvas: np.ndarray, scale: float) -> np.ndarray:
    height, width = canvas.shape[:2]
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    if inner == (height, width):
        return canvas
    out = np.full_like(canvas, WHITE)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    out[top : top + inner[0], left : left + inner[1]] = resize_frames(canvas[None], *inner)[0]
    return out
