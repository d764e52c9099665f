"""The grounder that asks a vision-language model where the edit is: boxes in JSON, on the target's first frame.

Qwen3-VL counts in thousandths of the picture. Extreme formats are padded before they are shown, and boxes are taken
back to the frame. Before the first row a drawn pair with a known box is shown; a server that misses it is not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from kiwi.configuration import ServiceSettings, VlmSettings
from kiwi.curation.curators.protocols import Box, Grounding, GroundRequest, Image, RegionKind
from kiwi.curation.curators.vlm_asking import (
    PROMPTS,
    REVISION,
    Answer,
    Label,
    client_of,
    failed_as,
    mean,
    stumbled_over,
    version_of,
    whole,
)
from kiwi.dataset.schema import Reason, Task
from kiwi.services import Inquiry, Picture, Probe, Question, Reply, ask_about
from kiwi.services.canary import INSTRUCTION, MIN_IOU, SWITCH, canary_box, canary_pair, canary_wanted, overlap
from kiwi.services.pictures import Layout, layout
from kiwi.services.prompts import filled, read_prompts
from kiwi.services.subjects import Asker

PROMPT_OF: dict[RegionKind, str] = {"object": "ground_object", "foreground": "ground_foreground"}
MAX_ASPECT = 3.0
SCALE = 1000
MOST_BOXES = 8
Thousandths = Annotated[float, Field(ge=0, le=SCALE, allow_inf_nan=False), whole(0, SCALE)]


class Region(Answer):
    """One box, its corners in order."""

    bbox_2d: list[Thousandths] = Field(min_length=4, max_length=4)
    label: Label = ""

    @model_validator(mode="after")
    def _has_an_area(self) -> Region:
        x1, y1, x2, y2 = self.bbox_2d
        if x2 <= x1 or y2 <= y1:
            raise ValueError("the box has no area")
        return self


class Regions(Answer):
    """What is found, in an object, as some servers hold no reply to a bare list; a bare list is taken as well."""

    objects: list[Region] = Field(json_schema_extra={"maxItems": MOST_BOXES})

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, said: object) -> object:
        return {"objects": said} if isinstance(said, list) else said


@dataclass(frozen=True)
class VlmGrounder:
    """Of several boxes the largest is an object's, since a reference shows one object; a foreground is all of them, and
    its box goes round them. With several passes, each answer is one opinion: their boxes are averaged corner by corner,
    where most of them found something.

    Attributes:
        min_region, max_region: shares of the frame that the box may cover.
    """

    client: Asker
    settings: VlmSettings
    prompts: dict[str, str]
    min_region: float
    max_region: float
    version: str
    name: str = "vlm"
    measures: tuple[str, ...] = ("area", "boxes", "agreement", "passes")

    @classmethod
    def from_settings(
        cls,
        settings: VlmSettings,
        service: ServiceSettings,
        cache: str | None,
        min_region: float,
        max_region: float,
    ) -> VlmGrounder:
        """Reads the prompts, and nothing else. `cache`: where replies are kept; None keeps none."""
        prompts = read_prompts(settings.prompt, PROMPTS, tuple(PROMPT_OF.values()))
        version = version_of(REVISION, settings, prompts)
        probe = canary(settings, prompts) if canary_wanted() else None
        client = client_of("ground", version, service, cache, probe)
        return cls(client, settings, prompts, min_region, max_region, version)

    def ground(self, requests: Iterable[GroundRequest]) -> Iterator[Grounding]:
        """See protocols."""
        return ask_about(self.client, requests, self._inquiry, lambda error: Grounding(**stumbled_over(error)))

    def _inquiry(self, request: GroundRequest) -> Inquiry[Grounding]:
        kind: RegionKind = "foreground" if request.task is Task.BACKGROUND_CHANGE else "object"
        shown = layout_of(request.target, self.settings)
        pictures = request.source, request.target
        asked = question(pictures, request.prompt, self.prompts[PROMPT_OF[kind]], shown, self.settings)
        return Inquiry((asked,), lambda replies: self._judged(replies[0], shown, kind))

    def _judged(self, reply: Reply, shown: Layout, kind: RegionKind) -> Grounding:
        if reply.failure is not None:
            return Grounding(**failed_as(reply.failure), kind=kind)
        opinions = [boxes_of(answer, shown) for answer in reply.values]
        found = [_chosen(boxes, kind) for boxes in opinions if boxes]
        measures = {
            "boxes": mean([float(len(boxes)) for boxes in opinions]),
            "passes": float(len(opinions)),
            "agreement": len(found) / len(opinions),
        }
        if 2 * len(found) <= len(opinions):
            return Grounding(measures, Reason.NO_REGION, f"the model sees no {kind} that the edit is about", None, kind)
        box = tuple(mean([box[corner] for box in found]) for corner in range(4))
        assert len(box) == 4
        return self._bounded(box, measures, kind)

    def _bounded(self, box: Box, measures: dict[str, float], kind: RegionKind) -> Grounding:
        area = (box[2] - box[0]) * (box[3] - box[1])
        measures = {**measures, "area": area}
        if area < self.min_region:
            detail = f"{area:.4f} of the frame, smallest is {self.min_region}"
            return Grounding(measures, Reason.REGION_TOO_SMALL, detail, box, kind)
        if area > self.max_region:
            detail = f"{area:.2f} of the frame, largest is {self.max_region}"
            return Grounding(measures, Reason.REGION_TOO_LARGE, detail, box, kind)
        return Grounding(measures, None, "", box, kind)


def layout_of(frame: Image, settings: VlmSettings) -> Layout:
    """How a frame is shown: padded to at most MAX_ASPECT."""
    height, width = frame.shape[:2]
    return layout(height, width, settings.image_pixels, max_aspect=MAX_ASPECT)


def question(
    pictures: tuple[Image, Image], instruction: str, prompt: str, shown: Layout, settings: VlmSettings
) -> Question:
    """Where is it, on the second of two pictures?"""
    source, target = (Picture(picture, shown.draw) for picture in pictures)
    parts = (source, target, filled(prompt, {"instruction": instruction}))
    asked = settings
    return Question(parts, asked.model, Regions, asked.temperature, asked.seed, asked.max_tokens, asked.passes)


def boxes_of(answer: Regions, shown: Layout) -> list[Box]:
    """The boxes in shares of the frame. What lies in the padding, beside the frame, is cut off."""
    height, width = shown.canvas
    boxes = []
    for region in answer.objects:
        x1, y1, x2, y2 = region.bbox_2d
        first = shown.share_of_frame(x1 * width / SCALE, y1 * height / SCALE)
        last = shown.share_of_frame(x2 * width / SCALE, y2 * height / SCALE)
        if last[0] > first[0] and last[1] > first[1]:
            boxes.append((*first, *last))
    return boxes


def canary(settings: VlmSettings, prompts: dict[str, str]) -> Probe:
    """The drawn pair, asked about as a row would be; the server is not used where the box that it gives is off."""
    source, target = canary_pair()
    shown = layout_of(target, settings)
    asked = question((source, target), INSTRUCTION, prompts[PROMPT_OF["object"]], shown, settings)

    def verdict(reply: Reply) -> tuple[str, str] | None:
        remedy = f"check its version, its model and how it counts coordinates; {SWITCH}=off uses it all the same"
        if reply.failure is not None:
            return f"{settings.model} gave no box for the canary picture: {reply.failure.detail}", remedy
        for answer in reply.values:
            boxes = boxes_of(answer, shown)
            met = overlap(_chosen(boxes, "object"), canary_box()) if boxes else 0.0
            if met < MIN_IOU:
                said = f"the grounding of {settings.model} is off: its box meets the canary's by {met:.2f} (IoU)"
                return f"{said}, needed is {MIN_IOU}", remedy
        return None

    return Probe(asked, verdict)


def _chosen(boxes: list[Box], kind: RegionKind) -> Box:
    if kind == "object":
        return max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)
