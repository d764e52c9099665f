"""The segmenter with SAM3: one box, one object, outlined on the target's first frame.

It is transformers' Sam3TrackerModel. Sam3Model takes a box as an example of a concept and returns every instance of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kiwi.configuration import WeightsSettings
from kiwi.curation.curators.in_batches import judged_in_batches
from kiwi.curation.curators.protocols import Box, Mask, Segmentation, SegmentRequest
from kiwi.curation.curators.weights import device, dtype, loading, once, pretrained, version, within_memory
from kiwi.dataset.schema import Reason

SETTING = "curation.sam3"
SMALLEST_MASK = 16  # pixels
LARGEST_AREA = 0.95


@dataclass(frozen=True)
class Sam3Segmenter:
    """SAM3 with a box prompt, in batches of frames of whatever sizes. The weights load at the first request."""

    settings: WeightsSettings
    version: str
    loaded: Callable[[], Sam3]
    name: str = "sam3"
    measures: tuple[str, ...] = ("area", "iou", "object_score", "agreement")

    @classmethod
    def from_settings(cls, settings: WeightsSettings) -> Sam3Segmenter:
        return cls(settings, version("1", settings), once(lambda: load(settings)))

    def segment(self, requests: Iterable[SegmentRequest]) -> Iterator[Segmentation]:
        """See protocols. MASK_DEGENERATE where the mask is empty or the whole frame.

        Measures: `area` of the frame; `iou`, which the model expects of its mask; `object_score`, its probability that
        the box holds an object; `agreement`, the overlap (IoU) of the box with the mask's own box.

        Raises:
            WeightsError: the weights cannot be had, or memory is short.
        """
        return judged_in_batches(self._segment, Segmentation, self.settings.batch, requests)

    def _segment(self, requests: Sequence[SegmentRequest]) -> list[Segmentation]:
        sam3 = self.loaded()
        boxes = [_pixels(request) for request in requests]
        asked = [box or (0.0, 0.0, 1.0, 1.0) for box in boxes]  # a batch stays a batch; those answers are not looked at
        with within_memory("segmenting with SAM3", f"lower {SETTING}.batch (now {self.settings.batch})"):
            found = sam3.outline([request.target for request in requests], asked)
        answers = zip(requests, boxes, found, strict=True)
        return [_no_box(request) if box is None else _answer(request.box, *one) for request, box, one in answers]


@dataclass(frozen=True)
class Sam3:
    """The model and its processor. The vision encoder works in `dtype`, prompts and masks in float32: bfloat16 has not
    the digits for a coordinate of a thousand pixels."""

    model: Any
    processor: Any
    device: str
    dtype: Any

    def outline(
        self, images: Sequence[Any], boxes: Sequence[tuple[float, float, float, float]]
    ) -> list[tuple[Mask, float, float]]:
        """(mask [H,W], expected IoU, object score) of each image uint8 [H,W,3] and box in pixels.

        The encoder, nearly all of the work, takes the batch; the decoder one image after the other, because its few
        rows round differently with their place in a batch, and the scores are columns of the dataset.
        """
        import torch

        prompts = [[list(box)] for box in boxes]
        inputs = self.processor(images=list(images), input_boxes=prompts, return_tensors="pt")
        found = []
        with torch.inference_mode():
            pixels = inputs["pixel_values"].to(self.device, self.dtype)
            features = [level.float() for level in self.model.get_image_embeddings(pixels)]
            for place in range(len(images)):
                one = slice(place, place + 1)
                prompt = inputs["input_boxes"][one].to(self.device, torch.float32)
                levels = [level[one] for level in features]
                out = self.model(image_embeddings=levels, input_boxes=prompt, multimask_output=False)
                mask = self.processor.post_process_masks(out.pred_masks, inputs["original_sizes"][one])[0]
                score = out.object_score_logits.sigmoid()
                found.append((mask[0, 0].cpu().numpy(), float(out.iou_scores), float(score)))
        return found


def load(settings: WeightsSettings) -> Sam3:
    """SAM3 on its device.

    Raises:
        WeightsError: see weights.
    """
    with loading(SETTING, settings.model):
        import torch
        from transformers import Sam3TrackerModel, Sam3TrackerProcessor
    place, precision = device(SETTING, settings), dtype(settings)
    model = pretrained(Sam3TrackerModel, SETTING, settings, torch.float32)  # first: it says best what is missing
    with loading(SETTING, settings.model):
        processor = Sam3TrackerProcessor.from_pretrained(settings.model, revision=settings.revision or "main")
        model.to(place)
        for part in (model.vision_encoder, model.mask_decoder.conv_s0, model.mask_decoder.conv_s1):
            part.to(precision)
    return Sam3(model, processor, place, precision)


def _pixels(request: SegmentRequest) -> tuple[float, float, float, float] | None:
    """The box in the target's pixels, within the frame; None where nothing of it is left, or it is no number."""
    height, width = request.target.shape[:2]
    shares = np.clip(np.asarray(request.box, np.float64), 0.0, 1.0)
    x1, y1, x2, y2 = (shares * (width, height, width, height)).tolist()
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def _no_box(request: SegmentRequest) -> Segmentation:
    box = tuple(round(float(share), 4) for share in request.box)
    return Segmentation({}, Reason.CURATOR_ERROR, f"the box {box} holds nothing of the frame")


def _answer(box: Box, mask: Mask, iou: float, score: float) -> Segmentation:
    area = float(mask.mean())
    measures = {"area": area, "iou": iou, "object_score": score, "agreement": _agreement(box, mask)}
    if mask.sum() < SMALLEST_MASK or area > LARGEST_AREA:
        return Segmentation(measures, Reason.MASK_DEGENERATE, f"the mask covers {area:.4f} of the frame")
    return Segmentation(measures, None, "", mask)


def _agreement(box: Box, mask: Mask) -> float:
    """IoU of the asked box and the mask's own; 0 for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return 0.0
    height, width = mask.shape
    box = tuple(np.clip(box, 0.0, 1.0).tolist())
    own = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    across = max(0.0, min(box[2], own[2]) - max(box[0], own[0]))
    down = max(0.0, min(box[3], own[3]) - max(box[1], own[1]))
    both = (box[2] - box[0]) * (box[3] - box[1]) + (own[2] - own[0]) * (own[3] - own[1])
    return float(across * down / max(both - across * down, 1e-12))
