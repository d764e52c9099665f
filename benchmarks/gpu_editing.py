"""The rows of benchmarks/gpu.py on editing: the denoising by lever, the autoencoder by path, and a whole edit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from gpu_cases import (
    CASES,
    INSTRUCTION,
    Case,
    clip,
    context_tokens,
    editor,
    emptied,
    figures,
    forward_operations,
    milliseconds,
    peak_gb,
    precision,
    products_counted,
)
from gpu_correctness import data
from torch import nn

from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.editing.placement import Placement
from kiwi.editing.sampling import denoised
from kiwi.editing.step_cache import STEP_CACHES, StepCaching
from kiwi.model.attention import attend
from kiwi.model.inputs import frames_to_tensor
from kiwi.training.parallelize import compile_blocks


@dataclass(frozen=True)
class Denoising:
    """How the 50 steps are made."""

    attention: str = "native"
    compile: bool = False
    cache: str = "none"

    @property
    def name(self) -> str:
        return f"{self.attention}, {'compiled' if self.compile else 'eager'}, step cache {self.cache}"


@dataclass(frozen=True)
class Path:
    """How the autoencoder works."""

    dtype: str = "bfloat16"
    tiled: bool = False
    channels_last: bool = False

    @property
    def name(self) -> str:
        words = (self.dtype, "tiled" if self.tiled else "whole", "channels last" if self.channels_last else "plain")
        return ", ".join(words)


PATHS = (Path(), Path(channels_last=True), Path(tiled=True), Path("float32"), Path("float32", channels_last=True))


def wanted(size: str, attentions: tuple[str, ...], on_gpu: bool) -> list[tuple[Case, Denoising]]:
    """The denoising that is measured, the best guess first."""
    cases, best = CASES[size], Denoising(attentions[0], compile=on_gpu)
    rows = [(case, best) for case in cases] + [(cases[0], Denoising())]
    rows += [(cases[0], replace(best, attention=name)) for name in attentions[1:]]
    rows += [(cases[0], Denoising(attentions[0], cache=cache)) for cache in STEP_CACHES if cache != "none"]
    seen: dict[tuple[Case, Denoising], None] = dict.fromkeys(rows)
    return list(seen)


@torch.inference_mode()
def denoising_row(
    size: str, case: Case, lever: Denoising, device: torch.device, steps: int, floor: float
) -> dict[str, Any]:
    """All the steps, measured and not extrapolated. With random weights a cache's choices say nothing of real ones:
    the share of blocks that it computed is beside its time.
    """
    model = editor(size, device, precision(device))
    model.eval()
    attend(model.transformer, lever.attention, device, str(precision(device)).removeprefix("torch."))
    if lever.compile:
        compile_blocks(model)
    batch, noise, _ = data(model, case, device)
    context = model.context_encoder(batch.prompts, batch.vision, batch.reference_vision)
    computed: list[int] = []
    hooks = [
        block.attn1.to_q.register_forward_hook(lambda *_: computed.append(1))
        for block in model.transformer.blocks
        if not lever.compile
    ]

    def velocity(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = model(latents, sigma.to(device).expand(1), context, batch.source, batch.reference)
        return result

    def run(count: int) -> None:
        with StepCaching(lever.cache).on(model.transformer, count):  # type: ignore[arg-type]
            denoised(velocity, noise, count)

    run(3)
    emptied(device)
    computed.clear()
    (whole,) = milliseconds(lambda: run(steps), device, 1)
    for hook in hooks:
        hook.remove()
    operations = steps * forward_operations(model, case)
    blocks = steps * len(model.transformer.blocks)
    return {
        "section": "denoising", "case": case.name, "lever": lever.name, "steps": steps, "ms": round(whole, 1),
        "step_ms": round(whole / steps, 2), "tera_operations": figures(operations / 1e12),
        "context_tokens": context_tokens(model, case), "tflops": figures(operations / whole / 1e9),
        "floor_ms": round(operations / floor / 1e9, 1),
        "blocks_computed": round(len(computed) / blocks, 3) if hooks else 1.0,
        "frames_per_second": round(case.frames / whole * 1e3, 3), "peak_gb": peak_gb(device),
    }  # fmt: skip


@torch.inference_mode()
def autoencoder_row(size: str, case: Case, path: Path, device: torch.device, floor: float) -> list[dict[str, Any]]:
    """Encoding and decoding of the clip, and how far they are from float32 on the whole picture."""
    from kiwi.model.wan_codec import WanCodec

    model = editor(size, device, precision(device), layers=1)
    codec: Any = model.codec
    assert isinstance(codec, WanCodec)
    frames = frames_to_tensor(clip(case)[None]).to(device)
    model.context_encoder.to("cpu")
    exact = codec.encode(frames)
    codec.to(getattr(torch, path.dtype))
    if path.channels_last:
        for module in codec.vae.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
    if path.tiled:
        codec.vae.enable_tiling()
    latents = codec.encode(frames)
    off = float((latents.float() - exact).norm() / exact.norm())
    calls: dict[str, Callable[[], Any]] = {
        "encode": lambda: codec.encode(frames),
        "decode": lambda: codec.decode(latents),
    }
    rows = []
    for name, call in calls.items():
        call()
        emptied(device)
        (first,) = milliseconds(call, device, 1)
        times = [first, *milliseconds(call, device, 2 if first < 5000 and device.type == "cuda" else 0)]
        with products_counted(codec.vae) as counted:
            call()
        operations = sum(counted)
        rows.append({
            "section": "autoencoder", "case": case.name, "lever": f"{name}, {path.name}", "ms": round(min(times), 1),
            "tera_operations": figures(operations / 1e12), "tflops": figures(operations / min(times) / 1e9),
            "floor_ms": round(operations / floor / 1e9, 1), "latents_off_float32": float(f"{off:.2e}"),
            "frames_per_second": round(case.frames / min(times) * 1e3, 2), "peak_gb": peak_gb(device),
        })  # fmt: skip
    return rows


def whole_row(size: str, case: Case, lever: Denoising, device: torch.device, steps: int) -> dict[str, Any]:
    """A whole edit through the pipeline, from frames in main memory to frames in main memory."""
    model = editor(size, device, precision(device))
    codec: Any = model.codec
    codec.to(precision(device))
    attend(model.transformer, lever.attention, device, str(precision(device)).removeprefix("torch."))
    if lever.compile:
        compile_blocks(model)
    side = round(math.sqrt(case.height * case.width))
    pipeline = KiwiEditPipeline(model, case.frames, side, Placement(device=str(device)))
    if pipeline.model_size(case.height, case.width) != (case.height, case.width):
        raise ValueError(f"{case.name} would be edited at {pipeline.model_size(case.height, case.width)}")
    frames = clip(case)
    reference = frames[0] if case.reference else None

    def run(count: int) -> None:
        pipeline.edit_clips([frames], [INSTRUCTION], [reference], num_inference_steps=count, batch_size=1)

    run(2)
    emptied(device)
    (whole,) = milliseconds(lambda: run(steps), device, 1)
    return {
        "section": "edit", "case": case.name, "lever": lever.name, "steps": steps, "ms": round(whole, 1),
        "frames_per_second": round(case.frames / whole * 1e3, 3), "peak_gb": peak_gb(device),
    }  # fmt: skip
