"""The classical grounder: finds the edit by comparing first frames. It does not read the instruction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kiwi.curation.curators.classical_change import (
    VISIBLE,
    box_of,
    change_map,
    changed_region,
    kept_foreground,
    kept_structure,
    kind_of_change,
)
from kiwi.curation.curators.one_by_one import one_by_one
from kiwi.curation.curators.protocols import Grounding, GroundRequest, Image, Mask, RegionKind
from kiwi.dataset.schema import Reason, Task


@dataclass(frozen=True)
class ClassicalGrounder:
    """Registration, blurred Lab difference, median + 6 MAD, largest parts; the inverse for background changes.

    Attributes:
        min_region, max_region: shares of the frame that an edited object's region may cover.
    """

    min_region: float
    max_region: float
    name: str = "classical"
    version: str = "2"
    measures: tuple[str, ...] = ("area", "median_change", "changed_share", "kept_structure")

    def ground(self, requests: Iterable[GroundRequest]) -> Iterator[Grounding]:
        """See protocols."""
        return one_by_one(self._ground, Grounding, requests)

    def _ground(self, request: GroundRequest) -> Grounding:
        return self.ground_pair(request.source, request.target, request.task)

    def ground_pair(self, source: Image, target: Image, task: Task) -> Grounding:
        """The edited object's box, or for a background change the kept foreground's."""
        change = change_map(source, target)
        visible = change.delta > VISIBLE
        kind = kind_of_change(change)
        measures = {
            "median_change": change.median,
            "changed_share": float(visible.mean()),
            "kept_structure": kept_structure(change, visible),
        }
        if kind == "none":
            return Grounding(measures, Reason.NO_REGION, "the first frames show no change")
        if kind == "global":
            detail = f"the whole frame changed (median {change.median:.1f} Lab) and nothing in it was left alone"
            return Grounding(measures, Reason.GLOBAL_CHANGE, detail)
        background = task is Task.BACKGROUND_CHANGE
        if background and measures["kept_structure"] > 0.8 and kind == "local":
            return Grounding(measures, Reason.GLOBAL_CHANGE, "colours changed, but the background is the same drawing")
        region = kept_foreground(change) if background else changed_region(change)
        return self._judged(region, measures, "foreground" if background else "object")

    def _judged(self, region: Mask, measures: dict[str, float], kind: RegionKind) -> Grounding:
        if not region.any():
            return Grounding(measures, Reason.NO_REGION, f"no connected {kind} found")
        height, width = region.shape
        x1, y1, x2, y2 = box_of(region)
        area = float(region.mean())
        measures = {**measures, "area": area}
        box = (x1 / width, y1 / height, x2 / width, y2 / height)
        if area < self.min_region:
            detail = f"{area:.4f} of the frame, smallest is {self.min_region}"
            return Grounding(measures, Reason.REGION_TOO_SMALL, detail, box, kind)
        if area > self.max_region:
            detail = f"{area:.2f} of the frame, largest is {self.max_region}"
            return Grounding(measures, Reason.REGION_TOO_LARGE, detail, box, kind)
        return Grounding(measures, None, "", box, kind)
