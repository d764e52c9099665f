"""What the editor looks at: frames and references for the language model, and the reference canvas for the codec.

Two rules satisfy `Views`: the tiny preset's fixed squares, and the sizes of the released weights. A model folder says
which one its weights were trained with.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from kiwi.media.resizing import fit_on_white
from kiwi.model.errors import ModelError
from kiwi.model.inputs import latent_reference, vision_frames, vision_reference
from kiwi.model.instruction import Mode

Frames = npt.NDArray[np.uint8]
PATCH = 28  # pixels a side of one merged vision token
MAX_ASPECT = 200
MOST_FRAMES, MOST_SIDE = 768, 4096  # that a folder may ask for
MIN_IMAGE_TOKENS = 4
MAX_IMAGE_TOKENS = 16384
MIN_VIDEO_TOKENS = 128
MAX_VIDEO_TOKENS = 768
MAX_CLIP_TOKENS = 115_200  # nine tenths of the language model's 128,000


class Views(Protocol):
    """How clips and references become what the model sees. Sizes are multiples of 28 pixels."""

    def clip(self, frames: Frames, mode: Mode) -> Frames:
        """uint8 [T, H, W, 3] -> [t, h, w, 3] for the language model. With a reference even one frame is a video."""

    def reference(self, image: Frames) -> Frames:
        """uint8 [H, W, 3] -> [h, w, 3] for the language model."""

    def canvas(self, image: Frames, height: int, width: int) -> Frames:
        """uint8 [H, W, 3] -> [height, width, 3] for the codec: centred on white."""


@dataclass(frozen=True)
class VisionSize:
    """Fixed squares: `frames` evenly spaced frames of `side`² pixels, and references on a white square."""

    frames: int
    side: int

    def __post_init__(self) -> None:
        """Raises ModelError for sizes that no clip can be brought to."""
        _check_sizes(self, frames=MOST_FRAMES, side=MOST_SIDE)
        if self.side % PATCH:
            raise ModelError(f"{self.side} pixels a side are no multiple of {PATCH}", "restore the model's folder")

    def clip(self, frames: Frames, mode: Mode) -> Frames:
        return vision_frames(frames, self.frames, self.side)

    def reference(self, image: Frames) -> Frames:
        return vision_reference(image, self.side)

    def canvas(self, image: Frames, height: int, width: int) -> Frames:
        return latent_reference(image, height, width)


@dataclass(frozen=True)
class VisionBudget:
    """The sizes that the released weights were trained with: aspect kept, pixels within a budget.

    A clip's frames are brought to multiples of 56 pixels and then to multiples of 28, with at least 128 tokens a
    frame, each by its own resampling; an image and a reference to multiples of 28. (One token: 28² pixels.)

    Attributes:
        frames: evenly spaced frames seen of a clip, at most.
        frame_pixels: pixels of a clip's frame, at most.
        reference_tokens: tokens of a reference, at most.
    """

    frames: int = 16
    frame_pixels: int = 512 * 512
    reference_tokens: int = 768

    def __post_init__(self) -> None:
        """Raises ModelError for sizes that no clip can be brought to."""
        _check_sizes(self, frames=MOST_FRAMES, frame_pixels=MOST_SIDE**2, reference_tokens=MAX_IMAGE_TOKENS)

    def clip(self, frames: Frames, mode: Mode) -> Frames:
        if mode == "image":
            return _resampled(frames, *_within(frames.shape[1:3], PATCH, MIN_IMAGE_TOKENS, MAX_IMAGE_TOKENS))
        if len(frames) > self.frames:
            frames = frames[torch.linspace(0, len(frames) - 1, self.frames).round().long().numpy()]
        coarse = 2 * PATCH
        most = self.frame_pixels / coarse**2
        frames = _resampled(frames, *_within(frames.shape[1:3], coarse, MIN_IMAGE_TOKENS, most))
        most = max(min(MAX_VIDEO_TOKENS, MAX_CLIP_TOKENS / len(frames) * 2), 1.05 * MIN_VIDEO_TOKENS)
        most = min(most, self.frame_pixels / PATCH**2)
        return _interpolated(frames, *_within(frames.shape[1:3], PATCH, MIN_VIDEO_TOKENS, most))

    def reference(self, image: Frames) -> Frames:
        size = _within(image.shape[:2], PATCH, MIN_IMAGE_TOKENS, self.reference_tokens)
        resampled: Frames = _resampled(image[None], *size)[0]
        return resampled

    def canvas(self, image: Frames, height: int, width: int) -> Frames:
        return fit_on_white(image, height, width, enlarge=True)


def _check_sizes(views: VisionSize | VisionBudget, **most: int) -> None:
    for name, bound in most.items():
        value = getattr(views, name)
        if not isinstance(value, int) or not 1 <= value <= bound:
            raise ModelError(
                f"{name} of the vision rule is {value!r}", f"it is 1 to {bound}: restore the model's folder"
            )


def _within(size: tuple[int, ...], unit: int, least: float, most: float) -> tuple[int, int]:
    """The size in multiples of `unit` with between `least` and `most` squares of `unit`, aspect about kept.

    Raises:
        ModelError: a picture that is over 200 times as long as wide, or bounds that leave no size.
    """
    height, width = size[0], size[1]
    if max(size) > MAX_ASPECT * min(size):
        raise ModelError(
            f"a picture of {width}×{height} pixels is over {MAX_ASPECT} times as long as wide", "crop it first"
        )
    if most < least:
        raise ModelError(
            f"at most {most * unit**2:.0f} pixels a frame is less than the {least * unit**2:.0f} that it must have",
            "raise frame_pixels",
        )
    tall, wide = max(1, round(height / unit)), max(1, round(width / unit))
    if tall * wide > most:
        scale = math.sqrt(height * width / (most * unit**2))
        tall, wide = max(1, math.floor(height / scale / unit)), max(1, math.floor(width / scale / unit))
    elif tall * wide < least:
        scale = math.sqrt(least * unit**2 / (height * width))
        tall, wide = math.ceil(height * scale / unit), math.ceil(width * scale / unit)
    return tall * unit, wide * unit


def _resampled(frames: Frames, height: int, width: int) -> Frames:
    """Pillow's bicubic resampling, which the released weights saw. [T, H, W, 3] -> [T, height, width, 3]."""
    from PIL import Image

    if frames.shape[1:3] == (height, width):
        return frames
    resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    return np.stack([np.asarray(frame) for frame in resized])


def _interpolated(frames: Frames, height: int, width: int) -> Frames:
    """torch's antialiased bicubic interpolation, rounded. [T, H, W, 3] -> [T, height, width, 3]."""
    if frames.shape[1:3] == (height, width):
        return frames
    planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    resized = functional.interpolate(planes, (height, width), mode="bicubic", antialias=True, align_corners=False)
    whole: Frames = resized.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return whole


def views_as_json(views: Views) -> dict[str, Any]:
    """What a model folder says of its views. Raises ModelError for a rule that has no name there."""
    for name, kind in RULES.items():
        if isinstance(views, kind):
            return {"rule": name, **asdict(views)}
    raise ModelError(f"no name for views of type {type(views).__name__}", f"rules: {', '.join(RULES)}")


def views_of_json(said: dict[str, Any]) -> Views:
    """The inverse of `views_as_json`; folders older than the rules say no `rule` and mean squares."""
    fields = dict(said)
    rule = fields.pop("rule", "square")
    if rule not in RULES:
        raise ModelError(f"no vision rule {rule!r}", f"rules: {', '.join(RULES)}")
    return RULES[rule](**fields)


RULES: dict[str, type[VisionSize] | type[VisionBudget]] = {"square": VisionSize, "budget": VisionBudget}
