"""What a training says of itself: losses by kind and noise band, speed, utilisation, waiting, memory."""

from __future__ import annotations

import resource
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

BANDS = (0.0, 0.5, 0.75, 0.9, 1.0)  # of the noise level; about a quarter of the shifted levels lies in each


@dataclass
class Window:
    """Sums over the steps since the last log line."""

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    samples: int = 0
    tokens: int = 0
    operations: float = 0.0
    losses: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    bands: list[list[float]] = field(default_factory=lambda: [[0.0, 0.0] for _ in BANDS[1:]])

    def add(self, kind: str, loss: float, bands: list[float], samples: int, tokens: int, operations: float) -> None:
        """One step; `bands` are sums and counts of `band_sums`, over all ranks."""
        self.steps += 1
        self.samples += samples
        self.tokens += tokens
        self.operations += operations
        self.losses[kind].append(loss)
        for number, band in enumerate(self.bands):
            band[0] += bands[2 * number]
            band[1] += bands[2 * number + 1]

    def figures(self, norm: float, peak: float | None) -> dict[str, float]:
        """The log line. Operations and their peak are of one rank, samples and tokens of all."""
        every = [loss for losses in self.losses.values() for loss in losses]
        said = {"loss": sum(every) / len(every), "gradient_norm": norm}
        said |= {f"loss_{kind}": sum(own) / len(own) for kind, own in sorted(self.losses.items())}
        for low, high, (total, count) in zip(BANDS, BANDS[1:], self.bands, strict=False):
            if count:
                said[f"loss_sigma_{low:g}_{high:g}"] = total / count
        seconds = max(self.seconds, 1e-9)
        said |= {
            "samples_per_second": self.samples / seconds,
            "tokens_per_second": self.tokens / seconds,
            "tflops": self.operations / seconds / 1e12,
            "data_share": self.waited / seconds,
            "memory_gb": memory_gb(),
        }
        if peak is not None:
            said["mfu"] = said["tflops"] / peak
        return said


def band_sums(by_sample: Tensor, sigma: Tensor) -> Tensor:
    """[2 · bands]: of each band of noise levels the sum of the samples' losses, and their number. float64."""
    edges = torch.tensor(BANDS[1:-1], device=sigma.device)
    band = torch.bucketize(sigma, edges)
    inside = torch.nn.functional.one_hot(band, len(BANDS) - 1).double()
    sums = (inside * by_sample.double()[:, None]).sum(dim=0)
    return torch.stack([sums, inside.sum(dim=0)], dim=1).flatten()


def memory_gb() -> float:
    """The most memory that was held so far: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
