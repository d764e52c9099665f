"""The editor's parts: what starts at zero, what is stock, and what a folder keeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.model.attention import MatmulAttention
from kiwi.model.checkpoint import load_model, save_model
from kiwi.model.conditioning import CompositePatchEmbedding, pack
from kiwi.model.context import patches
from kiwi.model.editor import KiwiEditModel, adapted
from kiwi.model.errors import ModelError
from kiwi.model.instruction import collate, tokenise


def latents(frames: int = 3, seed: int = 0, batch: int = 2) -> Tensor:
    return torch.randn(batch, 48, frames, 8, 8, generator=torch.Generator().manual_seed(seed))


def stock_transformer() -> torch.nn.Module:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(1)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=48, out_channels=48,
        text_dim=48, freq_dim=32, ffn_dim=64, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


def test_a_new_editor_computes_what_its_backbone_computes() -> None:
    noisy, context, timestep = latents(), torch.randn(2, 5, 48), torch.tensor([900.0, 200.0])
    backbone = stock_transformer().eval()
    backbone.condition_embedder.text_embedder = torch.nn.Identity()
    with torch.no_grad():
        expected = backbone(noisy, timestep, context).sample
        packed = pack(noisy, timestep / 1000, latents(seed=2), None)
        assert torch.equal(adapted(backbone)(packed, timestep, context).sample, expected)


def test_the_source_is_scaled_by_sigma_and_the_reference_replaces_nothing_of_the_video() -> None:
    base = torch.nn.Conv3d(48, 16, (1, 2, 2), (1, 2, 2))
    embedding = CompositePatchEmbedding(base)
    torch.nn.init.normal_(embedding.source.weight)
    torch.nn.init.normal_(embedding.reference.weight)
    noisy, source, reference = latents(), latents(seed=2), latents(1, seed=3)
    sigma = torch.tensor([0.25, 1.0])
    with torch.no_grad():
        out = embedding(pack(noisy, sigma, source, reference))
        expected = base(noisy) + embedding.source(source) * sigma.view(-1, 1, 1, 1, 1)
        assert torch.allclose(out[:, :, :3], expected, atol=1e-6)
        assert torch.allclose(out[:, :, 3:], embedding.reference(reference), atol=1e-6)


def test_the_editor_calls_the_transformer_at_a_thousand_times_sigma(tiny_model: KiwiEditModel) -> None:
    noisy, source, sigma, context = latents(), latents(seed=1), torch.tensor([0.9, 0.2]), torch.randn(2, 5, 96)
    with torch.no_grad():
        packed = pack(noisy, sigma, source, None)
        expected = tiny_model.transformer(packed, torch.tensor([900.0, 200.0]), context).sample
        assert torch.allclose(tiny_model(noisy, sigma, context, source), expected, atol=1e-5)


def test_matmul_attention_is_the_stock_processor_forward_and_backward() -> None:
    inputs = (latents(), torch.tensor([900.0, 200.0]), torch.randn(2, 5, 48))
    gradients, outputs = [], []
    for processor in (None, MatmulAttention()):
        model = stock_transformer()
        model.condition_embedder.text_embedder = torch.nn.Identity()
        for parameter in model.parameters():  # away from ones and zeros, so that every gradient counts
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(3))
        if processor is not None:
            model.set_attn_processor(processor)
        out = model(*inputs).sample
        out.square().mean().backward()
        outputs.append(out.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert torch.allclose(*outputs, atol=1e-5, rtol=1e-4)
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6, rtol=1e-3), name


def test_patches_are_what_qwens_processor_makes() -> None:
    from transformers import Qwen2VLImageProcessor

    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 56 * 84})
    expected = processor(images=image, return_tensors="pt")
    ours, grid = patches(torch.from_numpy(image)[None, None])
    assert [grid.frames, grid.height, grid.width] == expected["image_grid_thw"][0].tolist()
    assert torch.allclose(ours[0], expected["pixel_values"], atol=1e-5)


def context_of(model: KiwiEditModel, instructions: list[str], seed: int = 0) -> Tensor:
    encoder = model.context_encoder
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (1, 2, 56, 56, 3), dtype=torch.uint8, generator=generator)
    pixels, grid = patches(frames)
    visual = encoder.vision_tokens(pixels, grid, "video").expand(len(instructions), -1, -1)
    prompts = [tokenise(encoder.template, encoder.tokenizer, encoder.mllm, i, "video", grid) for i in instructions]
    return encoder(collate(prompts, encoder.tokenizer.pad_token_id), visual)


def test_padding_a_batch_changes_no_context(tiny_model: KiwiEditModel) -> None:
    with torch.no_grad():
        for connector in (tiny_model.context_encoder.query_connector,):
            torch.nn.init.normal_(connector[2].weight, std=0.1, generator=torch.Generator().manual_seed(0))
        short, long = "Remove it.", "Replace the red circle with the cyan square that stands to the left of it."
        together = context_of(tiny_model, [short, long])
        assert torch.allclose(together[:1], context_of(tiny_model, [short]), atol=1e-5)
        assert torch.allclose(together[1:], context_of(tiny_model, [long]), atol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_a_saved_editor_comes_back_to_the_last_bit(tiny_model: KiwiEditModel, tmp_path: Path) -> None:
    save_model(tiny_model, tmp_path / "model", "# card\n")
    again = load_model(tmp_path / "model")
    ours, theirs = tiny_model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not [path for path in (tmp_path / "model").rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".pth"}]


def test_the_stock_processor_takes_over_where_scores_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = (latents(), torch.tensor([900.0, 200.0]), torch.randn(2, 5, 48))
    model = stock_transformer().eval()
    model.condition_embedder.text_embedder = torch.nn.Identity()
    with torch.no_grad():
        stock = model(*inputs).sample
        model.set_attn_processor(MatmulAttention())
        assert not torch.equal(model(*inputs).sample, stock)  # the same function, in another order of rounding
        monkeypatch.setattr("kiwi.model.attention.LONGEST", 1)
        assert torch.equal(model(*inputs).sample, stock)


def test_a_folder_of_the_first_version_still_loads(tiny_model: KiwiEditModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(tiny_model, folder, "# card\n")
    save_file(tiny_model.transformer.state_dict(), folder / "transformer" / "model.safetensors")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(folder / "conditioning")
    index = json.loads((folder / "model_index.json").read_text())
    del index["conditioning"], index["vision"]["rule"]
    (folder / "model_index.json").write_text(json.dumps(index | {"reference_position": "last"}))
    again = load_model(folder).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in tiny_model.state_dict().items())


def test_a_model_folder_reads_like_one_of_diffusers(tiny_model: KiwiEditModel, tmp_path: Path) -> None:
    KiwiEditPipeline(tiny_model).save_pretrained(tmp_path / "model", "# what it is\n")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    assert index["mllm"] == ["transformers", "Qwen2_5_VLForConditionalGeneration"]
    assert (tmp_path / "model" / "README.md").read_text() == "# what it is\n"
    assert KiwiEditPipeline.from_pretrained(tmp_path / "model").model.conditioning == tiny_model.conditioning


@pytest.mark.parametrize("damage", ["truncated", "foreign", "no_index", "pickle"])
def test_a_damaged_folder_is_one_clear_line(tiny_model: KiwiEditModel, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    save_model(tiny_model, folder, "# card\n")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "foreign":
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    elif damage == "no_index":
        (folder / "model_index.json").unlink()
    else:
        torch.save({"x": torch.zeros(1)}, weights)
    with pytest.raises(ModelError) as error:
        load_model(folder)
    assert str(folder) in error.value.message
    assert error.value.remedy
