"""The synthesizer with Qwen-Image-Edit: the released pipeline's classes, tiny and random, saved and loaded as a folder.

Random weights draw nothing sensible. What they can show: that a picture is its request's and its seed's alone, what the
pipeline is really given, that guidance and a LoRA have an effect, and what is refused before any work.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from kiwi.configuration import ImageEditorSettings
from kiwi.curation.curators import qwen_image_edit_synthesize as curator
from kiwi.curation.curators.protocols import RegionKind, Synthesis, SynthesizeRequest
from kiwi.curation.curators.qwen_image_edit_synthesize import GREY, QwenImageEditSynthesizer, covered, cut, output_size
from kiwi.curation.curators.weights import WeightsError
from kiwi.dataset.schema import Reason
from kiwi.errors import UsageError
from kiwi.model.tiny import SPECIALS, build_tokenizer

PIXELS = 4096
HEIGHT, WIDTH = 60, 80


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole pipeline: transformer, VAE, text encoder, tokenizer, processor and scheduler."""
    folder = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    trained = json.loads(build_tokenizer(curator.PROMPTS.values()).backend_tokenizer.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=trained["vocab"], merges=[tuple(pair) for pair in trained["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS)})
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(max_pixels=56 * 56),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
    )
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    for part in (transformer, vae):
        for tensor in part.parameters():
            if tensor.dim() > 1:  # large enough that what goes in shows in what comes out
                torch.nn.init.normal_(tensor, std=1.3 / tensor[0].numel() ** 0.5)
    pipeline = QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02, time_shift_type="exponential"
        ),
        vae=vae,
        text_encoder=text_encoder(tokenizer),
        tokenizer=tokenizer,
        processor=processor,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": len(tokenizer), "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 1, "out_hidden_size": 32,
            "window_size": 112, "fullatt_block_indexes": [0],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)


def synthesizer(folder: Path, **changes: object) -> QwenImageEditSynthesizer:
    plain = {"model": str(folder), "device": "cpu", "dtype": "float32", "batch": 1, "steps": 2, "pixels": PIXELS}
    settings = ImageEditorSettings.model_validate({**plain, **changes})
    return QwenImageEditSynthesizer.from_settings(settings, max_aspect=4.0, min_side=8, max_side=2048)


@pytest.fixture(scope="module")
def maker(saved: Path) -> QwenImageEditSynthesizer:
    return synthesizer(saved)


def request(kind: RegionKind = "foreground", seed: int = 1, picture: int = 0) -> SynthesizeRequest:
    target = np.random.default_rng(picture).integers(0, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[15:45, 20:50] = True
    return SynthesizeRequest("a", target, mask, kind, "replace the dog with a cat", seed)


def image_of(made: Synthesis) -> NDArray[np.uint8]:
    assert (made.reason, made.detail, made.origin) == (None, "", "qwen_image_edit")
    assert made.image is not None
    return made.image


@pytest.fixture
def calls(maker: QwenImageEditSynthesizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, object]]]:
    """What the pipeline is given, call by call; it works all the same."""
    seen: list[dict[str, object]] = []
    call = QwenImageEditPlusPipeline.__call__

    def watched(self: object, **named: object) -> object:
        seen.append(named)
        return call(self, **named)

    monkeypatch.setattr(QwenImageEditPlusPipeline, "__call__", watched)
    return seen


def test_the_same_request_gives_the_same_picture_whatever_came_before(maker: QwenImageEditSynthesizer) -> None:
    first, other, again = maker.synthesize([request(), request(seed=2), request()])
    assert np.array_equal(image_of(first), image_of(again))
    assert not np.array_equal(image_of(first), image_of(other))


def test_the_picture_depends_on_the_target_and_the_kind_of_region(maker: QwenImageEditSynthesizer) -> None:
    made = list(maker.synthesize([request(), request(picture=5), request("object")]))
    images = [image_of(each).tobytes() for each in made]
    assert len(set(images)) == 3
    assert set(made[0].measures) == set(maker.measures)


def test_guidance_is_really_on(saved: Path, maker: QwenImageEditSynthesizer, calls: list[dict[str, object]]) -> None:
    guided = image_of(next(maker.synthesize([request()])))
    stronger = image_of(next(synthesizer(saved, guidance=9.0).synthesize([request()])))
    without = image_of(next(synthesizer(saved, guidance=1.0).synthesize([request()])))
    assert [(call["negative_prompt"], call["true_cfg_scale"]) for call in calls] == [
        (" ", 4.0),
        (" ", 9.0),
        (None, 1.0),
    ]
    assert not np.array_equal(guided, stronger)
    assert not np.array_equal(guided, without)


def test_output_and_input_have_the_pixels_of_the_setting(
    saved: Path, maker: QwenImageEditSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = []
    forward = QwenImageTransformer2DModel.forward

    def watched(self: object, hidden_states: torch.Tensor, **named: object) -> object:
        tokens.append(hidden_states.shape[1])
        return forward(self, hidden_states, **named)

    monkeypatch.setattr(QwenImageTransformer2DModel, "forward", watched)
    small = image_of(next(maker.synthesize([request()])))
    large = image_of(next(synthesizer(saved, pixels=4 * PIXELS).synthesize([request()])))
    assert small.shape == (48, 80, 3)
    assert 0.8 < large.shape[0] * large.shape[1] / (4 * PIXELS) < 1.25
    # a token is 16x16 pixels; noise and input picture have about as many each
    assert 1.5 < tokens[0] / (small.shape[0] * small.shape[1] / 256) < 2.6
    assert 1.5 < tokens[-1] / (large.shape[0] * large.shape[1] / 256) < 2.6


@pytest.mark.parametrize("size", [(1080, 1920), (720, 720), (100, 390), (8, 31)])
def test_sizes_keep_the_aspect_in_multiples_that_the_model_takes(size: tuple[int, int]) -> None:
    height, width = output_size(*size, 262_144, 16)
    assert height % 16 == width % 16 == 0
    assert 0.85 < height * width / 262_144 < 1.15
    assert abs(math.log(width / height) - math.log(size[1] / size[0])) < 0.05


def test_a_backgrounds_foreground_is_shown_as_grey_and_nothing_of_it_comes_through(
    maker: QwenImageEditSynthesizer, calls: list[dict[str, object]]
) -> None:
    asked = request()
    list(maker.synthesize([asked]))
    shown = np.asarray(calls[0]["image"][0])  # type: ignore[index]
    assert shown.shape == asked.target.shape
    assert (shown[asked.mask] == GREY).all()
    assert np.array_equal(shown[:10], asked.target[:10])
    assert "grey" in str(calls[0]["prompt"])


def test_a_subject_is_shown_as_a_tight_crop_on_white(
    maker: QwenImageEditSynthesizer, calls: list[dict[str, object]]
) -> None:
    asked = request("object")
    list(maker.synthesize([asked]))
    shown = np.asarray(calls[0]["image"][0])  # type: ignore[index]
    assert shown.shape == (34, 34, 3)
    assert np.array_equal(shown[2:-2, 2:-2], asked.target[15:45, 20:50])
    assert (shown[0, 0] == 255).all()
    assert "plain white background" in str(calls[0]["prompt"])


def test_a_mask_at_the_border_is_cut_and_covered_within_the_frame() -> None:
    asked = request()
    corner = np.zeros_like(asked.mask)
    corner[:20, -25:] = True
    assert cut(asked.target, corner).shape == (21, 26, 3)
    assert (covered(asked.target, corner)[corner] == GREY).all()


def test_the_empty_space_around_a_subject_goes() -> None:
    image = np.full((100, 100, 3), 255, np.uint8)
    image[40:60, 30:70] = (10, 200, 30)
    kept = curator.trimmed(image)
    assert kept.shape == (24, 44, 3)
    assert curator.trimmed(np.full((10, 10, 3), 255, np.uint8)).size == 0


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ((slice(10, 14), slice(5, 75)), Reason.EXTREME_ASPECT),
        ((slice(10, 14), slice(10, 14)), Reason.EXTREME_RESOLUTION),
        ((slice(0, 0), slice(0, 0)), Reason.REFERENCE_DEGENERATE),
    ],
)
def test_extreme_shapes_are_refused_before_weights_are_loaded(
    tmp_path: Path, region: tuple[slice, slice], reason: Reason
) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[region] = True
    asked = SynthesizeRequest("a", request().target, mask, "object", "", 0)
    assert next(synthesizer(tmp_path / "absent").synthesize([asked])).reason is reason


def test_a_foreground_that_hides_almost_all_is_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    asked = SynthesizeRequest("a", request().target, np.ones((HEIGHT, WIDTH), bool), "foreground", "", 0)
    made = next(synthesizer(tmp_path / "absent").synthesize([asked]))
    assert (made.reason, made.detail) == (Reason.REFERENCE_DEGENERATE, "the foreground hides 1.00 of the background")


@pytest.mark.parametrize(
    ("value", "reason"), [(1.0, Reason.REFERENCE_DEGENERATE), (float("nan"), Reason.CURATOR_ERROR)]
)
def test_an_empty_or_broken_picture_is_no_reference(
    maker: QwenImageEditSynthesizer, monkeypatch: pytest.MonkeyPatch, value: float, reason: Reason
) -> None:
    """The pipeline's answer is a fake: random weights do not draw an empty page."""

    class Answer:
        images = [np.full((48, 80, 3), value, np.float32)]

    monkeypatch.setattr(QwenImageEditPlusPipeline, "__call__", lambda self, **_: Answer)
    assert next(maker.synthesize([request("object")])).reason is reason


def lora(folder: Path, name: str, scale: float = 1.0, layer: str = "transformer_blocks.0.attn.to_q") -> Path:
    generator = torch.Generator().manual_seed(3)
    weights = {
        f"transformer.{layer}.lora_A.weight": scale * torch.randn(4, 32, generator=generator),
        f"transformer.{layer}.lora_B.weight": scale * torch.randn(32, 4, generator=generator),
    }
    save_file(weights, folder / name)
    return folder / name


def test_a_lora_changes_the_picture(saved: Path, tmp_path: Path) -> None:
    strong, silent = lora(tmp_path, "strong.safetensors"), lora(tmp_path, "silent.safetensors", scale=0.0)
    by_path = image_of(next(synthesizer(saved, lora=str(strong)).synthesize([request()])))
    by_name = image_of(next(synthesizer(saved, lora=f"{tmp_path}::strong.safetensors").synthesize([request()])))
    nothing = image_of(next(synthesizer(saved, lora=str(silent)).synthesize([request()])))
    assert np.array_equal(by_path, by_name)
    assert not np.array_equal(by_path, nothing)


def test_a_lora_brings_the_schedule_it_was_distilled_with(saved: Path, tmp_path: Path) -> None:
    pipeline = synthesizer(saved, lora=str(lora(tmp_path, "a.safetensors"))).loaded().pipeline
    pipeline.scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.25, 4), mu=math.log(3))
    plain = np.array([1.0, 0.75, 0.5, 0.25])
    assert pipeline.scheduler.config.base_shift == pipeline.scheduler.config.max_shift == math.log(3)
    assert np.allclose(pipeline.scheduler.sigmas[:4].numpy(), 3 * plain / (1 + 2 * plain), atol=1e-4)


def test_a_lora_of_another_model_is_refused(saved: Path, tmp_path: Path) -> None:
    strange = lora(tmp_path, "strange.safetensors", layer="transformer_blocks.7.attn.to_q")
    with pytest.raises(WeightsError, match=r"curation\.qwen_image_edit\.lora"):
        next(synthesizer(saved, lora=str(strange)).synthesize([request()]))


@pytest.mark.parametrize("name", ["someone/lora::weights.bin", "/folder/weights.pt"])
def test_a_lora_that_is_a_pickle_is_a_wrong_setting(saved: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"is no \.safetensors file"):
        synthesizer(saved, lora=name)


def test_batches_are_a_wrong_setting(saved: Path) -> None:
    with pytest.raises(UsageError, match="one picture at a time"):
        synthesizer(saved, batch=2)


def test_a_single_step_needs_a_lora(saved: Path, tmp_path: Path) -> None:
    """The model's own schedule divides by zero there, and the picture would be none."""
    with pytest.raises(UsageError, match=r"curation\.qwen_image_edit\.steps is 1"):
        synthesizer(saved, steps=1)
    distilled = synthesizer(saved, steps=1, lora=str(lora(tmp_path, "one.safetensors", scale=0.1)))
    assert image_of(next(distilled.synthesize([request()]))).std() > 1


@pytest.mark.parametrize("part", ["text_encoder", "transformer"])
def test_a_pipeline_that_lacks_a_tensor_is_refused(saved: Path, tmp_path: Path, part: str) -> None:
    broken = copied(saved, tmp_path)
    file = next((broken / part).glob("*.safetensors"))
    weights = load_file(file)
    del weights[sorted(weights)[3]]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="holds no weights for 1 tensors"):
        synthesizer(broken).loaded()


def test_a_part_that_is_a_pickle_is_refused(saved: Path, tmp_path: Path) -> None:
    broken = copied(saved, tmp_path)
    file = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(WeightsError, match=r"as a pickle \(transformer/diffusion_pytorch_model\.bin\)"):
        synthesizer(broken).loaded()


def copied(saved: Path, folder: Path) -> Path:
    for file in saved.rglob("*"):
        if file.is_file():
            place = folder / file.relative_to(saved)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return folder


def test_running_out_of_memory_names_what_to_lower(
    maker: QwenImageEditSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is made here: a test cannot exhaust a machine."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(QwenImageEditPlusPipeline, "__call__", full)
    with pytest.raises(WeightsError) as caught:
        next(maker.synthesize([request()]))
    assert "lower curation.qwen_image_edit.pixels (now 4096)" in caught.value.remedy
    assert "offload" in caught.value.remedy
