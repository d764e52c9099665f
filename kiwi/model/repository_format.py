"""The authors' diffusers repositories: stock transformer, two embedders, queries and connectors beside a merged Qwen.

Their `vae/` keeps names of its own and their Python files are their own: the stock autoencoder takes the place of the
first, and nothing of ours needs the second.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kiwi.model.additions import Additions, card
from kiwi.model.checkpoint import (
    CLASS,
    INDEX,
    STOCK_WEIGHTS,
    TEXT_EMBEDDER,
    WEIGHTS,
    EditorParts,
    conditioning_of,
    described,
    read_index,
    write_parts,
)
from kiwi.model.conditioning import Conditioning
from kiwi.model.errors import ModelError
from kiwi.model.folders import check_names, listing, misshapen, read_json, read_metadata, read_sharded, read_tensors
from kiwi.model.instruction import PromptTemplate
from kiwi.model.parts import check_conditioning, check_vae, check_weights, connector_shapes, copy_files, stock_shapes
from kiwi.model.released import repository_name, repository_place
from kiwi.model.vision import VisionBudget, views_as_json, views_of_json
from kiwi.model.wan import SYSTEM_PROMPT, name_of

PARTS = ("image", "video", "reference")
QWEN_CONFIG = "qwen_config.json"
BESIDE_WEIGHTS = ("generation_config.json",)
EMBEDDERS = (("source_embedder", "source"), ("ref_embedder", "reference"))
SINGLE = f"{STOCK_WEIGHTS}.safetensors"
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0, "num_train_timesteps": 1000, "base_shift": 0.5,
    "max_shift": 1.15,
}  # fmt: skip
KEPT = (
    INDEX, "transformer/config.json", "mllm_encoder/config.json", "source_embedder/config.json",
    "ref_embedder/config.json", "scheduler/scheduler_config.json",
)  # fmt: skip


def read(source: Path, out: Path, additions: Additions) -> tuple[int, list[str]]:
    """Writes a model folder of ours from a repository. Returns (tensors taken, notes).

    Raises:
        ModelError: names that are unknown, missing or mis-shaped in any part, damaged files, no autoencoder.
    """
    if additions.vae is None:
        raise ModelError(
            f"the vae/ of {source} keeps names of its own, which the stock autoencoder does not read",
            "--vae FOLDER, the vae/ of Wan-AI/Wan2.2-TI2V-5B-Diffusers: it is the same, frozen",
        )
    vae = additions.vae / "vae" if (additions.vae / "vae").is_dir() else additions.vae
    config = read_json(source / "transformer" / "config.json")
    settings = read_json(source / "mllm_encoder" / "config.json")
    conditioning = Conditioning(
        reference_position="first"
        if read_json(source / "ref_embedder" / "config.json").get("ref_pad_first")
        else "last"
    )
    check_vae(vae, config)
    check_weights(source / "mllm_encoder", WEIGHTS)
    transformer = read_sharded(source / "transformer", STOCK_WEIGHTS)
    added = _embedders(source)
    connectors = _connectors(source)
    queries = {mode: len(tensor) for mode in PARTS if (tensor := connectors.get(f"queries.{mode}")) is not None}
    stock, added_shapes = stock_shapes(config, conditioning)
    mllm = _qwen_shapes_folder(source, out)
    shapes = connector_shapes(mllm, config, {mode: queries.get(mode, 1) for mode in PARTS}, rank=0)
    shutil.rmtree(mllm)
    optional = {name for name in stock if TEXT_EMBEDDER in name}
    _check(source / "transformer", transformer, stock, optional)
    _check(source, added, added_shapes)
    _check(source / "mllm_encoder", connectors, shapes)
    write_parts(
        EditorParts(
            index=described(
                preset=name_of(config) or "wan", template=PromptTemplate(SYSTEM_PROMPT, queries), closing_tokens=True,
                vision=views_as_json(_views(settings)), conditioning=conditioning, lora=None,
            ),
            transformer_config=config,
            transformer=transformer,
            conditioning=added,
            connectors=connectors,
            write_mllm=lambda place: _copy_qwen(source, place),
            write_codec=lambda place: copy_files(vae, place),
            card=card(name_of(config) or "an editor", str(source), "weights of the authors' diffusers repository"),
            origin=_origin(source),
        ),
        out,
    )  # fmt: skip
    notes = ["its adapters were merged: there are none to train on, and no training checkpoint can be written of it"]
    return len(transformer) + len(added) + len(connectors), notes


def write(source: Path, out: Path, additions: Additions) -> tuple[int, list[str]]:
    """Writes a repository from a model folder of ours; adapters are merged, W + B·A. Returns (tensors, notes).

    Raises:
        ModelError: no autoencoder as the authors keep it, or a conditioning that their code does not have.
    """
    index = read_index(source)
    check_conditioning(source, conditioning_of(index))
    vae = _their_vae(additions)
    for name in ("transformer", "mllm_encoder", "processor", "source_embedder", "ref_embedder", "scheduler"):
        (out / name).mkdir()
    transformer = read_sharded(source / "transformer", STOCK_WEIGHTS)
    added = read_sharded(source / "conditioning", WEIGHTS)
    connectors = read_sharded(source / "connectors", WEIGHTS)
    origin = read_json(source / "origin.json") if (source / "origin.json").is_file() else {}
    metadata = origin.get("metadata", {}) if origin.get("format") == "diffusers" else {}
    _save(transformer, out / "transformer", metadata.get("transformer"))
    for folder, ours in EMBEDDERS:
        part = {f"patch_embedding.{kind}": added[f"{ours}.{kind}"] for kind in ("weight", "bias")}
        _save(part, out / folder, metadata.get(folder))
    named = {repository_name(name): tensor for name, tensor in connectors.items()}
    _save({name: tensor for name, tensor in named.items() if name}, out / "mllm_encoder", metadata.get("mllm_encoder"))
    _write_qwen(source / "mllm", out, connectors, index["lora"])
    (out / "vae").mkdir()
    copy_files(vae, out / "vae")
    kept = origin.get("files", {}) if origin.get("format") == "diffusers" else {}
    for name, text in _settings(source, index, connectors).items():
        (out / name).write_text(kept.get(name, text))
    notes = ["the authors' Python files are not in it: copy them from their repository"]
    return len(transformer) + len(added) + len(connectors), notes


def _their_vae(additions: Additions) -> Path:
    """The autoencoder as the authors' repositories keep it. Raises ModelError where it is not that."""
    remedy = "--vae FOLDER, the vae/ of one of the authors' repositories: it is copied as it is"
    if additions.vae is None:
        raise ModelError(
            "the authors' repositories keep the autoencoder under names of its own, which no folder of ours has", remedy
        )
    vae = additions.vae / "vae" if (additions.vae / "vae").is_dir() else additions.vae
    if read_json(vae / "config.json").get("_class_name") == "AutoencoderKLWan":
        raise ModelError(f"{vae} holds the stock autoencoder, which the authors' code does not read", remedy)
    check_weights(vae, STOCK_WEIGHTS)
    return vae


def _embedders(source: Path) -> dict[str, Tensor]:
    added = {}
    for folder, ours in EMBEDDERS:
        for name, tensor in read_tensors(source / folder / SINGLE)[0].items():
            added[f"{ours}.{name.removeprefix('patch_embedding.')}"] = tensor
    return added


def _connectors(source: Path) -> dict[str, Tensor]:
    tensors, _ = read_tensors(source / "mllm_encoder" / SINGLE)
    places = {name: repository_place(name) for name in tensors}
    if unknown := sorted(name for name, ours in places.items() if ours is None):
        raise ModelError(
            f"{source / 'mllm_encoder' / SINGLE} does not fit: {len(unknown)} unknown ({listing(unknown)})",
            "give a repository of Kiwi-Edit",
        )
    return {ours: tensors[name] for name, ours in places.items() if ours is not None}


def _check(
    where: Path, tensors: dict[str, Tensor], shapes: dict[str, torch.Size], optional: set[str] | None = None
) -> None:
    missing = shapes.keys() - tensors.keys() - (optional or set())
    check_names(where, "repository", missing, tensors.keys() - shapes.keys(), misshapen(tensors, shapes))


def _qwen_shapes_folder(source: Path, out: Path) -> Path:
    """The language model's configuration and tokenizer side by side, as transformers reads them."""
    place = out / "configuration"
    place.mkdir()
    copy_files(source / "processor", place, {QWEN_CONFIG: "config.json"})
    return place


def _copy_qwen(source: Path, place: Path) -> None:
    copy_files(source / "processor", place, {QWEN_CONFIG: "config.json"})
    for path in sorted((source / "mllm_encoder").iterdir()):
        if (path.name.startswith("model") and ".safetensors" in path.name) or path.name in BESIDE_WEIGHTS:
            shutil.copyfile(path, place / path.name)


def _write_qwen(mllm: Path, out: Path, connectors: dict[str, Tensor], lora: dict[str, Any] | None) -> None:
    """Weights into `mllm_encoder/`, with adapters merged into them; the rest into `processor/`."""
    products = _products(connectors, lora)
    merged = 0
    for path in sorted(mllm.iterdir()):
        if path.suffix == ".safetensors":
            if products:
                tensors, metadata = read_tensors(path)
                merged += _merge(tensors, products)
                save_file(tensors, out / "mllm_encoder" / path.name, metadata=metadata)
            else:
                shutil.copyfile(path, out / "mllm_encoder" / path.name)
        elif path.name.endswith(".safetensors.index.json") or path.name in BESIDE_WEIGHTS:
            shutil.copyfile(path, out / "mllm_encoder" / path.name)
        elif path.is_file():
            shutil.copyfile(path, out / "processor" / (QWEN_CONFIG if path.name == "config.json" else path.name))
    if merged != len(products):
        raise ModelError(
            f"{len(products) - merged} adapters have no weight in {mllm} to be merged into", "restore the folder"
        )


def _products(connectors: dict[str, Tensor], lora: dict[str, Any] | None) -> dict[str, Tensor]:
    """B·A · alpha / rank of every adapted weight in float32, by the weight's name after the last "layers."."""
    out = {}
    for name, down in connectors.items():
        if ".lora_A." in name and lora:
            up = connectors[name.replace(".lora_A.", ".lora_B.")]
            weight = name.partition("layers.")[2].partition(".lora_A.")[0] + ".weight"
            out[weight] = up.float() @ down.float() * (lora["alpha"] / lora["rank"])
    return out


def _merge(tensors: dict[str, Tensor], products: dict[str, Tensor]) -> int:
    count = 0
    for name, tensor in tensors.items():
        place = name.partition("layers.")[2]
        if place in products and not name.startswith(("visual.", "model.visual.")):
            tensors[name] = (tensor.float() + products[place]).to(tensor.dtype)
            count += 1
    return count


def _save(tensors: dict[str, Tensor], folder: Path, metadata: dict[str, str] | None) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE, metadata=metadata)


def _views(settings: dict[str, Any]) -> VisionBudget:
    usual = VisionBudget()
    return VisionBudget(
        frames=settings.get("max_frames", usual.frames),
        frame_pixels=settings.get("max_pixels_per_frame", usual.frame_pixels),
        reference_tokens=settings.get("max_object_token", usual.reference_tokens),
    )


def _origin(source: Path) -> dict[str, Any]:
    """What the way back needs: small files as they are, and the weight files' own metadata."""
    files = {name: (source / name).read_text() for name in KEPT if (source / name).is_file()}
    folders = ("transformer", "source_embedder", "ref_embedder", "mllm_encoder")
    single = {folder: source / folder / SINGLE for folder in folders}
    metadata = {folder: read_metadata(path) for folder, path in single.items() if path.is_file()}
    return {"format": "diffusers", "files": files, "metadata": metadata}


def _settings(source: Path, index: dict[str, Any], connectors: dict[str, Tensor]) -> dict[str, str]:
    """The small files of a repository, as the authors' converter writes them."""
    config = read_json(source / "transformer" / "config.json")
    views = views_of_json(index["vision"])
    seen = views if isinstance(views, VisionBudget) else VisionBudget()
    width = config["num_attention_heads"] * config["attention_head_dim"]
    embedder = {
        "_class_name": "ConditionalEmbedder", "in_dim": config["in_channels"], "dim": width,
        "patch_size": config["patch_size"], "zero_init": True,
    }  # fmt: skip
    counts = {mode: len(connectors[f"queries.{mode}"]) for mode in PARTS}
    encoder = {
        "_class_name": "MLLMEncoder", "mllm_model_path": ".", "dit_dim": width,
        "hidden_size": connectors["queries.image"].shape[1],
        "num_image_queries": counts["image"], "num_video_queries": counts["video"],
        "num_ref_queries": counts["reference"],
        "max_object_token": seen.reference_tokens, "max_frames": seen.frames,
        "max_pixels_per_frame": seen.frame_pixels,
    }  # fmt: skip
    first = index["conditioning"]["reference_position"] == "first"
    named = {
        INDEX: _index(),
        "transformer/config.json": config,
        "mllm_encoder/config.json": encoder,
        "source_embedder/config.json": embedder | {"ref_pad_first": False},
        "ref_embedder/config.json": embedder | {"ref_pad_first": first},
        "scheduler/scheduler_config.json": SCHEDULER,
    }
    return {name: json.dumps(value, indent=2) for name, value in named.items()}


def _index() -> dict[str, Any]:
    return {
        "_class_name": ["pipeline_kiwi_edit", CLASS],
        "_diffusers_version": "0.32.0",
        "processor": ["transformers", "AutoProcessor"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["wan_video_vae", "VAE"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "mllm_encoder": ["mllm_encoder", "MLLMEncoder"],
        "source_embedder": ["conditional_embedder", "ConditionalEmbedder"],
        "ref_embedder": ["conditional_embedder", "ConditionalEmbedder"],
    }
