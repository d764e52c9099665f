"""How large a window a model can take: its rotary table ends somewhere, and so does the memory."""

from __future__ import annotations

import math
import os

import torch

from kiwi.editing.errors import EditError
from kiwi.editing.geometry import causal_length
from kiwi.model.editor import KiwiEditModel
from kiwi.model.inputs import fit_size

STREAMS = 4  # of the tokens, held at once in a block: the tokens, queries, keys and values
GIB = 2**30


def check_extent(
    model: KiwiEditModel, device: str, side: int, frames: int, shape: tuple[int, int], referenced: bool
) -> None:
    """Raises EditError for a window that the model has no positions for, or that no memory of the device holds.

    Args:
        side: the square root of the pixels that the model is to see of a frame.
        frames: of the window.
        shape: (height, width) of the file's frames.
        referenced: whether a reference comes with it, which takes a position in time.
    """
    stride, most = model.codec.temporal_stride, int(model.transformer.config.rope_max_seq_len)
    length = causal_length(frames, stride)
    moments = (length - 1) // stride + 1 + referenced
    if moments > most:
        largest = (most - referenced - 1) * stride + 1
        raise EditError(f"a window of {frames:,} frames is longer than the model takes", f"--window {largest} or less")
    height, width = fit_size(*shape, side, model.pixel_multiple)
    edge = most * model.pixel_multiple
    if max(height, width) > edge:
        said = f"size {side:,} makes frames of {width:,}x{height:,}, and the model takes at most {edge:,} pixels a side"
        raise EditError(said, f"--size {largest_side(shape, edge, model.pixel_multiple)} or less for this file")
    _check_memory(model, device, length, height, width, moments)


def largest_side(shape: tuple[int, int], edge: int, multiple: int) -> int:
    """The largest size at which frames of `shape` (height, width) have no side beyond `edge` pixels."""
    side = edge * 4
    while max(fitted := fit_size(*shape, side, multiple)) > edge:
        side = min(side - 1, math.ceil(side * (edge + multiple) / max(fitted)))
    return side


def _check_memory(model: KiwiEditModel, device: str, length: int, height: int, width: int, moments: int) -> None:
    """A floor, not an estimate: what fits by it may still run out, and is then told as it does."""
    weight = model.transformer.patch_embedding.base.weight
    tokens = moments * (height // model.pixel_multiple) * (width // model.pixel_multiple)
    least = tokens * weight.shape[0] * weight.element_size() * STREAMS + length * height * width * 3 * 4
    there = _memory_of(device)
    if least > there:
        raise EditError(
            f"a window of {length} frames of {width}x{height} takes at least {least / GIB:,.1f} GiB of memory, and "
            f"{device} has {there / GIB:,.1f}",
            "lower --size or --window",
            "out_of_memory",
        )


def _memory_of(device: str) -> int:
    """Bytes that the device has in all; graphics of Apple's share the machine's."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
