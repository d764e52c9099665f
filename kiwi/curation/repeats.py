"""Looks for near-duplicates in a finished dataset, with the deduplicator that made it, where that needs no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiwi.configuration import CurationSettings
from kiwi.curation.curators import registry
from kiwi.curation.curators.protocols import Deduplicator
from kiwi.media import decode

_SETTINGS = ("deduplicator", "duplicate_distance", "duplicate_scope", "pixel_budget")


@dataclass
class RepeatedReferences:
    """Fingerprints of the quadruplets seen so far, some hundred bytes each, compared all with all at the end.

    Attributes:
        settings: those under which the dataset was made.
    """

    settings: CurationSettings
    deduplicator: Deduplicator
    _positions: list[int] = field(default_factory=list)
    _prints: list[list[bytes]] = field(default_factory=lambda: [[], []])

    def see(self, position: int, reference: NDArray[np.uint8], target: bytes) -> None:
        """Takes note of one quadruplet: its reference uint8 [H,W,3], and where both must repeat its first frame."""
        images = [reference]
        if self.settings.duplicate_scope == "quadruplet":
            images.append(decode(target, pixel_budget=self.settings.pixel_budget, max_frames=1).frames[0])
        self._positions.append(position)
        for held, fingerprint in zip(self._prints, self.deduplicator.fingerprints(images), strict=False):
            held.append(fingerprint)

    def found(self) -> list[tuple[int, int]]:
        """(position, position of the earlier one that it repeats), in the order of positions."""
        if not self._positions:
            return []
        repeats = self.deduplicator.keep_first([held for held in self._prints if held])
        pairs = [(place, int(earlier)) for place, earlier in enumerate(repeats) if earlier >= 0]
        return [(self._positions[later], self._positions[earlier]) for later, earlier in pairs]


def repeats_of(manifest: Mapping[str, Any]) -> RepeatedReferences | str:
    """What looks for repetitions in the dataset of a manifest; or why nothing can."""
    made_by = str(manifest.get("curators", {}).get("deduplicate", ""))
    said = manifest.get("parameters", {}).get("curation", {})
    if not made_by or "deduplicator" not in said:
        return "the dataset does not say which deduplicator made it"
    if said["deduplicator"] != "classical":
        return f"{made_by} needs weights, or another machine"
    settings = CurationSettings.model_validate({name: said[name] for name in _SETTINGS if name in said})
    deduplicator = registry.deduplicator(settings)
    mine = f"{deduplicator.name}-{deduplicator.version}"
    if mine != made_by:
        return f"made by {made_by}, and this is {mine}"
    return RepeatedReferences(settings, deduplicator)
