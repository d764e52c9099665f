"""The deduplicator with CLIP: image features, compared exactly, all with all (paper, section 3.1, stage 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiwi.configuration import WeightsSettings
from kiwi.curation.curators.in_batches import in_batches
from kiwi.curation.curators.nearest import keep_first
from kiwi.curation.curators.protocols import Image
from kiwi.curation.curators.weights import device, dtype, loading, once, pretrained, version, within_memory

SETTING = "curation.clip"


@dataclass(frozen=True)
class ClipDeduplicator:
    """Features in batches; keeps the first of each set of near-duplicates. The weights load at the first image.

    Attributes:
        similarity: cosine from which two images are the same, in all aspects of a sample.
        memory_gb: GB that the comparison of all with all may take.
    """

    settings: WeightsSettings
    similarity: float
    memory_gb: float
    version: str
    loaded: Callable[[], Clip]
    name: str = "clip"
    measures: tuple[str, ...] = ()

    @classmethod
    def from_settings(cls, settings: WeightsSettings, similarity: float, memory_gb: float) -> ClipDeduplicator:
        return cls(settings, similarity, memory_gb, version("1", settings), once(lambda: load(settings)))

    def fingerprints(self, images: Iterable[Image]) -> Iterator[bytes]:
        """See protocols: the image's feature, brought to length 1, as float16.

        Raises:
            WeightsError: the weights cannot be had, or memory is short.
        """
        return in_batches(self._fingerprints, self.settings.batch, images)

    def _fingerprints(self, images: Sequence[Image]) -> list[bytes]:
        clip = self.loaded()
        with within_memory("describing images with CLIP", f"lower {SETTING}.batch (now {self.settings.batch})"):
            features = clip.features(images)
        return [feature.tobytes() for feature in features.astype("<f2")]

    def keep_first(self, fingerprints: Sequence[Sequence[bytes]]) -> NDArray[np.int64]:
        """See protocols, and nearest. Needs no weights, and no torch on the CPU."""
        place = "cpu" if self.settings.device == "cpu" or not _has_gpu() else device(SETTING, self.settings)
        with within_memory("comparing fingerprints", f"lower curation.duplicate_memory (now {self.memory_gb} GB)"):
            return keep_first(fingerprints, self.similarity, self.memory_gb, place)


@dataclass(frozen=True)
class Clip:
    """The model and its image processor."""

    model: Any
    processor: Any
    device: str
    dtype: Any

    def features(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Image features [images, width] of length 1."""
        import torch

        inputs = self.processor(images=list(images), return_tensors="pt")
        with torch.inference_mode():
            pixels = inputs["pixel_values"].to(self.device, self.dtype)
            features = self.model.get_image_features(pixel_values=pixels).pooler_output.float()
            unit = torch.nn.functional.normalize(features, dim=-1)
        return np.asarray(unit.cpu().numpy(), np.float32)


def load(settings: WeightsSettings) -> Clip:
    """CLIP on its device.

    Raises:
        WeightsError: see weights.
    """
    with loading(SETTING, settings.model):
        from transformers import CLIPImageProcessor, CLIPModel
    place, precision = device(SETTING, settings), dtype(settings)
    model = pretrained(CLIPModel, SETTING, settings, precision)  # first: it says best what is missing
    with loading(SETTING, settings.model):
        processor = CLIPImageProcessor.from_pretrained(settings.model, revision=settings.revision or "main")
        model.to(place)
    return Clip(model, processor, place, precision)


def _has_gpu() -> bool:
    """False also where torch is not installed: the comparison runs on the CPU without it."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()
