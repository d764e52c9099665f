"""The pipeline as diffusers' users expect one: what it takes, what it gives back, and what its folder says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from kiwi.configuration import ModelSettings
from kiwi.editing.errors import EditError
from kiwi.editing.options import SamplingOptions
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.editing.streams import StreamEditor
from kiwi.model.codec import TransformCodec
from kiwi.model.editor import KiwiEditModel
from kiwi.model.errors import ModelError
from kiwi.model.start import new_editor

WORDS = "Make the red circle blue."


def clip(frames: int = 5, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def forms(frames: np.ndarray) -> dict[str, Any]:
    """One clip as people hold it."""
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return {
        "array": frames,
        "list of arrays": list(frames),
        "floats": frames.astype(np.float64) / 255,
        "images": [PIL.Image.fromarray(frame) for frame in frames],
        "tensor": tensor,
        "float tensor": tensor.float() / 255,
        "tensor with channels last": torch.from_numpy(frames),
        "list of tensors": list(tensor),
        "a list with one clip": [frames],
        "a batch of one": frames[None],
        "a batch of one tensor": tensor[None],
        "a list with a list of images": [[PIL.Image.fromarray(frame) for frame in frames]],
    }


@pytest.fixture(scope="module")
def expected(random_model: KiwiEditModel) -> np.ndarray:
    return KiwiEditPipeline(random_model).edit_clips([clip()], [WORDS], num_inference_steps=1, seed=3)[0]


@pytest.mark.parametrize("form", forms(clip(1)))
def test_a_clip_is_taken_in_every_form(pipeline: KiwiEditPipeline, expected: np.ndarray, form: str) -> None:
    said = pipeline(forms(clip())[form], WORDS, num_inference_steps=1, seed=3, output_type="uint8")
    assert len(said.frames) == 1
    assert np.array_equal(said.frames[0], expected)


def test_a_single_image_is_a_clip_of_one_frame(pipeline: KiwiEditPipeline) -> None:
    for image in (PIL.Image.fromarray(clip(1)[0]), clip(1)[0], torch.from_numpy(clip(1)[0]).permute(2, 0, 1)):
        assert pipeline(image, WORDS, num_inference_steps=1).frames[0].shape == (1, 64, 64, 3)


def test_an_edit_is_given_in_every_form(pipeline: KiwiEditPipeline, expected: np.ndarray) -> None:
    def edited(kind: str) -> Any:
        return pipeline(clip(), WORDS, num_inference_steps=1, seed=3, output_type=kind).frames[0]  # type: ignore[arg-type]

    floats = edited("np")
    assert floats.dtype == np.float32
    assert np.array_equal(np.rint(floats * 255), expected)
    assert torch.equal(edited("pt"), torch.from_numpy(floats).permute(0, 3, 1, 2))
    assert np.array_equal(np.stack([np.asarray(image) for image in edited("pil")]), expected)


def test_references_are_taken_as_images_one_for_all_or_one_a_clip(pipeline: KiwiEditPipeline) -> None:
    image = PIL.Image.fromarray(clip(1, 30, 20, seed=4)[0])
    clips = [clip(), clip(seed=1)]
    for_all = pipeline(clips, WORDS, image, num_inference_steps=1, output_type="uint8").frames
    listed = pipeline(clips, WORDS, [np.asarray(image), None], num_inference_steps=1, output_type="uint8").frames
    without = pipeline(clips, [WORDS, WORDS], num_inference_steps=1, output_type="uint8").frames
    assert np.abs(for_all[0].astype(int) - listed[0]).max() <= 1
    assert np.abs(without[1].astype(int) - listed[1]).max() <= 1
    assert np.abs(for_all[1].astype(int) - listed[1]).mean() > 0.1


def test_a_reference_with_transparency_is_laid_on_white(pipeline: KiwiEditPipeline) -> None:
    clear = PIL.Image.new("RGBA", (20, 30), (9, 9, 9, 0))
    white = PIL.Image.new("RGB", (20, 30), (255, 255, 255))
    first, second = (
        pipeline(clip(), WORDS, image, num_inference_steps=1, output_type="uint8").frames[0] for image in (clear, white)
    )
    assert np.array_equal(first, second)


def test_a_generator_draws_the_noise_and_goes_on(pipeline: KiwiEditPipeline) -> None:
    def edited(generator: torch.Generator) -> np.ndarray:
        return pipeline(clip(), WORDS, num_inference_steps=1, generator=generator, output_type="uint8").frames[0]  # type: ignore[no-any-return]

    generator = torch.Generator().manual_seed(5)
    first, second = edited(generator), edited(generator)
    assert np.array_equal(first, edited(torch.Generator().manual_seed(5)))
    assert not np.array_equal(first, second)


def test_the_callback_sees_every_step_and_may_change_the_latents(pipeline: KiwiEditPipeline) -> None:
    seen: list[tuple[int, float, tuple[int, ...]]] = []

    def look(
        pipe: object, step: int, timestep: torch.Tensor, given: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        assert pipe is pipeline
        seen.append((step, float(timestep), tuple(given["latents"].shape)))
        return {"latents": torch.zeros_like(given["latents"])}

    (edit,) = pipeline(clip(), WORDS, num_inference_steps=3, callback_on_step_end=look, output_type="uint8").frames
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert seen[0][1] == 1000
    assert {shape for _, _, shape in seen} == {(1, 48, 2, 8, 8)}
    codec = pipeline.model.codec
    nothing = codec.decode(torch.zeros(1, 48, 2, 8, 8)).clamp(-1, 1)
    assert np.abs(edit - ((nothing[0].permute(1, 2, 3, 0) + 1) * 127.5).numpy()).max() <= 0.51


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"video": []}, "no frames"),
        ({"video": "clip.mp4"}, "a str is no video"),
        ({"video": np.zeros((3, 64, 64, 4), np.uint8)}, "shape"),
        ({"video": np.full((3, 64, 64, 3), 200.0)}, "from 200 to 200"),
        ({"video": np.full((3, 64, 64, 3), np.nan)}, "from nan to nan"),
        ({"video": np.zeros((3, 64, 64, 3), np.int64)}, "type int64"),
        ({"video": [clip(1)[0], clip(1, 32, 32)[0]]}, "differ in size: 32x32, 64x64"),
        ({"prompt": [WORDS, WORDS]}, "differ in number"),
        ({"prompt": " \n"}, "instruction of request 0 is empty"),
        ({"prompt": "a" * 10_000}, "has 10,000 characters"),
        ({"prompt": "a\udcffb"}, "is no text"),
        ({"reference_image": [None, None]}, "2 references for 1 videos"),
        ({"reference_image": b"png"}, "a bytes is no video or image"),
        ({"seed": 2**64}, "out of range"),
        ({"num_inference_steps": 0}, "0 sampling steps"),
        ({"num_inference_steps": 10_000}, "10000 sampling steps"),
        ({"output_type": "latent"}, "no output_type 'latent'"),
    ],
)
def test_what_it_cannot_take_is_named(pipeline: KiwiEditPipeline, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EditError, match=said) as error:
        pipeline(**{"video": clip(), "prompt": WORDS, **changes})
    assert error.value.remedy


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64 - 1])
def test_any_seed_that_a_generator_takes_is_taken(pipeline: KiwiEditPipeline, seed: int) -> None:
    assert pipeline(clip(1), WORDS, seed=seed, num_inference_steps=1).frames[0].shape == (1, 64, 64, 3)


def test_a_folder_says_how_its_model_edits(tmp_path: Path) -> None:
    model = new_editor(ModelSettings(size=96, frames=13), [WORDS])
    KiwiEditPipeline(model).save_pretrained(tmp_path / "model")
    said = json.loads((tmp_path / "model" / "model_index.json").read_text())["edit"]
    assert (said["size"], said["frames"], said["steps"], said["shift"]) == (96, 13, 5, 5.0)
    again = KiwiEditPipeline.from_pretrained(tmp_path / "model")
    assert (again.side, again.frames, again.overlap) == (96, 13, 4)
    assert StreamEditor.of(again, SamplingOptions()).options.size == 96
    assert again.model.defaults == model.defaults


def test_what_a_pipeline_was_given_is_what_it_saves(random_model: KiwiEditModel, tmp_path: Path) -> None:
    KiwiEditPipeline(random_model, frames=17, side=48, overlap=6).save_pretrained(tmp_path / "model")
    again = KiwiEditPipeline.from_pretrained(tmp_path / "model")
    assert (again.side, again.frames, again.overlap) == (48, 17, 6)
    chosen = KiwiEditPipeline.from_pretrained(tmp_path / "model", frames=9)
    assert (chosen.side, chosen.frames) == (48, 9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"frames": 0}, "frames is 0"), ({"side": -8}, "side is -8"), ({"overlap": -1}, "overlap is -1")],
)
def test_windows_that_cannot_be_are_refused(random_model: KiwiEditModel, changes: dict[str, int], said: str) -> None:
    with pytest.raises(EditError, match=said):
        KiwiEditPipeline(random_model, **changes)  # type: ignore[arg-type]


def test_folders_older_than_the_defaults_have_those_of_their_preset(
    random_model: KiwiEditModel, tmp_path: Path
) -> None:
    KiwiEditPipeline(random_model).save_pretrained(tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    said = json.loads(index.read_text())
    del said["edit"]
    index.write_text(json.dumps(said))
    again = KiwiEditPipeline.from_pretrained(tmp_path / "model")
    assert (again.side, again.frames, again.model.defaults.steps) == (64, 9, 5)
    index.write_text(json.dumps(said | {"preset": "wan2.2-5b"}))
    released = KiwiEditPipeline.from_pretrained(tmp_path / "model")
    assert (released.side, released.frames, released.model.defaults.steps) == (960, 81, 50)
    index.write_text(json.dumps(said | {"edit": {"size": 64, "frames": 0, "overlap": 0, "steps": 5}}))
    with pytest.raises(ModelError, match="frames is 0"):
        KiwiEditPipeline.from_pretrained(tmp_path / "model")


def test_steps_and_shift_are_the_model_s_where_none_are_said(pipeline: KiwiEditPipeline) -> None:
    steps: list[float] = []

    def look(_: object, step: int, timestep: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
        steps.append(round(float(timestep), 2))

    pipeline(clip(1), WORDS, callback_on_step_end=look)
    assert steps == [round(1000 * 5 * s / (1 + 4 * s), 2) for s in (1.0, 0.8, 0.6, 0.4, 0.2)]


def test_to_moves_every_part_and_says_where_it_is(tmp_path: Path) -> None:
    """The meta device stands for a GPU, which is not here: parts that were left behind would not be on it."""
    model = new_editor(ModelSettings(), [WORDS])
    pipeline = KiwiEditPipeline(model)
    assert pipeline.to(torch.bfloat16) is pipeline
    assert (pipeline.dtype, pipeline.device.type) == (torch.bfloat16, "cpu")
    assert model.transformer.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert model.context_encoder.query_connector[0].weight.dtype == torch.bfloat16
    assert pipeline.to("cpu", torch.float32).dtype == torch.float32
    assert pipeline.to(device=torch.device("cpu"), dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(EditError, match="no precision"):
        pipeline.to(torch.int8)
    with pytest.raises(EditError, match="no device"):
        pipeline.to("toaster")
    with pytest.raises(EditError, match="takes no where"):
        pipeline.to(where="cpu")


def test_the_transform_codec_works_where_it_was_moved() -> None:
    codec = TransformCodec()
    assert codec.encode(torch.zeros(1, 3, 5, 16, 16)).device.type == "cpu"
    assert codec.to("meta") is codec
    latents = codec.encode(torch.zeros(1, 3, 5, 16, 16))
    assert latents.device.type == "meta"
    assert codec.decode(torch.zeros(1, 48, 2, 2, 2)).device.type == "meta"


def test_a_model_whose_result_is_not_a_number_is_told(random_model: KiwiEditModel) -> None:
    weight = random_model.transformer.proj_out.bias
    saved = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0] = float("nan")
        with pytest.raises(EditError, match="not finite"):
            KiwiEditPipeline(random_model)(clip(1), WORDS, num_inference_steps=1)
    finally:
        with torch.no_grad():
            weight.copy_(saved)
