"""The parts of a model folder as files: what shapes each must have, and copies of those that stay as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kiwi.model.checkpoint import shapes_of, split_patch_embedding
from kiwi.model.conditioning import Conditioning
from kiwi.model.editor import adapted
from kiwi.model.errors import ModelError
from kiwi.model.folders import RESTORE, read_json, refuse_only_pickles, weight_map
from kiwi.model.released import Place

COPIED = (".json", ".txt", ".jinja", ".safetensors", ".model")


def group_of(place: Place) -> str:
    """The part of training that a tensor belongs to: what a checkpoint has wholly or not at all."""
    if place.part != "connectors":
        return place.part if place.part == "transformer" else place.name.partition(".")[0]
    if ".lora_" in place.name:
        return "adapters"
    return ".".join(place.name.split(".")[:2]) if place.name.startswith("queries.") else place.name.partition(".")[0]


def stock_shapes(
    config: dict[str, Any], conditioning: Conditioning
) -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
    """Shapes by name in `transformer/` (the unused text embedder's included) and in `conditioning/`.

    Raises:
        ModelError: a configuration that the stock class does not take.
    """
    from diffusers import WanTransformer3DModel

    known = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            transformer = WanTransformer3DModel(**known)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"the transformer's config.json does not fit the stock class: {error}", RESTORE) from error
    stock = shapes_of(transformer)
    tensors = adapted(transformer, conditioning).state_dict()
    added = split_patch_embedding(dict(tensors), conditioning)[1]
    return stock, {name: tensor.shape for name, tensor in added.items()}


def connector_shapes(mllm: Path, config: dict[str, Any], queries: dict[str, int], rank: int) -> dict[str, torch.Size]:
    """Shapes by name in `connectors/`. `rank` 0: no adapters.

    Raises:
        ModelError: no configuration or tokenizer of Qwen2.5-VL in the folder.
    """
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from kiwi.model.context import ContextEncoder
    from kiwi.model.instruction import PromptTemplate
    from kiwi.model.tiny import add_lora

    try:
        tokenizer = AutoTokenizer.from_pretrained(mllm, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(mllm, local_files_only=True))
            width = config["num_attention_heads"] * config["attention_head_dim"]
            encoder = ContextEncoder(model, tokenizer, PromptTemplate("", queries), width)
            if rank:
                add_lora(model, rank, rank)
    except (OSError, ValueError, TypeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"the language model in {mllm} cannot be used: {first}", "give a folder of Qwen2.5-VL"
        ) from error
    shapes = shapes_of(encoder)
    return {name: shape for name, shape in shapes.items() if not name.startswith("mllm.") or "lora_" in name}


def check_conditioning(source: Path, conditioning: Conditioning) -> None:
    """Raises ModelError for a conditioning that the authors' code does not have."""
    if conditioning != Conditioning(reference_position=conditioning.reference_position):
        raise ModelError(
            f"{source} is conditioned otherwise than the authors' models: {conditioning}",
            "only editors with the paper's conditioning can be written in their formats",
        )


def check_mllm(folder: Path) -> None:
    """Raises ModelError where a folder does not hold Qwen2.5-VL whole: configuration, tokenizer, weights."""
    config = read_json(folder / "config.json")
    if config.get("model_type") != "qwen2_5_vl":
        raise ModelError(
            f"{folder} holds a {config.get('model_type')!r}, not Qwen2.5-VL", "--mllm FOLDER of Qwen2.5-VL"
        )
    check_weights(folder, "model")


def check_vae(folder: Path, transformer: dict[str, Any]) -> None:
    """Raises ModelError where a folder does not hold the stock autoencoder of this transformer, whole."""
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderKLWan":
        raise ModelError(
            f"{folder} holds a {config.get('_class_name')!r}, not the stock AutoencoderKLWan",
            "--vae FOLDER, the vae/ of a Wan-AI repository whose name ends in -Diffusers",
        )
    channels, wanted = config.get("z_dim"), transformer["in_channels"]
    if channels != wanted:
        raise ModelError(
            f"the autoencoder in {folder} has {channels} channels, the transformer {wanted}",
            "--vae FOLDER of the autoencoder that the transformer was trained with",
        )
    check_weights(folder, "diffusion_pytorch_model")


def check_weights(folder: Path, stem: str) -> None:
    """Raises ModelError for weights that are missing, pickled or truncated; their tensors are not read."""
    index = folder / f"{stem}.safetensors.index.json"
    listed = weight_map(index) if index.is_file() else {"": f"{stem}.safetensors"}
    for name in sorted(set(listed.values())):
        path = folder / name
        if not path.is_file():
            refuse_only_pickles(folder)
            raise ModelError(f"{path} does not exist", RESTORE)
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged, or no safetensors file: {error}", RESTORE) from error


def copy_files(origin: Path, place: Path, renamed: dict[str, str] | None = None) -> None:
    """Copies weights, configurations and tokenizer files; code, pickles and folders stay behind."""
    for path in sorted(origin.iterdir()):
        if path.is_file() and path.suffix in COPIED:
            shutil.copyfile(path, place / (renamed or {}).get(path.name, path.name))
