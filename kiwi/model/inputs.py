"""What the editor sees of clips and images: sizes that fit the model, frames for the language model, references."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kiwi.media.resizing import fit_on_white, resize_frames

Frames = npt.NDArray[np.uint8]
MAX_ASPECT = 4.0


def fit_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """The size of about `side`² pixels that keeps the aspect, in multiples of `multiple`. Returns (height, width)."""
    aspect = min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)
    tall = max(1, round(side / math.sqrt(aspect) / multiple))
    wide = max(1, round(side * math.sqrt(aspect) / multiple))
    return tall * multiple, wide * multiple


def frames_to_tensor(frames: Frames) -> Tensor:
    """uint8 [B, T, H, W, 3] -> float32 [B, 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def vision_frames(clip: Frames, count: int, side: int) -> Frames:
    """What the language model sees of a clip: `count` evenly spaced frames of side × side. [count, side, side, 3]."""
    places = np.linspace(0, len(clip) - 1, count).round().astype(int)
    return resize_frames(clip[places], side, side)


def vision_reference(reference: Frames, side: int) -> Frames:
    """A reference for the language model: on white, filling the canvas. [side, side, 3]."""
    return fit_on_white(reference, side, side, enlarge=True)


def latent_reference(reference: Frames, height: int, width: int) -> Frames:
    """A reference for the transformer: on white, in its own size where it fits. [height, width, 3]."""
    return fit_on_white(reference, height, width, enlarge=False)
