"""Where the parts of an editor lie and in what precision: device, offload between steps, tiling of the autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
        vae_dtype: of the autoencoder; "auto" is float32. On a GPU bfloat16 saves most of its time.
    """

    device: str = "cpu"
    offload: Offload = "none"
    tiling: bool = False
    dtype: Dtype = "auto"
    vae_dtype: Dtype = "auto"


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
        _cast(model, getattr(torch, placement.dtype))
    if placement.vae_dtype != "auto":
        model.codec.to(getattr(torch, placement.vae_dtype))
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


def placed(placement: Placement, device: str | torch.device | None, dtype: torch.dtype | None) -> Placement:
    """The placement with another device or precision, where they are given. Raises EditError for what cannot be."""
    if device is not None:
        placement = replace(placement, device=checked_device(str(device)))
    if dtype is None:
        return placement
    name = str(dtype).removeprefix("torch.")
    known = next((each for each in DTYPES if each == name), None)
    if known is None:
        raise EditError(f"no precision {dtype}", f"choose from {', '.join(DTYPES[1:])}")
    return replace(placement, dtype=known)


def _cast(model: KiwiEditModel, dtype: torch.dtype) -> None:
    """The weights in `dtype`, but for what diffusers keeps in float32 (time embedding, modulation, norms).

    Buffers such as the rotary angles keep theirs, and so does the codec.
    """
    kept = tuple(getattr(model.transformer, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        exact = name.startswith("transformer.") and any(part in kept for part in name.split("."))
        parameter.data = parameter.data.to(torch.float32 if exact else dtype)


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


def _move(part: Any, device: str) -> None:
    part.to(device)
