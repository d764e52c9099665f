"""The released sizes on the meta device, and their structure run whole in the middle size."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kiwi.configuration import ModelSettings
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.errors import UsageError
from kiwi.model.checkpoint import load_model, save_model, split_patch_embedding
from kiwi.model.conditioning import CompositePatchEmbedding, pack
from kiwi.model.editor import KiwiEditModel
from kiwi.model.errors import ModelError
from kiwi.model.flow import noised
from kiwi.model.inputs import fit_size
from kiwi.model.released import Place, place_of, training_name
from kiwi.model.start import conditioning_of, new_editor
from kiwi.model.tiny import build_tokenizer
from kiwi.model.wan import SIZES, TRAINED_SIZES, build_random, in_precision, name_of
from kiwi.model.wan_codec import WanCodec
from kiwi.presets import build
from kiwi.presets.wan import ABLATIONS, TOKEN_SIDE, WAN_PRESETS
from kiwi.registry.gate import decide_gate
from kiwi.training.optimizers import trainable


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Parameters that the published weights have; the unused text embedder is theirs alone.
PUBLISHED = {
    "wan2.2-5b": {"transformer": 4_999_787_712, "text": 4096, "autoencoder": 704_688_668},
    "wan2.1-14b": {"transformer": 14_288_491_584, "text": 4096, "autoencoder": 126_892_531},
}
QWEN_PARAMETERS = 3_754_622_976


@functools.cache
def on_meta(name: str) -> KiwiEditModel:
    return build_random(name, build_tokenizer(["remove it"]), device="meta", dtype=torch.bfloat16)


@pytest.mark.parametrize("name", TRAINED_SIZES)
def test_the_released_sizes_have_the_parameters_of_the_published_weights(name: str) -> None:
    size, expected = SIZES[name], PUBLISHED[name]
    model = on_meta(name)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    width, channels = size.width, size.transformer["in_channels"]
    text_embedder = expected["text"] * width + width + width * width + width
    added = 2 * (channels * 4 * width + width)  # source and reference convolutions, patches of 2 × 2
    assert count(model.transformer) == expected["transformer"] - text_embedder + added
    assert count(model.codec.vae) == expected["autoencoder"]
    encoder = model.context_encoder
    lora = sum(p.numel() for name, p in encoder.mllm.named_parameters() if "lora_" in name)
    assert count(encoder.mllm) - lora == QWEN_PARAMETERS
    assert lora == 36 * 64 * ((2048 + 2048) + 2 * (2048 + 256) + (2048 + 2048))
    assert count(encoder.query_connector) == 2048 * width + width + width * width + width
    assert {mode: tuple(bank.shape) for mode, bank in encoder.queries.items()} == {
        "image": (256, 2048), "video": (512, 2048), "reference": (768, 2048),
    }  # fmt: skip
    trained = sum(parameter.numel() for _, parameter in trainable(model, ("all",)))
    assert trained == count(model) - QWEN_PARAMETERS


@pytest.mark.parametrize("name", TRAINED_SIZES)
def test_every_trained_tensor_of_a_released_size_has_its_own_name_at_the_authors(name: str) -> None:
    model = on_meta(name)
    stock, added = split_patch_embedding(dict(model.transformer.state_dict()), model.conditioning)
    bridge = [key for key in model.context_encoder.state_dict() if not key.startswith("mllm.") or "lora_" in key]
    ours = [Place("transformer", key) for key in stock]
    ours += [Place("conditioning", key) for key in added] + [Place("connectors", key) for key in bridge]
    theirs = [training_name(place) for place in ours]
    assert len(set(theirs)) == len(ours)
    assert [place_of(key) for key in theirs] == ours


def test_a_720p_clip_has_the_tokens_that_the_paper_s_size_has() -> None:
    size = SIZES["wan2.2-5b"]
    stride, patch = size.autoencoder["scale_factor_spatial"], size.transformer["patch_size"][1]
    assert (704 // (stride * patch)) * (1280 // (stride * patch)) * (1 + 80 // 4) == 18_480


def test_a_configuration_is_known_by_what_defines_it() -> None:
    for name, size in SIZES.items():
        as_json = {key: list(value) if isinstance(value, tuple) else value for key, value in size.transformer.items()}
        assert name_of(as_json) == name
        assert name_of(as_json | {"num_layers": 99}) is None


def test_released_sizes_want_their_foundation_weights_named() -> None:
    with pytest.raises(UsageError, match=r"wan2\.2-5b starts from released weights"):
        new_editor(ModelSettings(preset="wan2.2-5b"), [])
    with pytest.raises(UsageError, match="no model preset 'wan3'"):
        new_editor(ModelSettings(preset="wan3"), [])


@pytest.mark.parametrize("name", sorted(WAN_PRESETS))
def test_presets_and_the_paper_s_ablations_are_whole_configurations(name: str, tmp_path: Path) -> None:
    plain = build(name, workspace=tmp_path, tracking_uri="")
    size = SIZES[plain.model.preset]
    assert [stage.name for stage in plain.stages] == ["stage1", "stage2a", "stage2b", "stage3"]
    assert plain.stage("stage1").trainable == ("queries", "connectors", "lora")
    assert plain.model.size % (size.autoencoder["scale_factor_spatial"] * 2) == 0
    assert plain.model.frames % 4 == 1
    seen = {plain.canonical()}
    for ablation, overrides in ABLATIONS.items():
        changed = build(name, workspace=tmp_path, tracking_uri="", overrides=overrides)
        assert (changed.canonical() in seen) == (ablation == "add_with_timestep_scaling"), ablation
        seen.add(changed.canonical())
        conditioning_of(changed.model)


def test_the_two_recipes_are_those_of_the_scripts_and_of_the_text(tmp_path: Path) -> None:
    released, paper = (build(f"wan2.2-5b{end}", workspace=tmp_path, tracking_uri="") for end in ("", "-paper"))
    assert [(s.steps, s.learning_rate) for s in released.stages] == [
        (30_000, 1e-5), (20_000, 1e-5), (20_000, 1e-5), (15_000, 5e-6),
    ]  # fmt: skip
    assert [(s.size, s.frames) for s in released.stages] == [(1024, 1), (600, 81), (960, 81), (960, 81)]
    assert {s.weighting for s in released.stages} == {"bell"}
    assert [s.reference_scale for s in released.stages] == [None, None, None, (0.7, 1.0)]
    assert {s.learning_rate for s in paper.stages} == {2e-5}
    assert released.stage("stage3").mix["image"] == released.stage("stage3").mix["reference"]
    assert paper.stage("stage3").mix == {"image": 0.5, "video": 0.25, "reference": 0.25}


def test_recipes_hold_about_128_clips_a_batch_and_fill_images_to_their_tokens(tmp_path: Path) -> None:
    for name in sorted(WAN_PRESETS):
        plain = build(name, workspace=tmp_path, tracking_uri="")
        size = SIZES[plain.model.preset]
        token = size.autoencoder["scale_factor_spatial"] * size.transformer["patch_size"][1]
        assert TOKEN_SIDE[plain.model.preset] == token
        assert plain.stage("stage1").batch_tokens is None
        for stage in plain.stages[1:]:
            assert stage.batch_tokens is not None
            assert stage.size is not None
            assert stage.frames is not None
            height, width = fit_size(704, 1280, stage.size, token)
            image = height * width // token**2
            clips = stage.batch_tokens // (image * (1 + (stage.frames - 1) // 4))
            assert 0.9 * 128 <= clips <= 1.1 * 128
            assert stage.batch_tokens // image >= 13 * 0.9 * 128
            assert (stage.reference_scale == (0.7, 1.0)) == ("reference" in stage.mix)


def test_a_released_size_is_promoted_on_enough_samples_compared_one_by_one(tmp_path: Path) -> None:
    gate = build("wan2.2-5b", workspace=tmp_path, tracking_uri="").gate
    scores = {"overall": 3.0, "criteria": {}, "coverage": 1.0, "samples": 120, "baselines": {"copy_source": {
        "overall": 2.0, "comparison": {"chance_better": 0.99}}}}  # fmt: skip
    assert decide_gate(scores, None, gate).decision == "promote"
    assert decide_gate(scores | {"samples": 99}, None, gate).decision == "hold"
    assert decide_gate(scores | {"baselines": {"copy_source": {"overall": 2.0}}}, None, gate).decision == "hold"


@torch.no_grad()
def test_the_noise_level_scales_the_source_in_float32_whatever_the_weights_are() -> None:
    module = CompositePatchEmbedding(nn.Conv3d(4, 8, (1, 2, 2), (1, 2, 2))).to(torch.bfloat16)
    nn.init.normal_(module.source.weight)
    noisy, source = (torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    sigma = torch.tensor([0.8345])  # bfloat16 has 0.8359 next to it
    out = module(pack(noisy, sigma, source, None))
    parts = module.base(noisy.bfloat16()).float(), module.source(source.bfloat16()).float()
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, (parts[0] + parts[1] * sigma).bfloat16())
    assert not torch.equal(out, (parts[0] + parts[1] * sigma.bfloat16().float()).bfloat16())


def clip(frames: int, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("frames", "reference"), [(1, None), (5, None), (5, (40, 30)), (1, (40, 30))])
def test_every_mode_edits_through_the_stock_autoencoder_and_language_model(
    middle_model: KiwiEditModel, frames: int, reference: tuple[int, int] | None
) -> None:
    pipeline = KiwiEditPipeline(middle_model, frames=5, side=64)
    image = None if reference is None else clip(1, *reference, seed=1)[0]
    edits = pipeline.edit_clips([clip(frames)], ["remove the dog"], [image], num_inference_steps=1)
    assert edits[0].shape == (frames, 64, 96, 3)
    again = pipeline.edit_clips([clip(frames)], ["remove the dog"], [image], num_inference_steps=1)
    assert np.array_equal(edits[0], again[0])


def test_bfloat16_weights_give_about_the_velocity_of_float32(middle_model: KiwiEditModel) -> None:
    noisy, source = (torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    context = torch.randn(1, 9, 192, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        full = middle_model(noisy, torch.tensor([0.5]), context, source, source[:, :, :1])
        rounded = in_precision(copy.deepcopy(middle_model), torch.bfloat16)
        half = rounded(noisy, torch.tensor([0.5]), context, source, source[:, :, :1])
    assert rounded.transformer.rope.freqs_cos.dtype == middle_model.transformer.rope.freqs_cos.dtype
    assert half.dtype == torch.float32
    assert 0 < float((half - full).norm() / full.norm()) < 0.05


def test_references_of_different_sizes_share_a_call(middle_model: KiwiEditModel) -> None:
    pipeline = KiwiEditPipeline(middle_model, frames=5, side=64)
    images = [clip(1, 40, 30, seed=1)[0], clip(1, 90, 150, seed=2)[0]]
    edits = pipeline.edit_clips([clip(5), clip(5, seed=3)], ["use it", "use it"], images, num_inference_steps=1)
    assert [edit.shape for edit in edits] == [(5, 64, 96, 3)] * 2


def test_gradients_reach_every_part_of_the_middle_size(middle_model: KiwiEditModel) -> None:
    model, pipeline = middle_model, KiwiEditPipeline(middle_model, frames=5, side=64)
    parts = trainable(model, ("all",))
    saved = {name: parameter.detach().clone() for name, parameter in parts}
    for _, parameter in parts:
        parameter.requires_grad_(True)
        if not parameter.any():  # what starts at zero passes no gradient on
            nn.init.normal_(parameter, std=0.02)
    image = clip(1, 40, 30, seed=1)[0]
    pieces = pipeline._cut(0, clip(5), "use it", image, image, 0)
    latents = model.codec.encode(torch.randn(1, 3, 5, 64, 96))
    sigma = torch.tensor([0.7])
    out = model(noised(latents, latents, sigma), sigma, pipeline._context(pieces), latents, latents[:, :, :1])
    out.square().mean().backward()
    silent = {name for name, parameter in parts if parameter.grad is None or not parameter.grad.any()}
    assert silent == {"context_encoder.queries.image", "context_encoder.queries.video"}
    with torch.no_grad():
        for name, parameter in parts:
            parameter.copy_(saved[name])
            parameter.grad = None


def test_the_middle_size_comes_back_to_the_last_bit(middle_model: KiwiEditModel, tmp_path: Path) -> None:
    save_model(middle_model, tmp_path / "model", "# card\n")
    again = load_model(tmp_path / "model")
    ours, theirs = middle_model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    vae = again.codec.vae.state_dict()
    assert all(torch.equal(tensor, vae[name]) for name, tensor in middle_model.codec.vae.state_dict().items())
    assert (again.vision, again.name) == (middle_model.vision, "middle")
    assert not [path for path in (tmp_path / "model").rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".pth"}]


def test_parts_over_the_shard_size_are_cut_and_read_again(
    middle_model: KiwiEditModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiwi.model.checkpoint.SHARD", "1MB")
    save_model(middle_model, tmp_path / "model", "")
    assert len(list((tmp_path / "model" / "transformer").glob("*-of-*.safetensors"))) > 3
    again = load_model(tmp_path / "model").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in middle_model.state_dict().items())
    next((tmp_path / "model" / "transformer").glob("*-00002-of-*")).unlink()
    with pytest.raises(ModelError, match=r"00002-of-.* does not exist"):
        load_model(tmp_path / "model")


def test_the_codec_takes_the_mean_normalised_by_the_weights_own_statistics(middle_model: KiwiEditModel) -> None:
    vae = middle_model.codec.vae
    frames = torch.rand(1, 3, 5, 32, 48) * 2 - 1
    plain = vae.encode(frames).latent_dist.mode()
    saved = vae.config.latents_mean, vae.config.latents_std
    vae.register_to_config(latents_mean=[0.5] * 16, latents_std=[2.0] * 16)
    try:
        codec = WanCodec(vae)
        latents = codec.encode(frames)
        assert torch.allclose(latents, (plain - 0.5) / 2, atol=1e-6)
        assert latents.shape == (1, 16, 2, 2, 3)
        assert torch.allclose(codec.decode(latents), vae.decode(plain).sample, atol=1e-5)
    finally:
        vae.register_to_config(latents_mean=saved[0], latents_std=saved[1])


@pytest.mark.parametrize("shape", [(1, 3, 4, 32, 32), (1, 3, 5, 40, 32), (1, 1, 5, 32, 32)])
def test_frames_that_do_not_fit_wan_s_layout_are_refused(middle_model: KiwiEditModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"4k\+1|multiples|colours"):
        middle_model.codec.encode(torch.zeros(shape))


def test_a_codec_of_another_width_is_refused(middle_model: KiwiEditModel, tiny_model: KiwiEditModel) -> None:
    with pytest.raises(ModelError, match="codec has 48 channels and the transformer 16"):
        KiwiEditModel(
            middle_model.transformer, middle_model.context_encoder, tiny_model.codec, vision=middle_model.vision
        )


@pytest.mark.parametrize(
    "part", ["mllm/model", "vae/diffusion_pytorch_model", "connectors/model", "conditioning/model"]
)
def test_a_part_that_lacks_a_tensor_is_refused_by_its_name(
    middle_model: KiwiEditModel, tmp_path: Path, part: str
) -> None:
    save_model(middle_model, tmp_path / "model", "")
    path = tmp_path / "model" / f"{part}.safetensors"
    tensors = load_file(path)
    name, _ = tensors.popitem()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing") as error:
        load_model(tmp_path / "model")
    assert name.rpartition(".")[0].split(".")[-1] in error.value.message


def test_a_damaged_language_model_or_autoencoder_is_one_clear_line(middle_model: KiwiEditModel, tmp_path: Path) -> None:
    for part in ("mllm/model.safetensors", "vae/diffusion_pytorch_model.safetensors", "connectors/model.safetensors"):
        folder = tmp_path / part.replace("/", "-")
        save_model(middle_model, folder, "")
        (folder / part).write_bytes((folder / part).read_bytes()[:-64])
        with pytest.raises(ModelError) as error:
            load_model(folder)
        assert part.split("/")[0] in error.value.message
        assert "\n" not in error.value.message
