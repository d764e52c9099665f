"""What benchmarks/gpu.py measures on: editors of a released size with random weights, made on the device, and data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kiwi.model import wan
from kiwi.model.context import patches
from kiwi.model.editor import KiwiEditModel
from kiwi.model.instruction import VisionGrid, collate, tokenise
from kiwi.model.tiny import build_tokenizer
from kiwi.training.mixture import Batch

INSTRUCTION = "Replace the dog with the red robot and keep the street behind it as it is."
SEED = 0


@dataclass(frozen=True)
class Case:
    """The data of a measurement: pixels, frames, and whether there is a reference."""

    height: int
    width: int
    frames: int
    reference: bool = False

    @property
    def name(self) -> str:
        return f"{self.height}x{self.width}x{self.frames}" + ("+reference" if self.reference else "")

    def tokens(self, model: KiwiEditModel) -> int:
        """Transformer tokens."""
        frames = 1 + (self.frames - 1) // model.codec.temporal_stride + self.reference
        return frames * (self.height // model.pixel_multiple) * (self.width // model.pixel_multiple)


CASES = {
    "wan2.2-5b": tuple(
        Case(height, width, 81, reference) for height, width in ((704, 1280), (576, 576)) for reference in (False, True)
    ),
    "middle": (Case(32, 64, 5), Case(32, 64, 5, True), Case(32, 32, 5)),
}
CASES["wan2.1-14b"] = tuple(replace(case, frames=49) for case in CASES["wan2.2-5b"])


def editor(size: str, device: torch.device, dtype: torch.dtype, layers: int | None = None) -> KiwiEditModel:
    """An editor of random weights, made where it is to lie; on "meta" it takes no memory.

    What starts at zero in a new editor is random here, so that each part has a say in the result.

    Args:
        layers: of the transformer and the language model, where fewer than the size has.
    """
    name = size
    if layers is not None:
        full, name = wan.size_of(size), f"{size}, {layers} layers"
        language = {**full.language, "text_config": {**full.language["text_config"], "num_hidden_layers": layers}}
        shallow = {**full.transformer, "num_layers": layers}
        wan.SIZES[name] = replace(full, transformer=shallow, language=language)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model = wan.build_random(name, build_tokenizer([INSTRUCTION]), seed=SEED, device=str(device), dtype=dtype)
            for parameter in _zero(model):
                nn.init.normal_(parameter, std=0.02)
    finally:
        if layers is not None:
            del wan.SIZES[name]
    model.name = size
    return model


def _zero(model: KiwiEditModel) -> Iterator[nn.Parameter]:
    encoder, embedding = model.context_encoder, model.transformer.patch_embedding
    for part in (encoder.query_connector[2], encoder.reference_connector[2], embedding.source, embedding.reference):
        yield from part.parameters()
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            yield parameter


def batch_of(model: KiwiEditModel, case: Case, device: torch.device) -> Batch:
    """One sample as it comes from the latent cache: random latents and vision tokens, a real prompt."""
    encoder, codec = model.context_encoder, model.codec
    generator = torch.Generator(device).manual_seed(SEED)
    hidden = encoder.mllm.config.text_config.hidden_size

    def random(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator, device=device)

    grid, reference_grid = seen_grids(model, case)
    place = (case.height // codec.spatial_stride, case.width // codec.spatial_stride)
    latent = (codec.channels, 1 + (case.frames - 1) // codec.temporal_stride, *place)
    mode = "reference" if case.reference else "video"
    prompt = tokenise(encoder.template, encoder.tokenizer, encoder.mllm, INSTRUCTION, mode, grid, reference_grid)
    return Batch(
        mode, ["random"], collate([prompt], encoder.tokenizer.pad_token_id), random(*latent), random(*latent),
        random(grid.tokens(2), hidden),
        random(codec.channels, 1, *place) if reference_grid else None,
        random(reference_grid.tokens(2), hidden) if reference_grid else None,
    )  # fmt: skip


def seen_grids(model: KiwiEditModel, case: Case) -> tuple[VisionGrid, VisionGrid | None]:
    """What the language model is shown of the clip and of the reference."""
    pixels = np.zeros((case.frames, case.height, case.width, 3), np.uint8)  # grids depend on sizes alone
    seen = model.vision.clip(pixels, "reference" if case.reference else "video")
    _, grid = patches(torch.from_numpy(seen[None, :, :28, :28]))
    grid = VisionGrid(grid.frames, seen.shape[1] // 14, seen.shape[2] // 14)
    if not case.reference:
        return grid, None
    image = model.vision.reference(pixels[0])
    return grid, VisionGrid(1, image.shape[0] // 14, image.shape[1] // 14)


def clip(case: Case) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A clip of random pixels, [T, H, W, 3]."""
    rng = np.random.default_rng(SEED)
    return rng.integers(0, 256, (case.frames, case.height, case.width, 3), np.uint8)


def context_tokens(model: KiwiEditModel, case: Case) -> int:
    """Tokens that the transformer's cross-attention sees."""
    template = model.context_encoder.template
    grid = seen_grids(model, case)[1]
    return template.queries["reference" if case.reference else "video"] + (grid.tokens(2) if grid else 0)


def precision(device: torch.device) -> torch.dtype:
    """What is computed in: bfloat16, but for CPUs, most of which only emulate it; there correctness alone uses it."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def milliseconds(call: Callable[[], Any], device: torch.device, rounds: int) -> list[float]:
    """Of each of some calls, until the device has done what they asked for."""
    found = []
    for _ in range(rounds):
        synchronise(device)
        began = time.perf_counter()
        call()
        synchronise(device)
        found.append(1e3 * (time.perf_counter() - began))
    return found


def figures(value: float) -> float:
    """A value to four figures."""
    return float(f"{value:.4g}")


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def emptied(device: torch.device) -> None:
    """Gives memory back that nothing uses, and forgets the peak."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """The most that tensors took since `emptied`, in 10^9 bytes; None where the device does not say."""
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 2) if device.type == "cuda" else None


@contextlib.contextmanager
def products_counted(module: nn.Module) -> Iterator[list[float]]:
    """The list takes the operations of each convolution and linear layer that runs in the block, without attention."""
    found: list[float] = []

    def count(layer: Any, inputs: Any, output: Tensor) -> None:
        found.append(2.0 * output.numel() * layer.weight[0].numel())

    hooks = [
        each.register_forward_hook(count)
        for each in module.modules()
        if isinstance(each, nn.Linear | nn.Conv2d | nn.Conv3d)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def forward_operations(model: KiwiEditModel, case: Case) -> float:
    """Of one forward pass of the transformer's blocks, from its shapes."""
    return sum(_block_operations(model, case))


def recomputed_operations(model: KiwiEditModel, case: Case, forward: float, policy: str) -> float:
    """What the backward pass computes again of a forward pass of `forward` operations, by `trainer.recompute`.

    With any policy the language model's layers are computed again: they are what is not the transformer's blocks, but
    for the embeddings, which are a percent of it.
    """
    products, attention = _block_operations(model, case)
    kept = {"none": forward, "selective": products + attention, "attention": attention, "full": 0.0}
    return forward - kept[policy]


def _block_operations(model: KiwiEditModel, case: Case) -> tuple[float, float]:
    """(of weights, of attention) in one forward pass of all blocks."""
    config = model.transformer.config
    width, tokens = config.num_attention_heads * config.attention_head_dim, case.tokens(model)
    context = context_tokens(model, case)
    products = 2 * tokens * (6 * width**2 + 2 * width * config.ffn_dim) + 2 * context * 2 * width**2
    return float(config.num_layers * products), float(config.num_layers * 4 * tokens * (tokens + context) * width)
