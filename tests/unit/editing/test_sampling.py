"""Samplers and step caches: what the benchmark's figures rest on stays, and the shortcuts come near to it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kiwi.editing.errors import EditError
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.editing.sampling import denoised
from kiwi.model.context import patches
from kiwi.model.flow import sampling_sigmas
from kiwi.model.inputs import frames_to_tensor
from kiwi.model.instruction import collate, tokenise

WORDS = "Make the red circle blue."


def clip(frames: int = 9, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@torch.inference_mode()
def plainly_edited(
    pipeline: KiwiEditPipeline, frames: np.ndarray, reference: np.ndarray | None, steps: int
) -> np.ndarray:
    """The edit of one window by the Euler loop written out, with nothing of the pipeline."""
    model, encoder = pipeline.model, pipeline.model.context_encoder
    mode = "reference" if reference is not None else "image" if len(frames) == 1 else "video"
    source = model.codec.encode(frames_to_tensor(frames[None]))
    pixels, grid = patches(torch.from_numpy(model.vision.clip(frames, mode)[None]))
    visual = encoder.vision_tokens(pixels, grid, "image" if mode == "image" else "video")
    seen = latents_of_reference = reference_grid = None
    if reference is not None:
        pixels, reference_grid = patches(torch.from_numpy(model.vision.reference(reference)[None, None]))
        seen = encoder.vision_tokens(pixels, reference_grid, "image")
        canvas = model.vision.canvas(reference, *frames.shape[1:3])
        latents_of_reference = model.codec.encode(frames_to_tensor(canvas[None, None]))
    prompt = tokenise(encoder.template, encoder.tokenizer, encoder.mllm, WORDS, mode, grid, reference_grid)
    context = encoder(collate([prompt], encoder.tokenizer.pad_token_id), visual, seen)
    latents = torch.randn(source.shape[1:], generator=torch.Generator().manual_seed(3))[None]
    for now, following in itertools.pairwise(sampling_sigmas(steps)):
        latents = latents + (following - now) * model(latents, now.expand(1), context, source, latents_of_reference)
    decoded = ((model.codec.decode(latents).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 4, 1).numpy()
    return np.clip(np.rint(decoded[0]), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("frames", "referenced"), [(9, False), (9, True), (1, False), (5, False)])
def test_the_default_edit_is_bit_for_bit_a_plain_euler_loop(
    pipeline: KiwiEditPipeline, frames: int, referenced: bool
) -> None:
    video, reference = clip(frames), clip(1, 40, 30, 5)[0] if referenced else None
    (edit,) = pipeline.edit_clips([video], [WORDS], [reference], num_inference_steps=4, seed=3)
    assert np.array_equal(edit, plainly_edited(pipeline, video, reference, 4))


def test_unipc_and_euler_agree_in_the_limit_of_many_steps(pipeline: KiwiEditPipeline) -> None:
    """On the latents, before they are rounded to grey levels; random weights bend the path little, so three times."""
    generator = torch.Generator().manual_seed(0)
    noise, source = (torch.randn(1, 48, 2, 4, 4, generator=generator) for _ in range(2))
    context = torch.randn(1, 16, 96, generator=generator)

    @torch.inference_mode()
    def apart(steps: int) -> float:
        def velocity(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return 3 * pipeline.model(latents, sigma.expand(1), context, source)  # type: ignore[no-any-return]

        return float((denoised(velocity, noise, steps) - denoised(velocity, noise, steps, "unipc")).abs().mean())

    few, many = apart(10), apart(100)
    assert few > 0.05
    assert many < 0.03
    assert many < few / 4


def test_unipc_is_nearer_to_the_limit_than_euler_at_few_steps() -> None:
    """On a velocity whose path is known: x(σ) = data + (noise - data) σ² has velocity 2 (x - data) / σ."""
    data, noise = torch.full((1, 1, 1, 2, 2), 0.5), torch.full((1, 1, 1, 2, 2), 2.0)

    def velocity(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return 2 * (latents - data) / sigma

    # At σ = 0 all paths end in the data, so look where they are before: at the last level but one.
    off = {}
    for sampler in ("euler", "unipc"):
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def looked(latents: torch.Tensor, sigma: torch.Tensor, seen: list = seen) -> torch.Tensor:
            seen.append((latents, sigma))
            return velocity(latents, sigma)

        denoised(looked, noise, 12, sampler)  # type: ignore[arg-type]
        latents, sigma = seen[-1]
        off[sampler] = (latents - (data + (noise - data) * sigma**2)).abs().max()
    assert off["unipc"] < off["euler"] / 3


def counted(pipeline: KiwiEditPipeline, cache: str, steps: int, frames: int = 9) -> tuple[np.ndarray, int]:
    """An edit and how often the middle blocks of the transformer were computed."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = pipeline.model.transformer.blocks[1].ffn.register_forward_hook(count)
    try:
        (edit,) = pipeline.edit_clips(
            [clip(frames)], [WORDS], num_inference_steps=steps, step_cache=cache, batch_size=1
        )
    finally:
        hook.remove()
    return edit.astype(float), calls


@pytest.mark.parametrize("cache", ["first_block", "mag", "taylor"])
def test_a_step_cache_saves_calls_and_changes_little(pipeline: KiwiEditPipeline, cache: str) -> None:
    frames = 19  # three windows: mag measures on the first
    full, all_calls = counted(pipeline, "none", 24, frames)
    near, calls = counted(pipeline, cache, 24, frames)
    assert all_calls == 3 * 24
    assert calls < 0.8 * all_calls
    assert 0 < np.abs(near - full).mean() < 1.5


def test_a_cache_leaves_nothing_behind(pipeline: KiwiEditPipeline) -> None:
    before, _ = counted(pipeline, "none", 6)
    for cache in ("first_block", "mag", "taylor"):
        first, _ = counted(pipeline, cache, 6)
        again, _ = counted(pipeline, cache, 6)
        assert np.array_equal(first, again)
    after, calls = counted(pipeline, "none", 6)
    assert np.array_equal(before, after)
    assert calls == 6


def test_an_unknown_cache_is_refused(pipeline: KiwiEditPipeline) -> None:
    with pytest.raises(EditError, match="no step cache 'teacache'"):
        pipeline.edit_clips([clip()], [WORDS], step_cache="teacache")  # type: ignore[arg-type]
