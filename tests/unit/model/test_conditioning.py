"""The paper's conditioning and the choices its tables 4 and 5 compare it with: shapes, starts, and that each trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kiwi.configuration import ModelSettings, StageSettings
from kiwi.errors import UsageError
from kiwi.model.checkpoint import load_model, save_model
from kiwi.model.conditioning import CompositePatchEmbedding, Conditioning, LearnedScale, pack
from kiwi.model.context import patches
from kiwi.model.editor import KiwiEditModel, adapted
from kiwi.model.errors import ModelError
from kiwi.model.instruction import collate, tokenise
from kiwi.model.start import new_editor
from kiwi.training.loop import flow_matching_loss
from kiwi.training.mixture import Batch
from kiwi.training.optimizers import Optimizers

ABLATIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "learned_scaling": {"source_scaling": "learned"},
    "no_timestep_scaling": {"source_scaling": "none"},
    "shared_patch_embedding": {"source_embedding": "shared"},
    "channel_concatenation": {"source_embedding": "channels"},
    "queries_only": {"reference_features": False},
    "reference_first": {"reference_position": "first"},
}


def editor(settings: ModelSettings) -> KiwiEditModel:
    return new_editor(settings, ["Remove it.", "Replace the red circle with the one shown."])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def embedding(**choice: Any) -> CompositePatchEmbedding:
    torch.manual_seed(0)
    module = CompositePatchEmbedding(torch.nn.Conv3d(4, 8, (1, 2, 2), (1, 2, 2)), Conditioning(**choice))
    for name, parameter in module.named_parameters():
        if name.startswith(("source", "reference")):
            torch.nn.init.normal_(parameter)
    return module


NOISY, SOURCE, REFERENCE = drawn(2, 4, 3, 4, 6), drawn(2, 4, 3, 4, 6, seed=1), drawn(2, 4, 1, 4, 6, seed=2)
SIGMA = torch.tensor([0.25, 1.0])


@torch.no_grad()
def test_each_embedding_is_the_sum_that_it_is_said_to_be() -> None:
    level = SIGMA.view(-1, 1, 1, 1, 1)
    for choice, expected in (
        ({}, lambda m: m.base(NOISY) + m.source(SOURCE) * level),
        ({"source_scaling": "learned"}, lambda m: m.base(NOISY) + m.source(SOURCE) * level),
        ({"source_scaling": "none"}, lambda m: m.base(NOISY) + m.source(SOURCE)),
        ({"source_embedding": "shared"}, lambda m: m.base(NOISY) + m.base(SOURCE) * level),
        ({"source_embedding": "channels"}, lambda m: m.base(torch.cat([NOISY, SOURCE], dim=1))),
    ):
        module = embedding(**choice)
        for position in ("last", "first"):
            out = module(pack(NOISY, SIGMA, SOURCE, REFERENCE, position))
            video, reference = (out[:, :, :3], out[:, :, 3:]) if position == "last" else (out[:, :, 1:], out[:, :, :1])
            assert torch.allclose(video, expected(module), atol=1e-6), choice
            assert torch.allclose(reference, module.reference(REFERENCE), atol=1e-6), choice


@torch.no_grad()
@pytest.mark.parametrize("scaling", ["sigma", "learned", "none"])
def test_without_a_source_nothing_is_added_whatever_was_learned(scaling: str) -> None:
    module = embedding(source_scaling=scaling)
    if scaling == "learned":
        module.scale.values.add_(1)
    assert torch.equal(module(pack(NOISY, SIGMA, None, None)), module.base(NOISY))


def test_the_learned_scale_starts_as_sigma_and_moves_where_it_was_used() -> None:
    scale = LearnedScale()
    sigma = torch.linspace(0, 1, 101)
    assert torch.allclose(scale(sigma), sigma, atol=1e-6)
    scale(torch.tensor([0.5])).sum().backward()
    assert torch.nonzero(scale.values.grad).flatten().tolist() == [16]


def test_the_widened_convolution_keeps_the_backbone_in_its_first_half() -> None:
    base = torch.nn.Conv3d(4, 8, (1, 2, 2), (1, 2, 2))
    wide = CompositePatchEmbedding(base, Conditioning(source_embedding="channels")).base
    assert wide.weight.shape == (8, 8, 1, 2, 2)
    assert torch.equal(wide.weight[:, :4], base.weight)
    assert wide.weight[:, 4:].abs().sum() > 0  # at zero it would be the function of adding without scaling


def batch(model: KiwiEditModel) -> Batch:
    """Two random samples with a reference: fixed, so that a few steps can fit them."""
    encoder, rng = model.context_encoder, np.random.default_rng(0)
    clips = torch.from_numpy(rng.integers(0, 256, (2, 2, 56, 56, 3), dtype=np.uint8))
    pixels, grid = patches(clips)
    visual = encoder.vision_tokens(pixels, grid, "video").detach()
    pixels, reference_grid = patches(clips[:, :1])
    reference = encoder.vision_tokens(pixels, reference_grid, "image").detach()
    said = ("Remove it.", "Replace the red circle with the one shown.")
    prompts = [
        tokenise(encoder.template, encoder.tokenizer, encoder.mllm, text, "reference", grid, reference_grid)
        for text in said
    ]
    source = drawn(2, 48, 2, 4, 4)
    return Batch(
        "reference", ["a", "b"], collate(prompts, encoder.tokenizer.pad_token_id), source, source + 1, visual,
        drawn(2, 48, 1, 4, 4, seed=3), reference,
    )  # fmt: skip


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_choice_trains_and_is_kept(name: str, tmp_path: Path) -> None:
    model = editor(ModelSettings(**ABLATIONS[name]))
    stage = StageSettings(
        name=name, steps=8, batch_size=2, mix={"reference": 1.0}, learning_rate=5e-3, mllm_learning_rate=5e-3
    )
    optimizers, data = Optimizers(model, stage), batch(model)
    before = {key: tensor.clone() for key, tensor in model.named_parameters()}
    losses = []
    for _ in range(stage.steps):
        loss = flow_matching_loss(model, data, (0, 3, 0))
        loss.backward()
        optimizers.step(1.0)
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    learned = {key for key, tensor in model.named_parameters() if not torch.equal(tensor, before[key])}
    assert wanted_parts(name) <= {part for part in PARTS if any(key.startswith(PARTS[part]) for key in learned)}
    assert absent_parts(name).isdisjoint(part for part in PARTS if any(key.startswith(PARTS[part]) for key in before))
    save_model(model, tmp_path / "model", "")
    again = load_model(tmp_path / "model")
    assert again.conditioning == model.conditioning
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


PARTS = {
    "base": "transformer.patch_embedding.base.",
    "source": "transformer.patch_embedding.source.",
    "scale": "transformer.patch_embedding.scale.",
    "reference": "transformer.patch_embedding.reference.",
    "blocks": "transformer.blocks.",
    "queries": "context_encoder.queries.reference",
    "query_connector": "context_encoder.query_connector.",
    "reference_connector": "context_encoder.reference_connector.",
    "adapters": "context_encoder.mllm.model.language_model.layers.0.self_attn.q_proj.lora_B",
}


def absent_parts(name: str) -> set[str]:
    absent = set() if name == "learned_scaling" else {"scale"}
    absent |= {"source"} if name in ("shared_patch_embedding", "channel_concatenation") else set()
    return absent | ({"reference_connector"} if name == "queries_only" else set())


def wanted_parts(name: str) -> set[str]:
    return set(PARTS) - absent_parts(name)


def test_the_source_half_of_a_widened_convolution_learns() -> None:
    model = editor(ModelSettings(source_embedding="channels"))
    flow_matching_loss(model, batch(model), (0, 3, 0)).backward()
    gradient = model.transformer.patch_embedding.base.weight.grad
    assert gradient[:, 48:].abs().sum() > 0


def test_queries_alone_make_a_shorter_context() -> None:
    lengths = {}
    for features in (True, False):
        model = editor(ModelSettings(reference_features=features))
        data = batch(model)
        context = model.context_encoder(data.prompts, data.vision, data.reference_vision)
        lengths[features] = context.shape[1]
    assert lengths == {True: 4 + 16, False: 16}


def test_a_seed_gives_the_same_editor_whatever_was_drawn_before() -> None:
    for choice in ({}, {"source_embedding": "channels"}):
        torch.manual_seed(1)
        first = editor(ModelSettings(**choice)).state_dict()
        torch.manual_seed(2)
        again = editor(ModelSettings(**choice)).state_dict()
        assert all(torch.equal(first[key], again[key]) for key in first), choice


def test_a_scaling_without_a_sum_is_wrong_use() -> None:
    with pytest.raises(UsageError, match="learned"):
        editor(ModelSettings(source_embedding="channels", source_scaling="learned"))


def test_a_folder_of_another_conditioning_is_refused_by_name(tmp_path: Path) -> None:
    save_model(editor(ModelSettings(source_scaling="learned")), tmp_path / "model", "")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(index.read_text().replace('"learned"', '"sigma"'))
    with pytest.raises(ModelError, match=r"1 unknown \(patch_embedding\.scale\.values\)"):
        load_model(tmp_path / "model")


def test_the_stock_class_loads_the_transformer_of_every_choice(tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    for name in ("paper", "channel_concatenation"):
        model = editor(ModelSettings(**ABLATIONS[name]))
        save_model(model, tmp_path / name, "")
        stock, said = WanTransformer3DModel.from_pretrained(tmp_path / name / "transformer", output_loading_info=True)
        assert not said["unexpected_keys"]
        assert all("text_embedder" in key for key in said["missing_keys"])
        weight = model.transformer.patch_embedding.base.weight
        assert torch.equal(stock.patch_embedding.weight, weight[:, :48])
        assert adapted(stock).patch_embedding.latent_channels == 48
