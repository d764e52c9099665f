"""What saves memory, and what is said when there is none: offload, tiling, precision, devices that are not there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kiwi.configuration import ModelSettings
from kiwi.editing.errors import EditError
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.editing.placement import Placement
from kiwi.model.editor import KiwiEditModel
from kiwi.model.start import new_editor
from kiwi.training.start import initial_model
from tests.unit.editing.conftest import awakened

WORDS = "Make the red circle blue."


def clip(frames: int = 9, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_an_offloaded_model_has_one_part_on_the_device_at_a_time(
    random_model: KiwiEditModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is a fake, for there is no other than the CPU here: "cpu:0" stands for it, and "cpu" for the rest."""
    monkeypatch.setattr(random_model.codec, "to", lambda device: None, raising=False)
    names = {
        id(random_model.context_encoder): "language model",
        id(random_model.transformer): "transformer",
        id(random_model.codec): "codec",
    }
    resident: set[str] = set()
    most, worked = 0, set()

    def move(part: object, device: str) -> None:
        nonlocal most
        (resident.add if device == "cpu:0" else resident.discard)(names[id(part)])
        worked.update(resident)
        most = max(most, len(resident))

    monkeypatch.setattr("kiwi.editing.placement._move", move)
    (plain,) = KiwiEditPipeline(random_model).edit_clips([clip()], [WORDS], num_inference_steps=2)
    assert not worked
    pipeline = KiwiEditPipeline(random_model, placement=Placement("cpu:0", offload="model"))
    seen: list[set[str]] = []
    hook = random_model.transformer.register_forward_pre_hook(lambda *_: seen.append(set(resident)))
    try:
        (edit,) = pipeline.edit_clips([clip()], [WORDS], num_inference_steps=2)
    finally:
        hook.remove()
    assert np.array_equal(edit, plain)
    assert most == 1
    assert worked == set(names.values())
    assert seen == [{"transformer"}] * 2
    assert not resident


def test_tiling_cuts_what_the_autoencoder_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_editor(ModelSettings(preset="middle"), [WORDS])
    vae = model.codec.vae  # type: ignore[attr-defined]
    for side in ("height", "width"):  # the stock tiles are larger than what a test should take time for
        monkeypatch.setattr(vae, f"tile_sample_min_{side}", 64)
        monkeypatch.setattr(vae, f"tile_sample_stride_{side}", 48)
    sizes: list[tuple[int, ...]] = []
    vae.decoder.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[-2:])))
    picture = clip(1, 128, 128)
    KiwiEditPipeline(model, side=128).edit_clips([picture], [WORDS], num_inference_steps=1)
    largest = max(sizes)
    sizes.clear()
    (edit,) = KiwiEditPipeline(model, side=128, placement=Placement(tiling=True)).edit_clips([picture], [WORDS])
    assert edit.shape == picture.shape
    assert max(sizes) < largest


def test_half_precision_comes_near_to_full() -> None:
    full = KiwiEditPipeline(awakened(initial_model(ModelSettings())))
    half = KiwiEditPipeline(awakened(initial_model(ModelSettings())), placement=Placement(dtype="bfloat16"))
    assert half.dtype == torch.bfloat16
    first, second = (
        each.edit_clips([clip()], [WORDS], num_inference_steps=3)[0].astype(float) for each in (full, half)
    )
    assert 0 < np.abs(first - second).mean() < 3


def test_an_autoencoder_of_half_precision_comes_near_to_full() -> None:
    model = new_editor(ModelSettings(preset="middle"), [WORDS])
    vae = model.codec.vae  # type: ignore[attr-defined]
    (full,) = KiwiEditPipeline(model).edit_clips([clip(5)], [WORDS], num_inference_steps=1)
    half = KiwiEditPipeline(model, placement=Placement(vae_dtype="bfloat16"))
    assert (vae.dtype, half.dtype) == (torch.bfloat16, torch.float32)
    (rounded,) = half.edit_clips([clip(5)], [WORDS], num_inference_steps=1)
    assert 0 < np.abs(full.astype(float) - rounded).mean() < 3


@pytest.mark.parametrize(
    ("device", "said"), [("cuda", "no CUDA device"), ("gpu", "no device 'gpu'"), ("meta", "no device 'meta'")]
)
def test_a_device_that_is_not_there_is_named(
    random_model: KiwiEditModel, device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EditError, match=said):
        KiwiEditPipeline(random_model, placement=Placement(device))


def test_a_batch_that_does_not_fit_is_edited_in_smaller_ones(pipeline: KiwiEditPipeline) -> None:
    """Memory is a fake: more than two windows at once are said not to fit."""
    whole, sizes = pipeline._denoise, []

    def tight(batch, sampling):  # type: ignore[no-untyped-def]
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(batch))
        return whole(batch, sampling)

    (before,) = pipeline.edit_clips([clip(30)], [WORDS], num_inference_steps=1, batch_size=2)
    pipeline._denoise = tight  # type: ignore[method-assign]
    (after,) = pipeline.edit_clips([clip(30)], [WORDS], num_inference_steps=1, batch_size=6)
    assert max(sizes) <= 2
    assert np.abs(before.astype(int) - after).max() <= 1


def test_too_little_memory_for_one_window_says_what_to_lower(pipeline: KiwiEditPipeline) -> None:
    def full(batch, sampling):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("no room")

    pipeline._denoise = full  # type: ignore[method-assign]
    with pytest.raises(EditError, match=r"out of memory.*9 frames of 64x64") as error:
        pipeline.edit_clips([clip()], [WORDS])
    assert error.value.reason == "out_of_memory"
    for option in ("--size", "--window", "--offload", "--tiling"):
        assert option in error.value.remedy
