"""The authors' file formats with tiny random weights: a training checkpoint and a diffusers repository."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

VECTORS = Path(os.environ.get("KIWI_PARITY_DIR", Path(__file__).parents[2] / "fixtures" / "reference-parity"))
QWEN = VECTORS / "mllm" / "Qwen2.5-VL-tiny"


@dataclass(frozen=True)
class Released:
    """The authors' formats with tiny random weights, under their names (they stand for files of 10 GB).

    Attributes:
        checkpoint: a training checkpoint that holds every trained part.
        repository: a diffusers repository.
        vae: a folder of the stock autoencoder; `mllm`: of Qwen2.5-VL; `transformer`: with the config.json alone.
    """

    checkpoint: Path
    repository: Path
    vae: Path
    mllm: Path
    transformer: Path


def made_in(root: Path) -> Released:
    """Writes all of it into a folder, from the parity vectors' checkpoints."""
    from diffusers import AutoencoderKLWan

    spec = json.loads((VECTORS / "dit" / "spec.json").read_text())["config"]
    channels = spec["in_channels"]
    torch.manual_seed(0)
    AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12, patch_size=2,
        scale_factor_spatial=16, scale_factor_temporal=4, latents_mean=[0.1] * channels, latents_std=[0.5] * channels,
    ).save_pretrained(root / "vae")  # fmt: skip
    tensors = load_file(VECTORS / "dit" / "training_checkpoint.safetensors")
    tensors |= load_file(VECTORS / "mllm" / "training_checkpoint.safetensors")
    save_file(tensors, root / "final.safetensors", metadata={"format": "pt"})
    (root / "transformer").mkdir()
    config = json.dumps({"_class_name": "WanTransformer3DModel", **spec}, indent=2)
    (root / "transformer" / "config.json").write_text(config)
    _repository(root / "repository", tensors, config)
    return Released(root / "final.safetensors", root / "repository", root / "vae", QWEN, root / "transformer")


def _repository(root: Path, tensors: dict[str, torch.Tensor], config: str) -> None:
    """A diffusers repository in the authors' layout: names written out here, not taken from the code under test."""
    for name in ("transformer", "mllm_encoder", "processor", "source_embedder", "ref_embedder", "scheduler", "vae"):
        (root / name).mkdir(parents=True)
    weights = "diffusion_pytorch_model.safetensors"
    save_file(_stock_names(tensors), root / "transformer" / weights)
    (root / "transformer" / "config.json").write_text(config)
    spec = json.loads(config)
    width = spec["num_attention_heads"] * spec["attention_head_dim"]
    for folder, prefix in (("source_embedder", "vae_condition."), ("ref_embedder", "ref_vae_condition.")):
        part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        save_file(part, root / folder / weights)
        said = {
            "_class_name": "ConditionalEmbedder",
            "in_dim": spec["in_channels"],
            "dim": width,
            "patch_size": [1, 2, 2],
        }
        said |= {"zero_init": True, "ref_pad_first": folder == "ref_embedder"}
        (root / folder / "config.json").write_text(json.dumps(said, indent=2))
    queries = {f"{kind}_queries": tensors[f"mllm.{kind}_queries.q"] for kind in ("image", "video", "ref")}
    for ours, theirs in (("connector", "connetor"), ("ref_connector", "ref_connector")):
        for end in ("0.weight", "0.bias", "2.weight", "2.bias"):
            queries[f"{ours}.{end}"] = tensors[f"mllm.{theirs}.{end}"]
    save_file(queries, root / "mllm_encoder" / weights)
    encoder = {"_class_name": "MLLMEncoder", "mllm_model_path": ".", "dit_dim": width, "hidden_size": 64}
    encoder |= {f"num_{kind}_queries": len(queries[f"{kind}_queries"]) for kind in ("image", "video", "ref")}
    encoder |= {"max_object_token": 16, "max_frames": 16, "max_pixels_per_frame": 120000}
    (root / "mllm_encoder" / "config.json").write_text(json.dumps(encoder, indent=2))
    for path in QWEN.iterdir():
        if path.name in ("model.safetensors", "generation_config.json"):
            shutil.copy(path, root / "mllm_encoder" / path.name)
        else:
            shutil.copy(path, root / "processor" / ("qwen_config.json" if path.name == "config.json" else path.name))
    save_file({"raw.name": torch.ones(2)}, root / "vae" / weights)
    (root / "vae" / "config.json").write_text(json.dumps({"_class_name": "VAE"}, indent=2))
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps({"shift": 5.0}, indent=2))
    index = {"_class_name": ["pipeline_kiwi_edit", "KiwiEditPipeline"], "_diffusers_version": "0.32.0"}
    (root / "model_index.json").write_text(json.dumps(index, indent=2))
    (root / "pipeline_kiwi_edit.py").write_text("raise SystemExit('the authors code is never run')\n")


def _stock_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for name, tensor in tensors.items():
        if not name.startswith("dit."):
            continue
        new = name.removeprefix("dit.")
        for theirs, ours in (
            ("self_attn.o.", "attn1.to_out.0."), ("cross_attn.o.", "attn2.to_out.0."),
            ("self_attn.norm", "attn1.norm"), ("cross_attn.norm", "attn2.norm"),
            ("self_attn.", "attn1.to_"), ("cross_attn.", "attn2.to_"), ("attn1.to_norm", "attn1.norm"),
            ("ffn.0.", "ffn.net.0.proj."), ("ffn.2.", "ffn.net.2."), ("norm3.", "norm2."),
            ("head.head.", "proj_out."), ("head.modulation", "scale_shift_table"), ("modulation", "scale_shift_table"),
            ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
            ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
            ("time_projection.1.", "condition_embedder.time_proj."),
            ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
            ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
        ):  # fmt: skip
            new = new.replace(theirs, ours)
        out[new] = tensor
    return out
