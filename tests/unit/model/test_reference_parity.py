"""Our model against vectors computed with the authors' code (tests/fixtures/reference-parity)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kiwi.model.conditioning import drop_reference, pack
from kiwi.model.context import ContextEncoder, patches
from kiwi.model.editor import adapted
from kiwi.model.errors import ModelError
from kiwi.model.flow import bell_weights, noised, sampling_sigmas, training_sigmas
from kiwi.model.instruction import PromptTemplate, collate, tokenise
from kiwi.model.released import context_names, transformer_names
from kiwi.model.tiny import add_lora
from kiwi.model.vision import VisionBudget

VECTORS = Path(os.environ.get("KIWI_PARITY_DIR", Path(__file__).parents[2] / "fixtures" / "reference-parity"))
TOLERANCE = 1e-4
DIT = json.loads((VECTORS / "dit" / "spec.json").read_text())
MLLM = json.loads((VECTORS / "mllm" / "spec.json").read_text())


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module")
def transformer() -> Any:
    from diffusers import WanTransformer3DModel

    config = DIT["config"] | {"patch_size": tuple(DIT["config"]["patch_size"])}
    model = adapted(WanTransformer3DModel(**config))
    model.load_state_dict(transformer_names(load_file(VECTORS / "dit" / "training_checkpoint.safetensors")))
    return model.eval()


@pytest.mark.parametrize("case", DIT["cases"], ids=lambda case: case["name"])
def test_velocities_are_the_authors(transformer: Any, case: dict[str, Any]) -> None:
    vectors = load_file(VECTORS / "dit" / "cases.safetensors")
    name, position = case["name"], case["reference_position"]
    noisy = vectors[f"{name}.noisy"]
    packed = pack(
        noisy, torch.tensor([case["sigma"]]), vectors[f"{name}.source"], vectors.get(f"{name}.reference"), position
    )
    with torch.no_grad():
        out = transformer(packed, torch.tensor([case["timestep"]]), vectors[f"{name}.context"], return_dict=False)[0]
    assert relative(drop_reference(out, noisy.shape[2], position), vectors[f"{name}.velocity"]) < TOLERANCE


def test_schedules_weights_and_noising_are_the_authors() -> None:
    vectors = load_file(VECTORS / "dit" / "cases.safetensors")
    assert torch.allclose(sampling_sigmas(50)[:50], vectors["schedule50.sigmas"], atol=1e-6)
    assert torch.allclose(training_sigmas(), vectors["train1000.sigmas"], atol=1e-6)
    assert torch.allclose(bell_weights(vectors["train1000.timesteps"]), vectors["train1000.weights"], atol=1e-5)
    x0, eps = vectors["noise.x0"], vectors["noise.eps"]
    assert torch.equal(eps - x0, vectors["noise.target"])
    for index in (0, 250, 500, 900, 999):
        ours = noised(x0, eps, training_sigmas()[index : index + 1])
        assert torch.allclose(ours, vectors[f"noise{index}.x_t"], atol=1e-5)


def test_a_foreign_checkpoint_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"unet\.down"):
        transformer_names({"unet.down.weight": torch.zeros(1)})


@pytest.fixture(scope="module", params=[False, True], ids=["without_lora", "with_lora"])
def encoder(request: pytest.FixtureRequest) -> tuple[ContextEncoder, bool]:
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    folder = VECTORS / "mllm" / "Qwen2.5-VL-tiny"
    mllm = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    template = PromptTemplate(MLLM["system_prompt"], MLLM["query_tokens"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    context = ContextEncoder(mllm, tokenizer, template, MLLM["dit_dim"], closing_tokens=True)
    weights = context_names(load_file(VECTORS / "mllm" / "training_checkpoint.safetensors"))
    if request.param:
        rank = next(tensor.shape[0] for name, tensor in weights.items() if "lora_A" in name)
        add_lora(mllm, rank, rank)
    else:
        weights = {name: tensor for name, tensor in weights.items() if "lora_" not in name}
    missing, unexpected = context.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not [name for name in missing if "lora_" in name or not name.startswith("mllm.")]
    return context.eval(), bool(request.param)


@pytest.mark.parametrize("index", range(len(MLLM["cases"])), ids=lambda i: f"{i}-{MLLM['cases'][i]['mode']}")
def test_contexts_are_the_authors(encoder: tuple[ContextEncoder, bool], index: int) -> None:
    context, adapters = encoder
    vectors = load_file(VECTORS / "mllm" / "cases.safetensors")
    case = MLLM["cases"][index]
    views = VisionBudget(
        frames=MLLM.get("max_frames", 16),
        frame_pixels=MLLM["max_pixels_per_frame"],
        reference_tokens=MLLM["max_reference_tokens"],
    )
    image = vectors.get(f"case{index}.reference")
    with torch.no_grad():
        ours = seen_context(context, views, case, vectors[f"case{index}.frames"].numpy(), image)
    theirs = vectors[f"case{index}.context_lora" if adapters else f"case{index}.context"]
    assert ours.shape == theirs.shape
    assert relative(ours, theirs) < TOLERANCE


def seen_context(
    context: ContextEncoder, views: VisionBudget, case: dict[str, Any], clip: Any, image: torch.Tensor | None
) -> torch.Tensor:
    pixels, grid = patches(torch.from_numpy(views.clip(clip, case["mode"]))[None])
    visual = context.vision_tokens(pixels, grid, "image" if case["mode"] == "image" else "video")
    reference, reference_grid = None, None
    if image is not None:
        pixels, reference_grid = patches(torch.from_numpy(views.reference(image.numpy()))[None, None])
        reference = context.vision_tokens(pixels, reference_grid, "image")
    prompt = tokenise(
        context.template, context.tokenizer, context.mllm, case["instruction"], case["mode"], grid, reference_grid
    )
    return context(collate([prompt], 0), visual, reference)
