"""Clips and images as diffusers' users hold them (PIL, numpy, torch; one or a list) to uint8 frames, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch

from kiwi.editing.errors import EditError
from kiwi.editing.geometry import Frames
from kiwi.media.images import rgb_of

OutputType = Literal["np", "pt", "pil", "uint8"]
OUTPUT_TYPES: tuple[OutputType, ...] = ("np", "pt", "pil", "uint8")
FORMS = "give PIL images, uint8 or float (0-1) arrays [T, H, W, 3], or tensors [T, 3, H, W]; several in a list"


def clips_of(video: Any) -> list[Frames]:
    """Clips, uint8 [T, H, W, 3] each, of what diffusers takes for a video.

    Args:
        video: one clip: a list of PIL images or of arrays [H, W, 3], an array [T, H, W, 3], a tensor [T, 3, H, W], or
            a single image, which is a clip of one frame; or several: a list of these, an array or a tensor of five
            axes. Floats are 0-1.

    Raises:
        EditError: nothing of the kind, frames of different sizes, or values out of range.
    """
    if isinstance(video, np.ndarray | torch.Tensor) and video.ndim == 5:
        return [_clip(each) for each in video]
    if isinstance(video, list | tuple):
        if not video:
            raise EditError("the video has no frames", FORMS)
        if all(_is_picture(each) for each in video):
            return [_stacked(video)]
        return [_clip(each) for each in video]
    return [_clip(video)]


def references_of(reference: Any, count: int) -> list[Frames | None]:
    """References of `count` clips, uint8 [H, W, 3] or None each; one alone is every clip's.

    Raises:
        EditError: no image, or not one a clip.
    """
    if not isinstance(reference, list | tuple):
        image = None if reference is None else _picture(reference)
        return [image] * count
    if len(reference) != count:
        raise EditError(f"{len(reference)} references for {count} videos", "give one, or one a video (None for none)")
    return [None if each is None else _picture(each) for each in reference]


def given_back(clips: Sequence[Frames], kind: OutputType) -> list[Any]:
    """Edited clips, one an entry: "np" float32 [T, H, W, 3] in 0-1, "pt" float32 [T, 3, H, W] in 0-1, "pil" a list of
    images, "uint8" [T, H, W, 3]."""
    check_output_type(kind)
    if kind == "pil":
        return [[PIL.Image.fromarray(frame) for frame in clip] for clip in clips]
    if kind == "uint8":
        return list(clips)
    floats = [clip.astype(np.float32) / 255 for clip in clips]
    return floats if kind == "np" else [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in floats]


def check_output_type(kind: str) -> None:
    if kind not in OUTPUT_TYPES:
        raise EditError(f"no output_type {kind!r}", f"choose from {', '.join(OUTPUT_TYPES)}")


def _is_picture(value: Any) -> bool:
    return isinstance(value, PIL.Image.Image) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 3)


def _clip(value: Any) -> Frames:
    if _is_picture(value):
        return _picture(value)[None]
    if isinstance(value, list | tuple) and value and all(_is_picture(each) for each in value):
        return _stacked(value)
    return _pixels(value, 4)


def _stacked(pictures: Sequence[Any]) -> Frames:
    frames = [_picture(each) for each in pictures]
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        said = ", ".join(sorted(f"{width}x{height}" for height, width, _ in sizes))
        raise EditError(
            f"the frames of a video differ in size: {said}", "resize them alike; clips go in lists of their own"
        )
    return np.stack(frames)


def _picture(value: Any) -> Frames:
    return rgb_of(value) if isinstance(value, PIL.Image.Image) else _pixels(value, 3)


def _pixels(value: Any, axes: int) -> Frames:
    """uint8 [..., H, W, 3] of an array with its channels last, or of a tensor with its channels before the picture."""
    if not isinstance(value, np.ndarray | torch.Tensor):
        raise EditError(f"a {type(value).__name__} is no video or image", FORMS)
    shape = tuple(value.shape)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        if value.ndim == axes and shape[-3] == 3:
            value = value.movedim(-3, -1)
        array = (value.float() if value.is_floating_point() else value).numpy()
    else:
        array = value
    if array.ndim != axes or array.shape[-1] != 3 or not array.size:
        raise EditError(f"no {'clip' if axes == 4 else 'image'} has the shape {shape}", FORMS)
    return _whole(array)


def _whole(array: npt.NDArray[Any]) -> Frames:
    if array.dtype == np.uint8:
        whole: Frames = array
        return whole
    if not np.issubdtype(array.dtype, np.floating):
        raise EditError(f"pixels of type {array.dtype}", FORMS)
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also where one is not a number
        raise EditError(f"pixel values from {low:.4g} to {high:.4g}", "floats are 0-1; uint8 is 0-255")
    levels: Frames = np.clip(np.rint(array * 255), 0, 255).astype(np.uint8)
    return levels
