"""Where the parts of an editor lie and in what precision: device, offload between steps, tiling of the autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kiwi.editing.errors import EditError
from kiwi.model.editor import KiwiEditModel

Offload = Literal["none", "model"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
OFFLOADS: tuple[Offload, ...] = ("none", "model")
DTYPES: tuple[Dtype, ...] = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Placement:
    """How a model is laid out.

    Attributes:
        device: where it computes.
        offload: "model" brings each part (language model, transformer, autoencoder) to the device only while it
            works, so that the largest of them has to fit and not all; the others wait in the machine's memory.
        tiling: the autoencoder works on overlapping tiles; slower, and its memory no longer grows with the frame.
            The tiny preset's transform works block by block anyway, so nothing changes there.
        dtype: of the weights of transformer and language model; "auto" leaves them as they were saved.
    """

    device: str = "cpu"
    offload: Offload = "none"
    tiling: bool = False
    dtype: Dtype = "auto"


def checked_device(name: str) -> str:
    """The device by name; "auto" is the first GPU where there is one. Raises EditError where it is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise EditError(f"no device {name!r}", "devices: auto, cpu, cuda, cuda:1, mps") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise EditError(f"--device {name}: no CUDA device on this machine", "use --device cpu, or a machine with a GPU")
    if kind == "cuda" and (torch.device(name).index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise EditError(f"--device {name}: only {count} CUDA devices on this machine", "name a lower number")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise EditError(f"--device {name}: no Metal device on this machine", "use --device cpu")
    if kind not in ("cpu", "cuda", "mps"):
        raise EditError(f"no device {name!r}", "devices: auto, cpu, cuda, cuda:1, mps")
    return name


def place(model: KiwiEditModel, placement: Placement) -> None:
    """Lays the model out, in place. Raises EditError where the device is not there or the model does not fit."""
    device = checked_device(placement.device)
    if placement.dtype != "auto":
        dtype = getattr(torch, placement.dtype)
        for parameter in model.parameters():  # buffers such as the rotary angles keep theirs
            parameter.data = parameter.data.to(dtype)
    if placement.tiling and hasattr(model.codec, "vae"):
        model.codec.vae.enable_tiling()
    try:
        for part in (model.context_encoder, model.transformer, model.codec):
            _move(part, "cpu" if placement.offload == "model" else device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = f"the model does not fit the memory of {device}"
        raise EditError(said, "add --offload model or --dtype bfloat16", "out_of_memory") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; of the machine's own torch says so in a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def out_of_memory(shape: tuple[int, ...], placement: Placement) -> EditError:
    """What to say of a window of `shape` [L, h, w] that does not fit."""
    length, height, width = shape
    said = f"out of memory on {placement.device} with a window of {length} frames of {width}x{height}"
    return EditError(said, "lower --size or --window, or add --offload model --tiling", "out_of_memory")


@contextmanager
def working(part: Any, placement: Placement) -> Iterator[None]:
    """Brings a part to the device while it works, where it is offloaded."""
    if placement.offload == "none":
        yield
        return
    _move(part, placement.device)
    try:
        yield
    finally:
        _move(part, "cpu")


def codec_device(model: KiwiEditModel, placement: Placement) -> str:
    """Where frames and latents have to lie for the codec: one that cannot be moved works on the CPU."""
    return placement.device if hasattr(model.codec, "to") else "cpu"


def _move(part: Any, device: str) -> None:
    if hasattr(part, "to"):
        part.to(device)
