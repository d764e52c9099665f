"""I3D's features for FVD: the network by its published layout, weights from a safetensors file of the user's.

Carreira and Zisserman 2017: Inception-v1 with its kernels inflated over time; FVD (Unterthiner et al. 2018) takes its
400 Kinetics logits. No weights come with kiwi. Tensor names are those of the widespread PyTorch conversion of
DeepMind's checkpoint (`Mixed_3b.b1a.conv3d.weight`, …), so a state dictionary of it needs no renaming.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from kiwi.curation.curators.weights import once
from kiwi.metrics.frechet import OF_FVD
from kiwi.metrics.results import Failure, Frames, MetricError, check_clip

SIDE = 224
WINDOW = 16  # frames of one feature
SHORTEST = 9  # frames that leave two steps of time for the last mean
CLASSES = 400
Size = tuple[int, int, int]  # time, height, width

# Channels of a mixed block: 1x1x1; 1x1x1 and 3x3x3; 1x1x1 and 3x3x3; pool and 1x1x1.
MIXED: dict[str, tuple[int, ...]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOLED_BEFORE: dict[str, tuple[Size, Size]] = {
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


def padded(video: Tensor, kernel: Size, stride: Size) -> Tensor:
    """`SAME` padding with zeros, the odd one at the end, of [B, C, T, H, W]."""
    sides: list[int] = []
    for length, wide, step in reversed(list(zip(video.shape[2:], kernel, stride, strict=True))):
        missing = max((-(-length // step) - 1) * step + wide - length, 0)
        sides += [missing // 2, missing - missing // 2]
    return functional.pad(video, sides)


def pooled(video: Tensor, kernel: Size, stride: Size) -> Tensor:
    """The greatest value under the kernel; zeros of the padding count."""
    return functional.max_pool3d(padded(video, kernel, stride), kernel, stride)


class Unit(nn.Module):
    """Convolution, batch norm and ReLU; the last one of the network is a convolution with a bias alone."""

    def __init__(self, inside: int, outside: int, side: int = 1, step: int = 1, last: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride = (side, side, side), (step, step, step)
        self.conv3d = nn.Conv3d(inside, outside, self.kernel, self.stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(outside, eps=1e-3)

    def forward(self, video: Tensor) -> Tensor:
        found = cast("Tensor", self.conv3d(padded(video, self.kernel, self.stride)))
        return found if self.bn is None else functional.relu(self.bn(found))


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, inside: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit(inside, channels[0])
        self.b1a, self.b1b = Unit(inside, channels[1]), Unit(channels[1], channels[2], 3)
        self.b2a, self.b2b = Unit(inside, channels[3]), Unit(channels[3], channels[4], 3)
        self.b3b = Unit(inside, channels[5])
        self.outside = channels[0] + channels[2] + channels[4] + channels[5]

    def forward(self, video: Tensor) -> Tensor:
        branches = (
            self.b0(video),
            self.b1b(self.b1a(video)),
            self.b2b(self.b2a(video)),
            self.b3b(pooled(video, (3, 3, 3), (1, 1, 1))),
        )
        return torch.cat(branches, dim=1)


class I3D(nn.Module):
    """[B, 3, T, 224, 224] in -1 to 1 -> logits [B, 400], their mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        width = 192
        for name, channels in MIXED.items():
            block = Mixed(width, channels)
            self.add_module(name, block)
            width = block.outside
        self.logits = Unit(width, CLASSES, last=True)

    def forward(self, video: Tensor) -> Tensor:
        found = pooled(self.Conv3d_1a_7x7(video), (1, 3, 3), (1, 2, 2))
        found = pooled(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(found)), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name in POOLED_BEFORE:
                found = pooled(found, *POOLED_BEFORE[name])
            found = self.get_submodule(name)(found)
        means = functional.avg_pool3d(found, (2, 7, 7), stride=1)
        return cast("Tensor", self.logits(means)).mean(dim=(2, 3, 4))


@dataclass(frozen=True)
class I3DFeatures:
    """See frechet.VideoFeatures: one feature for every 16 frames (or a shorter clip, whole)."""

    loaded: Callable[[], I3D]
    name: str = OF_FVD

    def features(self, frames: Frames) -> NDArray[np.float32]:
        """[windows, 400]. What is left over at the end is left out.

        Raises MetricError: TOO_SHORT for a clip under nine frames, WEIGHTS.
        """
        check_clip(frames, "the clip")
        if len(frames) < SHORTEST:
            raise MetricError(Failure.TOO_SHORT, f"{len(frames)} frames: I3D needs {SHORTEST}", "give longer clips")
        network = self.loaded()
        device = next(network.parameters()).device
        length = min(WINDOW, len(frames))
        rows = []
        with torch.inference_mode():
            for start in range(0, len(frames) - length + 1, length):
                window = torch.from_numpy(np.array(frames[start : start + length])).to(device)
                rows.append(network(as_seen(window))[0].float().cpu().numpy())
        return np.stack(rows)


def as_seen(window: Tensor) -> Tensor:
    """Frames uint8 [T, H, W, 3] as the network wants them: [1, 3, T, 224, 224], bilinear, -1 to 1."""
    small = functional.interpolate(
        window.permute(0, 3, 1, 2).float(), (SIDE, SIDE), mode="bilinear", align_corners=False
    )
    return (small / 127.5 - 1).permute(1, 0, 2, 3)[None]


def i3d_features(weights: Path) -> I3DFeatures:
    """I3D with the weights of a safetensors file; nothing is read yet."""
    return I3DFeatures(once(lambda: load_i3d(weights)))


def load_i3d(weights: Path) -> I3D:
    """The network on the device at hand. Raises MetricError(WEIGHTS) for a file that is none or does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = I3D()
    try:
        network.load_state_dict(load_file(str(weights)))
    except FileNotFoundError as error:
        raise MetricError(Failure.WEIGHTS, f"there is no file {weights}", "name I3D's weights with --i3d") from error
    except (OSError, SafetensorError) as error:
        said = f"{weights} is no safetensors file: {error}"
        raise MetricError(Failure.WEIGHTS, said, "convert it as docs/metrics.md says") from error
    except RuntimeError as error:
        first = str(error).strip().splitlines()[1:2] or [str(error)]
        said = f"{weights} holds other weights than I3D's: {first[0].strip()[:200]}"
        raise MetricError(Failure.WEIGHTS, said, "give the RGB network for Kinetics-400") from error
    return network.eval().to("cuda" if torch.cuda.is_available() else "cpu")
