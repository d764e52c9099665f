"""An editor's folder on disk, in diffusers' layout: one sub-folder a part, safetensors alone, never pickle.

model_index.json   transformer/   mllm/   connectors/   codec/   README.md (the model card)
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from kiwi.model.codec import TransformCodec
from kiwi.model.context import ContextEncoder
from kiwi.model.editor import KiwiEditModel, VisionSize, adapted
from kiwi.model.errors import ModelError
from kiwi.model.instruction import PromptTemplate

CLASS = "KiwiEditPipeline"
INDEX = "model_index.json"
WEIGHTS = "model.safetensors"


def save_model(model: KiwiEditModel, folder: Path, card: str) -> None:
    """Writes an editor whole or not at all: into a neighbouring folder first, which then takes the place."""
    from safetensors.torch import save_file

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    encoder = model.context_encoder
    (temporary / "transformer").mkdir(parents=True)
    (temporary / "transformer" / "config.json").write_text(_json(dict(model.transformer.config)))
    save_file(_tensors(model.transformer), temporary / "transformer" / WEIGHTS)
    (temporary / "mllm").mkdir()
    encoder.mllm.config.save_pretrained(temporary / "mllm")
    encoder.tokenizer.save_pretrained(temporary / "mllm")
    save_file(_without_adapters(encoder.mllm), temporary / "mllm" / WEIGHTS)
    (temporary / "connectors").mkdir()
    save_file(_bridge(encoder), temporary / "connectors" / WEIGHTS)
    model.codec.save(temporary / "codec")  # type: ignore[attr-defined]
    (temporary / INDEX).write_text(_json(_index(model)))
    (temporary / "README.md").write_text(card)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def load_model(folder: Path) -> KiwiEditModel:
    """Reads what `save_model` wrote. Raises ModelError naming what is missing, foreign or damaged."""
    index = _read_index(folder)
    try:
        return _load(folder, index)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        said = f"the model in {folder} cannot be loaded: {error}"
        raise ModelError(said, "restore the folder, or train again") from error


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise ModelError(f"{folder} is no model folder: it has no {INDEX}", "`kiwi model list` shows what there is")
    try:
        index: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is not valid JSON: {error}", "restore the folder, or train again") from error
    if index.get("_class_name") != CLASS:
        raise ModelError(f"{folder} holds a {index.get('_class_name')!r}, not a {CLASS}", "give a kiwi model folder")
    return index


def _load(folder: Path, index: dict[str, Any]) -> KiwiEditModel:
    from diffusers import WanTransformer3DModel
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from kiwi.model.tiny import add_lora

    config = json.loads((folder / "transformer" / "config.json").read_text())
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    transformer = adapted(WanTransformer3DModel(**known))
    transformer.load_state_dict(load_file(folder / "transformer" / WEIGHTS))
    mllm = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder / "mllm"))
    weights = load_file(folder / "mllm" / WEIGHTS)
    missing, unexpected = mllm.load_state_dict(weights, strict=False)
    tied = {"lm_head.weight"}
    if set(missing) - tied or unexpected:
        raise KeyError(f"mllm weights: missing {sorted(set(missing) - tied)[:3]}, unexpected {unexpected[:3]}")
    mllm.tie_weights()
    template = PromptTemplate(**index["prompt"])
    encoder = ContextEncoder(
        mllm, AutoTokenizer.from_pretrained(folder / "mllm"), template,
        width=transformer.config.num_attention_heads * transformer.config.attention_head_dim,
        closing_tokens=index["closing_tokens"],
    )  # fmt: skip
    add_lora(mllm, index["lora"]["rank"], index["lora"]["alpha"])
    bridge = load_file(folder / "connectors" / WEIGHTS)
    missing, unexpected = encoder.load_state_dict(bridge, strict=False)
    if unexpected or [name for name in missing if not name.startswith("mllm.") or "lora_" in name]:
        raise KeyError(f"connectors do not fit: unexpected {unexpected[:3]}")
    return KiwiEditModel(
        transformer, encoder, TransformCodec.load(folder / "codec"), vision=VisionSize(**index["vision"]),
        reference_position=index["reference_position"], name=index["preset"],
    )  # fmt: skip


def _index(model: KiwiEditModel) -> dict[str, Any]:
    encoder = model.context_encoder
    adapter = encoder.mllm.peft_config["default"]
    return {
        "_class_name": CLASS,
        "preset": model.name,
        "prompt": {
            "system": encoder.template.system, "queries": encoder.template.queries, "hint": encoder.template.hint,
        },
        "closing_tokens": encoder.closing_tokens,
        "vision": {"frames": model.vision.frames, "side": model.vision.side},
        "reference_position": model.reference_position,
        "lora": {"rank": adapter.r, "alpha": adapter.lora_alpha},
    }  # fmt: skip


def _tensors(module: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}


def _without_adapters(mllm: Any) -> dict[str, Tensor]:
    kept = {name.replace(".base_layer.", "."): tensor for name, tensor in _tensors(mllm).items() if "lora_" not in name}
    kept.pop("lm_head.weight", None)  # tied to the embeddings
    return kept


def _bridge(encoder: ContextEncoder) -> dict[str, Tensor]:
    """Queries, connectors and LoRA: what the first stage of the paper trains."""
    return {
        name: tensor for name, tensor in _tensors(encoder).items() if not name.startswith("mllm.") or "lora_" in name
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, default=str)
