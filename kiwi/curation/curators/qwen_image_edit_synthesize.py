"""The synthesizer with Qwen-Image-Edit: references that a generative editor makes of the target's first frame.

How the masked region is told to the model, which takes pictures and words and no mask: it is painted into the picture.
A background's foreground is covered with flat grey, grown a little, so that nothing of it can come through; the model
is asked to fill the grey. A subject comes as a tight crop with everything outside its mask white; the model is asked to
set it alone on white, and to complete what was hidden. The editor moves and zooms by some pixels, so nobody may take
its picture to be aligned with the frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kiwi.configuration import ImageEditorSettings
from kiwi.curation.curators.classical_change import box_of
from kiwi.curation.curators.hub import cached_where_hub_is_away
from kiwi.curation.curators.in_batches import judged_in_batches
from kiwi.curation.curators.protocols import Image, Mask, RegionKind, Synthesis, SynthesizeRequest
from kiwi.curation.curators.weights import (
    WeightsError,
    check_whole,
    device,
    dtype,
    loading,
    once,
    pretrained,
    version,
    within_memory,
)
from kiwi.dataset.schema import Reason
from kiwi.errors import UsageError

SETTING = "curation.qwen_image_edit"
ORIGIN = "qwen_image_edit"
LARGEST_HOLE = 0.75  # share of the frame beyond which a background would be mostly invented
GREY = 127
NO_WISH = " "  # without a negative prompt the pipeline switches guidance off and says nothing
PROMPTS: dict[RegionKind, str] = {
    "foreground": "A part of this picture is painted over in flat grey. Fill the grey part with the background that "
    "belongs there, continuing its surroundings without a seam. Add no person, animal or object. Keep everything "
    "outside of the grey part exactly as it is.",
    "object": "Extract the object in this picture and show it alone, whole and centred, on a plain white background "
    "with little space around it. Keep its shape, colours, texture and details exactly as they are, and complete what "
    "is cut off or hidden. No shadow, no text, nothing else.",
}


@dataclass(frozen=True)
class QwenImageEditSynthesizer:
    """One picture at a time: the pipeline takes no batches. The weights load at the first request that needs them.

    Attributes:
        max_aspect: longest side over shortest, of the region and of what was made.
        min_side, max_side: pixels a side that either may have.
    """

    settings: ImageEditorSettings
    max_aspect: float
    min_side: int
    max_side: int
    version: str
    loaded: Callable[[], Editor]
    name: str = "qwen_image_edit"
    measures: tuple[str, ...] = ("aspect", "width", "height")

    @classmethod
    def from_settings(
        cls, settings: ImageEditorSettings, max_aspect: float, min_side: int, max_side: int
    ) -> QwenImageEditSynthesizer:
        """Raises UsageError for a batch, a single step without a LoRA, or a LoRA that is no safetensors file."""
        if settings.batch != 1:
            raise UsageError(
                f"{SETTING}.batch is {settings.batch}: the pipeline makes one picture at a time", "set it to 1"
            )
        if settings.steps == 1 and settings.lora is None:
            said = f"{SETTING}.steps is 1: the model's own noise schedule has no single step"
            raise UsageError(said, f"take 2 steps at least, or a distilled LoRA ({SETTING}.lora)")
        lora_place(settings.lora)
        return cls(settings, max_aspect, min_side, max_side, version("1", settings), once(lambda: load(settings)))

    def synthesize(self, requests: Iterable[SynthesizeRequest]) -> Iterator[Synthesis]:
        """See protocols. The same request gives the same picture: its noise is drawn from its own seed, on the CPU.

        Raises:
            WeightsError: the weights cannot be had, or memory is short.
        """
        return judged_in_batches(lambda batch: [self._synthesize(batch[0])], Synthesis, 1, requests)

    def _synthesize(self, request: SynthesizeRequest) -> Synthesis:
        if not request.mask.any():
            return Synthesis({}, Reason.REFERENCE_DEGENERATE, "the mask is empty")
        height, width = request.mask.shape
        box = box_of(request.mask) if request.kind == "object" else (0, 0, width, height)
        across, down = box[2] - box[0], box[3] - box[1]
        measures = {"aspect": max(across, down) / min(across, down), "width": float(across), "height": float(down)}
        refused = self._extreme(across, down)
        if refused is not None:
            return Synthesis(measures, *refused)
        if request.kind == "foreground" and float(request.mask.mean()) > LARGEST_HOLE:
            detail = f"the foreground hides {float(request.mask.mean()):.2f} of the background"
            return Synthesis(measures, Reason.REFERENCE_DEGENERATE, detail)
        shown = (
            covered(request.target, request.mask) if request.kind == "foreground" else cut(request.target, request.mask)
        )
        remedy = f"lower {SETTING}.pixels (now {self.settings.pixels}), or set {SETTING}.offload or dtype bfloat16"
        with within_memory("making a reference", remedy):
            made = self.loaded().edit(shown, PROMPTS[request.kind], request.seed)
        return self._judged(made, request.kind, measures)

    def _judged(self, made: Image, kind: RegionKind, measures: dict[str, float]) -> Synthesis:
        """What was made, a subject without the empty space around it; refused where it shows nothing."""
        image = trimmed(made) if kind == "object" else made
        if image.size == 0 or float(image.std()) < 1.0:
            return Synthesis(measures, Reason.REFERENCE_DEGENERATE, "the editor made an empty picture")
        refused = self._extreme(image.shape[1], image.shape[0])
        if refused is not None:
            return Synthesis(measures, refused[0], f"made: {refused[1]}")
        return Synthesis(measures, None, "", image, ORIGIN)

    def _extreme(self, across: int, down: int) -> tuple[Reason, str] | None:
        aspect = max(across, down) / min(across, down)
        if aspect > self.max_aspect:
            return Reason.EXTREME_ASPECT, f"{across}x{down} pixels, aspect {aspect:.1f}, at most {self.max_aspect}"
        if min(across, down) < self.min_side or max(across, down) > self.max_side:
            detail = f"{across}x{down} pixels, sides from {self.min_side} to {self.max_side}"
            return Reason.EXTREME_RESOLUTION, detail
        return None


@dataclass(frozen=True)
class Editor:
    """The pipeline with the settings of a picture."""

    pipeline: Any
    settings: ImageEditorSettings

    def edit(self, image: Image, prompt: str, seed: int) -> Image:
        """An edit of `image` uint8 [H,W,3], with its aspect and `pixels` pixels."""
        import PIL.Image
        import torch

        step = 2 * self.pipeline.vae_scale_factor
        height, width = output_size(image.shape[0], image.shape[1], self.settings.pixels, step)
        guided = self.settings.guidance > 1
        with _input_pixels(self.settings.pixels), torch.inference_mode():
            made = self.pipeline(
                image=[PIL.Image.fromarray(image)],
                prompt=prompt,
                negative_prompt=NO_WISH if guided else None,
                true_cfg_scale=self.settings.guidance if guided else 1.0,
                num_inference_steps=self.settings.steps,
                height=height,
                width=width,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="np",
            ).images[0]
        if not np.isfinite(made).all():
            raise ValueError(f"the editor made values that are not finite (seed {seed}); try another dtype")
        return np.asarray(np.rint(np.clip(made, 0, 1) * 255), np.uint8)


def load(settings: ImageEditorSettings) -> Editor:
    """The pipeline on its device, with its LoRA.

    Raises:
        WeightsError: see weights; or a LoRA that does not fit.
    """
    with loading(SETTING, settings.model):
        from diffusers import QwenImageEditPlusPipeline
        from transformers import Qwen2_5_VLForConditionalGeneration
    precision = dtype(settings)
    reader = pretrained(Qwen2_5_VLForConditionalGeneration, SETTING, settings, precision, "text_encoder")
    with loading(SETTING, settings.model), cached_where_hub_is_away(settings.model):
        options = {"revision": settings.revision, "dtype": precision, "use_safetensors": True}
        pipeline = QwenImageEditPlusPipeline.from_pretrained(settings.model, text_encoder=reader, **options)
    parts = pipeline.transformer, pipeline.vae
    left = [name for part in parts for name, tensor in part.named_parameters() if tensor.is_meta]
    check_whole(SETTING, settings, "QwenImageEditPlusPipeline", left)
    pipeline.set_progress_bar_config(disable=True)
    place = device(SETTING, settings)
    if settings.lora is not None:
        add_lora(pipeline, settings.lora)
    with loading(SETTING, settings.model):
        if settings.offload and place != "cpu":
            pipeline.enable_model_cpu_offload(device=place)
        else:
            pipeline.to(place)
    return Editor(pipeline, settings)


def add_lora(pipeline: Any, lora: str) -> None:
    """Puts a distilled LoRA on the transformer, and the noise schedule that such a one was distilled with.

    The distilled 4- and 8-step LoRAs of this model were made with a constant shift of 3 and no terminal shift; their
    pictures are poor on the model's own schedule.

    Raises:
        WeightsError: see weights; or some of its tensors have no place in the transformer.
    """
    place, file = lora_place(lora) or ("", None)
    with loading(SETTING, place, field="lora"):
        state = pipeline.lora_state_dict(place, weight_name=file, use_safetensors=True)
        wanted = sum("lora_A" in name for name in state)
        pipeline.load_lora_weights(state, adapter_name="distilled")
    fitted = sum(".lora_A." in name for name, _ in pipeline.transformer.named_parameters())
    if wanted == 0 or fitted != wanted:
        said = f"{SETTING}.lora: {fitted} of the {wanted} layers of {lora} fit the transformer"
        raise WeightsError(said, "give a LoRA of this model")
    constant = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **constant)


def lora_place(lora: str | None) -> tuple[str, str | None] | None:
    """(repository or folder, file in it) of REPOSITORY, REPOSITORY::FILE or a file's path.

    Raises:
        UsageError: the file is no safetensors file.
    """
    if lora is None:
        return None
    place, _, file = lora.partition("::")
    if not file and Path(place).suffix and (Path(place).is_file() or Path(place).is_absolute()):
        place, file = str(Path(place).parent), Path(place).name
    if file and not file.endswith(".safetensors"):
        remedy = "give REPOSITORY, REPOSITORY::FILE.safetensors or the path of a .safetensors file"
        raise UsageError(f"{SETTING}.lora: {lora} is no .safetensors file", remedy)
    return place, file or None


def output_size(height: int, width: int, pixels: int, step: int) -> tuple[int, int]:
    """(height, width) of about `pixels` pixels with the same aspect, in multiples of `step`."""
    scale = math.sqrt(pixels / (height * width))
    return max(step, round(height * scale / step) * step), max(step, round(width * scale / step) * step)


def covered(image: Image, mask: Mask) -> Image:
    """`image` with the mask, grown by about a hundredth of the longer side, in flat grey."""
    out = image.copy()
    out[_grown(mask, max(2, round(0.012 * max(mask.shape))))] = GREY
    return out


def cut(image: Image, mask: Mask) -> Image:
    """The mask's box with a margin of a twentieth of its longer side, white outside of the (slightly grown) mask."""
    x1, y1, x2, y2 = box_of(mask)
    margin = max(1, round(0.05 * max(x2 - x1, y2 - y1)))
    out = np.where(_grown(mask, max(1, margin // 4))[..., None], image, np.uint8(255))
    rows, columns = slice(max(0, y1 - margin), y2 + margin), slice(max(0, x1 - margin), x2 + margin)
    return np.ascontiguousarray(out[rows, columns])


def trimmed(image: Image) -> Image:
    """`image` without the white around what it shows, but for a margin of a twentieth; empty where all is white."""
    shown = np.asarray((image < 245).any(axis=2), bool)
    if not shown.any():
        return image[:0]
    x1, y1, x2, y2 = box_of(shown)
    margin = max(1, round(0.05 * max(x2 - x1, y2 - y1)))
    return np.ascontiguousarray(image[max(0, y1 - margin) : y2 + margin, max(0, x1 - margin) : x2 + margin])


def _grown(mask: Mask, reach: int) -> Mask:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0, bool)


@contextmanager
def _input_pixels(pixels: int) -> Iterator[None]:
    """While it lasts, the pipeline encodes its input picture at `pixels` too.

    It has no argument for that, and its constant of 1024x1024 would leave half of the cost however small the output.
    """
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as module

    before = module.VAE_IMAGE_SIZE
    module.VAE_IMAGE_SIZE = pixels
    try:
        yield
    finally:
        module.VAE_IMAGE_SIZE = before
