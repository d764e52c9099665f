"""Latent codecs: what turns frames into the latents that the transformer edits, and back.

`TransformCodec` is fixed: a discrete cosine transform over blocks of pixels, in the causal 1 + 4k layout of Wan's
autoencoder. It holds no learned weights, so that the tiny preset works where no released autoencoder can be had.
"""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kiwi.model.errors import ModelError
from kiwi.model.folders import read_json

BLOCK = 8
GROUP = 4
CHANNELS = 48
TABLE = "transform_codec.json"


class LatentCodec(Protocol):
    """Encodes 4k + 1 frames in [-1, 1] to normalised latents, and decodes them, on its own device."""

    channels: int
    spatial_stride: int
    temporal_stride: int
    folder: str  # its sub-folder in a model folder

    def encode(self, frames: Tensor) -> Tensor:
        """[B, 3, 4k + 1, H, W] -> [B, C, k + 1, H/stride, W/stride]."""

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, k + 1, h, w] -> [B, 3, 4k + 1, H, W]."""

    def to(self, *place: Any) -> Any:
        """Moves what it computes with to a device, in place, as `Module.to` does. Returns itself."""

    def save(self, folder: Path) -> None:
        """Writes what `load` of its class reads."""


def _cosines(size: int) -> Tensor:
    """Orthonormal DCT-II matrix, [frequency, sample]."""
    samples = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (samples[None, :] + 0.5) * samples[:, None])
    rows[0] *= math.sqrt(0.5)
    return rows * math.sqrt(2 / size)


def _opponent() -> Tensor:
    """Orthonormal luminance, red-blue and green-magenta axes, [axis, RGB]."""
    axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
    return torch.nn.functional.normalize(axes, dim=1)


def _basis(depth: int) -> Tensor:
    """All coefficients of one block, [3·depth·8·8, 3·depth·8·8], rows orthonormal."""
    space = _cosines(BLOCK)
    full = torch.einsum("ax,bt,cy,dz->abcdxtyz", _opponent(), _cosines(depth), space, space)
    count = 3 * depth * BLOCK * BLOCK
    return full.reshape(count, count)


def _blocks(frames: Tensor, depth: int) -> Tensor:
    """[B, 3, depth·k, H, W] -> [B, k, H/8, W/8, 3·depth·8·8]."""
    batch, colours, length, height, width = frames.shape
    cut = frames.reshape(batch, colours, length // depth, depth, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def _frames(blocks: Tensor, depth: int) -> Tensor:
    """The inverse of `_blocks`."""
    batch, groups, rows, columns, _ = blocks.shape
    cut = blocks.reshape(batch, groups, rows, columns, 3, depth, BLOCK, BLOCK)
    cut = cut.permute(0, 4, 1, 5, 2, 6, 3, 7)
    return cut.reshape(batch, 3, groups * depth, rows * BLOCK, columns * BLOCK)


class TransformCodec:
    """The fixed transform codec: 8×8 pixels of the first frame, 4×8×8 of the others, 48 channels each.

    The coefficients kept are those of highest variance over procedural clips; each is divided by the square root of
    its standard deviation (a full whitening would give weak coefficients as much of the loss as strong ones), and
    all are brought to a mean variance of 1. The table that says so is data: `fit` makes it again.

    Args:
        table: {"first": {...}, "later": {...}}, each with `index`, `mean` and `scale` of 48 coefficients.
    """

    channels = CHANNELS
    spatial_stride = BLOCK
    temporal_stride = GROUP
    folder = "codec"

    def __init__(self, table: dict[str, dict[str, list[float]]] | None = None) -> None:
        self.table = table or json.loads(resources.files("kiwi.model").joinpath(TABLE).read_text())
        self._first = _Transform.of(self.table["first"], 1)
        self._later = _Transform.of(self.table["later"], GROUP)

    def encode(self, frames: Tensor) -> Tensor:
        """See LatentCodec. Raises ModelError where the frames do not fit the layout."""
        _, colours, length, height, width = frames.shape
        if colours != 3 or (length - 1) % GROUP or height % BLOCK or width % BLOCK:
            raise ModelError(
                f"the transform codec cannot encode {length} frames of {width}×{height} in {colours} colours",
                f"it takes 4k+1 RGB frames whose sides are multiples of {BLOCK}",
            )
        frames = frames.to(self._first.rows.device)
        parts = [self._first.forward(_blocks(frames[:, :, :1], 1))]
        if length > 1:
            parts.append(self._later.forward(_blocks(frames[:, :, 1:], GROUP)))
        return torch.cat(parts, dim=1).permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """See LatentCodec. The result is not clamped."""
        blocks = latents.to(self._first.rows.device).permute(0, 2, 3, 4, 1)
        parts = [_frames(self._first.inverse(blocks[:, :1]), 1)]
        if latents.shape[2] > 1:
            parts.append(_frames(self._later.inverse(blocks[:, 1:]), GROUP))
        return torch.cat(parts, dim=2)

    def to(self, *place: Any) -> TransformCodec:
        """See LatentCodec. A precision is passed over: the codec computes in float32, which costs it little."""
        device = torch.empty(0, device=self._first.rows.device).to(*place).device
        self._first, self._later = self._first.on(device), self._later.on(device)
        return self

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"_class_name": "TransformCodec", "table": self.table}))

    @classmethod
    def load(cls, folder: Path) -> TransformCodec:
        """Reads what `save` wrote. Raises ModelError where it is not there, or no table of 48 coefficients."""
        try:
            return cls(read_json(folder / "config.json")["table"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"no codec in {folder}: {error}", "is this a kiwi model folder?") from error


class _Transform:
    """48 coefficients of one block size: what is kept, its mean, and its scale."""

    def __init__(self, rows: Tensor, mean: Tensor, scale: Tensor) -> None:
        self.rows, self.mean, self.scale = rows, mean, scale

    @classmethod
    def of(cls, table: dict[str, list[float]], depth: int) -> _Transform:
        index = torch.tensor(table["index"], dtype=torch.long)
        mean, scale = (torch.tensor(table[name], dtype=torch.float32) for name in ("mean", "scale"))
        if not index.shape == mean.shape == scale.shape == (CHANNELS,):
            raise ValueError(f"a table of {len(index)}, {len(mean)} and {len(scale)} coefficients, not {CHANNELS}")
        return cls(_basis(depth)[index].float(), mean, scale)

    def on(self, device: torch.device) -> _Transform:
        return _Transform(self.rows.to(device), self.mean.to(device), self.scale.to(device))

    def forward(self, blocks: Tensor) -> Tensor:
        return (blocks.float() @ self.rows.T - self.mean) / self.scale

    def inverse(self, coefficients: Tensor) -> Tensor:
        return (coefficients.float() * self.scale + self.mean) @ self.rows


def fit(clips: Tensor) -> dict[str, dict[str, list[float]]]:
    """Chooses the coefficients and scales from clips [N, 3, 4k + 1, H, W] in [-1, 1]."""
    return {
        "first": _fit(_blocks(clips[:, :, :1], 1), 1),
        "later": _fit(_blocks(clips[:, :, 1:], GROUP), GROUP),
    }


def _fit(blocks: Tensor, depth: int) -> dict[str, list[float]]:
    coefficients = blocks.flatten(0, 3).double() @ _basis(depth).T
    deviation, mean = torch.std_mean(coefficients, dim=0)
    index = torch.argsort(deviation, descending=True, stable=True)[:CHANNELS]
    scale = deviation[index].sqrt()
    scale = scale * ((deviation[index] / scale) ** 2).mean().sqrt()
    return {
        "index": index.tolist(),
        "mean": [round(value, 6) for value in mean[index].tolist()],
        "scale": [round(value, 6) for value in scale.tolist()],
    }
