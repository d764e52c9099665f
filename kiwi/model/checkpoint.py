"""An editor's folder on disk, in diffusers' layout: one sub-folder a part, safetensors alone, never pickle.

model_index.json   transformer/   conditioning/   mllm/   connectors/   vae/ or codec/   README.md (the model card)

`transformer/` holds stock names alone, so that the stock class loads it; `conditioning/` the added convolutions;
`connectors/` queries, connectors and LoRA. A part over 5 GB is cut into shards.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from kiwi.model.codec import LatentCodec, TransformCodec
from kiwi.model.conditioning import Conditioning
from kiwi.model.context import ContextEncoder
from kiwi.model.defaults import EditDefaults, defaults_as_json, defaults_of, defaults_of_json
from kiwi.model.editor import KiwiEditModel, adapted
from kiwi.model.errors import ModelError
from kiwi.model.folders import (
    check_kind,
    check_names,
    load_tokenizer,
    loaded_whole,
    misshapen,
    read_json,
    read_sharded,
    read_tensors,
)
from kiwi.model.imports import import_parts, light_imports
from kiwi.model.instruction import PromptTemplate
from kiwi.model.vision import views_as_json, views_of_json
from kiwi.model.wan_codec import WanCodec

CLASS = "KiwiEditPipeline"
INDEX = "model_index.json"
WEIGHTS = "model"
STOCK_WEIGHTS = "diffusion_pytorch_model"
PARTS = {
    "transformer": ("diffusers", "WanTransformer3DModel"),
    "mllm": ("transformers", "Qwen2_5_VLForConditionalGeneration"),
    "vae": ("diffusers", "AutoencoderKLWan"),
    "codec": ("kiwi.model.codec", "TransformCodec"),
}
KINDS: dict[str, Any] = {"preset": str, "prompt": dict, "closing_tokens": bool, "vision": dict, "lora": dict | None}
PATCH = "patch_embedding."
SHARD = "5GB"
TEXT_EMBEDDER = "condition_embedder.text_embedder."  # foreign weights may have it; the connectors take its place


@dataclass(frozen=True)
class EditorParts:
    """What a model folder is written from.

    Attributes:
        index: model_index.json.
        transformer_config: config.json of the stock transformer.
        transformer: tensors under stock names.
        conditioning: of the added convolutions, without the prefix `patch_embedding.`.
        connectors: queries, connectors and LoRA under the context encoder's names.
        write_mllm, write_codec: write these parts into the folders that they are given.
        card: README.md.
        origin: what a conversion back needs to know, or None.
    """

    index: dict[str, Any]
    transformer_config: dict[str, Any]
    transformer: dict[str, Tensor]
    conditioning: dict[str, Tensor]
    connectors: dict[str, Tensor]
    write_mllm: Callable[[Path], None]
    write_codec: Callable[[Path], None]
    card: str
    origin: dict[str, Any] | None = None


def save_model(model: KiwiEditModel, folder: Path, card: str, defaults: EditDefaults | None = None) -> None:
    """Writes an editor whole or not at all: into a neighbouring folder first, which then takes the place.

    `defaults` are the model's own where none are given.
    """
    encoder = model.context_encoder
    stock, added = split_patch_embedding(_tensors(model.transformer), model.conditioning)

    def write_mllm(place: Path) -> None:
        encoder.mllm.config.save_pretrained(place)
        encoder.tokenizer.save_pretrained(place)
        write_tensors(_without_adapters(encoder.mllm), place, WEIGHTS)

    parts = EditorParts(
        index=index_of(model) | ({"edit": defaults_as_json(defaults)} if defaults else {}),
        transformer_config={"_class_name": "WanTransformer3DModel", **dict(model.transformer.config)},
        transformer=stock,
        conditioning=added,
        connectors=_bridge(encoder),
        write_mllm=write_mllm,
        write_codec=model.codec.save,
        card=card,
    )
    with written_whole(folder, replace=True) as temporary:
        write_parts(parts, temporary)


def write_parts(parts: EditorParts, folder: Path) -> None:
    """Writes every part into `folder`, which exists and is empty."""
    codec = next(name for name in ("vae", "codec") if name in parts.index)
    for name in ("transformer", "conditioning", "mllm", "connectors", codec):
        (folder / name).mkdir()
    (folder / "transformer" / "config.json").write_text(_json(parts.transformer_config))
    write_tensors(parts.transformer, folder / "transformer", STOCK_WEIGHTS)
    write_tensors(parts.conditioning, folder / "conditioning", WEIGHTS)
    write_tensors(parts.connectors, folder / "connectors", WEIGHTS)
    parts.write_mllm(folder / "mllm")
    parts.write_codec(folder / codec)
    if parts.origin is not None:
        (folder / "origin.json").write_text(_json(parts.origin))
    (folder / INDEX).write_text(_json(parts.index))
    (folder / "README.md").write_text(parts.card)


@contextmanager
def written_whole(place: Path, *, replace: bool = False, file: str = "") -> Iterator[Path]:
    """A temporary neighbour of `place` to write into; it takes the place at the end, or vanishes on a failure.

    With `file` that file in it takes the place.

    Raises:
        ModelError: the place is taken and `replace` is not said, or the disk refuses.
    """
    if not replace and place.exists():
        raise ModelError(f"{place} is there already, and nothing is overwritten", "give another place, or remove it")
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if replace:
            shutil.rmtree(place, ignore_errors=True)
        os.replace(temporary / file, place)
    except OSError as error:
        raise ModelError(f"{place} cannot be written: {error}", "look at the disk and its permissions") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_tensors(tensors: dict[str, Tensor], folder: Path, stem: str) -> None:
    """Writes `STEM.safetensors`, or over 5 GB shards of it and their index."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(tensors, folder, filename_pattern=stem + "{suffix}.safetensors", max_shard_size=SHARD)


def load_model(folder: Path) -> KiwiEditModel:
    """Reads what `save_model` wrote. Raises ModelError naming what is missing, foreign or damaged."""
    index = read_index(folder)
    try:
        with light_imports():
            return _load(folder, index)
    except ModelError:
        raise
    except (
        OSError,
        SafetensorError,
        KeyError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        said = f"the model in {folder} cannot be loaded: {_one_line(error)}"
        raise ModelError(said, "restore the folder, or train again") from error


def _one_line(error: Exception) -> str:
    said = " ".join(str(error).split())[:400] or type(error).__name__
    return f"it says no {said}" if isinstance(error, KeyError) else said


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of one of our folders. Raises ModelError where it is none."""
    path = folder / INDEX
    if not path.is_file():
        what = f"is no model folder: it has no {INDEX}" if folder.is_dir() else "is no folder"
        raise ModelError(f"{folder} {what}", "give a model folder; `kiwi model list` shows those of a registry")
    index = read_json(path)
    if index.get("_class_name") != CLASS:
        raise ModelError(f"{folder} holds a {index.get('_class_name')!r}, not a {CLASS}", "give a kiwi model folder")
    for part, classes in PARTS.items():  # others are never imported, so a folder that wants one would not do as it says
        if part in index and index[part] != list(classes):
            said = f"{path} wants {index[part]!r} for {part}, and that is {'.'.join(classes)} in every model folder"
            raise ModelError(said, "give a kiwi model folder")
    for name, kinds in KINDS.items():
        if name in index and not isinstance(index[name], kinds):
            raise ModelError(f"{path} says {name}: {index[name]!r}", "give a kiwi model folder")
    return index


def conditioning_of(index: dict[str, Any]) -> Conditioning:
    """What a folder says of its conditioning; older folders say the reference's position alone."""
    if "conditioning" in index:
        return Conditioning(**index["conditioning"])
    return Conditioning(reference_position=index["reference_position"])


def _load(folder: Path, index: dict[str, Any]) -> KiwiEditModel:
    import_parts()
    from transformers import Qwen2_5_VLForConditionalGeneration

    from kiwi.model.tiny import add_lora

    conditioning = conditioning_of(index)
    transformer = _load_transformer(folder, conditioning)
    mllm = loaded_whole(Qwen2_5_VLForConditionalGeneration, folder / "mllm", "language model", dtype="auto")
    encoder = ContextEncoder(
        mllm, load_tokenizer(folder / "mllm"), PromptTemplate(**index["prompt"]),
        width=transformer.config.num_attention_heads * transformer.config.attention_head_dim,
        closing_tokens=index["closing_tokens"], reference_features=conditioning.reference_features,
    )  # fmt: skip
    mllm.requires_grad_(False)
    if index["lora"]:
        add_lora(mllm, index["lora"]["rank"], index["lora"]["alpha"])
    bridge = read_sharded(folder / "connectors", WEIGHTS)
    expected = {name: tensor.shape for name, tensor in _bridge(encoder).items()}
    _check(folder / "connectors", "connectors", bridge, expected)
    encoder.load_state_dict(bridge, strict=False, assign=True)
    return KiwiEditModel(
        transformer, encoder, _load_codec(folder), vision=views_of_json(index["vision"]), conditioning=conditioning,
        name=index["preset"], defaults=defaults_of_json(index.get("edit"), index["preset"]),
    )  # fmt: skip


def _load_transformer(folder: Path, conditioning: Conditioning) -> Any:
    from diffusers import WanTransformer3DModel

    check_kind(WanTransformer3DModel, folder / "transformer", "transformer")
    transformer = empty_transformer(read_json(folder / "transformer" / "config.json"), conditioning)
    old = folder / "transformer" / f"{WEIGHTS}.safetensors"
    if old.is_file():  # folders of 0.1 hold all of it in one file
        weights, _ = read_tensors(old)
    else:
        stock = read_sharded(folder / "transformer", STOCK_WEIGHTS)
        stock = {name: tensor for name, tensor in stock.items() if not name.startswith(TEXT_EMBEDDER)}
        added = read_sharded(folder / "conditioning", WEIGHTS)
        weights = joined_patch_embedding(stock, added, conditioning)
    _check(folder / "transformer", "transformer", weights, shapes_of(transformer))
    transformer.load_state_dict(weights, assign=True)
    return transformer


def _load_codec(folder: Path) -> LatentCodec:
    return WanCodec.load(folder / "vae") if (folder / "vae").is_dir() else TransformCodec.load(folder / "codec")


def empty_transformer(config: dict[str, Any], conditioning: Conditioning) -> Any:
    """An adapted stock transformer whose parameters take no memory until weights are assigned to them."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from diffusers import WanTransformer3DModel

    known = {key: value for key, value in config.items() if not key.startswith("_")}
    with init_empty_weights(include_buffers=False):
        return adapted(WanTransformer3DModel(**known), conditioning)


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _check(where: Path, what: str, weights: dict[str, Tensor], expected: dict[str, torch.Size]) -> None:
    check_names(
        where, what, expected.keys() - weights.keys(), weights.keys() - expected.keys(), misshapen(weights, expected)
    )


def split_patch_embedding(
    tensors: dict[str, Tensor], conditioning: Conditioning
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An adapted transformer's tensors as (stock names, additions); a widened convolution is cut in its halves."""
    stock = {name: tensor for name, tensor in tensors.items() if not name.startswith(PATCH)}
    added = {name.removeprefix(PATCH): tensor for name, tensor in tensors.items() if name.startswith(PATCH)}
    for name in ("weight", "bias"):
        stock[PATCH + name] = added.pop(f"base.{name}")
    if conditioning.source_embedding == "channels":
        noisy, source = stock[PATCH + "weight"].chunk(2, dim=1)
        stock[PATCH + "weight"], added["source.weight"] = noisy.contiguous(), source.contiguous()
    return stock, added


def joined_patch_embedding(
    stock: dict[str, Tensor], added: dict[str, Tensor], conditioning: Conditioning
) -> dict[str, Tensor]:
    """The inverse of `split_patch_embedding`. Raises KeyError where a half is missing."""
    out = {name: tensor for name, tensor in stock.items() if not name.startswith(PATCH)}
    out |= {PATCH + name: tensor for name, tensor in added.items()}
    for name in ("weight", "bias"):
        if PATCH + name in stock:
            out[f"{PATCH}base.{name}"] = stock[PATCH + name]
    if conditioning.source_embedding == "channels":
        out[f"{PATCH}base.weight"] = torch.cat([out[f"{PATCH}base.weight"], out.pop(f"{PATCH}source.weight")], dim=1)
    return out


def index_of(model: KiwiEditModel) -> dict[str, Any]:
    """model_index.json of an editor."""
    encoder = model.context_encoder
    adapters = getattr(encoder.mllm, "peft_config", None)
    lora = {"rank": adapters["default"].r, "alpha": adapters["default"].lora_alpha} if adapters else None
    return described(
        preset=model.name,
        template=encoder.template,
        closing_tokens=encoder.closing_tokens,
        vision=views_as_json(model.vision),
        conditioning=model.conditioning,
        lora=lora,
        codec=model.codec.folder,
        defaults=model.defaults,
    )


def described(
    *,
    preset: str,
    template: PromptTemplate,
    closing_tokens: bool,
    vision: dict[str, Any],
    conditioning: Conditioning,
    lora: dict[str, Any] | None,
    codec: str = "vae",
    defaults: EditDefaults | None = None,
) -> dict[str, Any]:
    """model_index.json from what it says: the parts by class, and the constants that belong to the weights.

    `defaults` are the preset's own where none are given.
    """
    return {
        "_class_name": CLASS,
        **{part: list(PARTS[part]) for part in ("transformer", "mllm", codec)},
        "preset": preset,
        "edit": defaults_as_json(defaults or defaults_of(preset)),
        "prompt": {"system": template.system, "queries": template.queries, "hint": template.hint},
        "closing_tokens": closing_tokens,
        "vision": vision,
        "conditioning": asdict(conditioning),
        "lora": lora,
    }


def _tensors(module: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}


def _without_adapters(mllm: Any) -> dict[str, Tensor]:
    kept = {name.replace(".base_layer.", "."): tensor for name, tensor in _tensors(mllm).items() if "lora_" not in name}
    if mllm.config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    return kept


def _bridge(encoder: ContextEncoder) -> dict[str, Tensor]:
    """Queries, connectors and LoRA: what the first stage of the paper trains."""
    return {
        name: tensor for name, tensor in _tensors(encoder).items() if not name.startswith("mllm.") or "lora_" in name
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, default=str)
