"""What the released sizes start from: whether it is there, whole and the right model. Reads headers alone, no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi.configuration import ModelSettings, RunConfiguration
from kiwi.model.errors import ModelError

GIGABYTE = 10**9
LARGEST_HEADER = 100 << 20  # bytes; what the safetensors library takes
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Foundation:
    """By what the released weights of a size are known.

    Attributes:
        heads, layers, channels: of the transformer.
        trained: parameters that training changes.
        repository: where the backbone comes from.
    """

    heads: int
    layers: int
    channels: int
    trained: int
    repository: str


FOUNDATIONS = {
    "wan2.2-5b": Foundation(24, 30, 48, 5_043_053_760, "Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
    "wan2.1-14b": Foundation(40, 40, 16, 14_348_018_752, "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
}
LANGUAGE_MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
LANGUAGE_WIDTH, LANGUAGE_LAYERS = 2048, 36


def faults(settings: ModelSettings) -> Iterator[tuple[str, str]]:
    """What is wrong with the weights that a model starts from, each with its remedy; nothing for tiny and middle."""
    wanted = FOUNDATIONS.get(settings.preset)
    if wanted is None:
        return
    unnamed = [name for name in ("backbone", "language_model") if not getattr(settings, name)]
    if unnamed:
        options = " ".join(f"--set model.{name}=FOLDER" for name in unnamed)
        yield (
            f"the model {settings.preset} starts from released weights, and {' and '.join(unnamed)} name none",
            f"{options} (local copies of {wanted.repository} and {LANGUAGE_MODEL})",
        )
    places: list[tuple[Callable[[Path, str], None], Path]] = []
    if settings.backbone:
        places = [(_check_transformer, Path(settings.backbone) / "transformer")]
        places.append((_check_autoencoder, Path(settings.backbone) / "vae"))
    if settings.language_model:
        places.append((_check_language_model, Path(settings.language_model)))
    for check, folder in places:
        try:
            check(folder, settings.preset)
        except ModelError as error:
            yield error.message, error.remedy


def needed_gigabytes(configuration: RunConfiguration) -> float:
    """Disk that training takes at most: the kept checkpoints and one in the making, and a model folder a stage.

    A checkpoint has weights in float32 and two moments of every trained parameter. 0 for tiny and middle.
    """
    wanted = FOUNDATIONS.get(configuration.model.preset)
    if wanted is None:
        return 0.0
    largest = 0
    for stage in configuration.stages:
        moments = 4 if stage.moments == "bfloat16" else 8
        largest = max(largest, wanted.trained * (4 + moments + (4 if stage.ema else 0)))
    whole = 4 * wanted.trained + 2 * 4_500_000_000  # language model and autoencoder beside it, in bfloat16
    return ((configuration.trainer.keep + 1) * largest + len(configuration.stages) * whole) / GIGABYTE


def _check_transformer(folder: Path, preset: str) -> None:
    wanted = FOUNDATIONS[preset]
    config = _config(folder, f"give a copy of {wanted.repository}")
    if config.get("_class_name") != "WanTransformer3DModel":
        raise ModelError(
            f"{folder} holds a {config.get('_class_name')!r}, not a WanTransformer3DModel",
            f"--set model.backbone=FOLDER, a copy of {wanted.repository}",
        )
    found = tuple(config.get(name) for name in ("num_attention_heads", "num_layers", "in_channels"))
    if found != (wanted.heads, wanted.layers, wanted.channels):
        raise ModelError(
            f"{folder} has {found[0]} heads, {found[1]} layers and {found[2]} channels, {preset} has "
            f"{wanted.heads}, {wanted.layers} and {wanted.channels}",
            f"--set model.backbone=FOLDER, a copy of {wanted.repository}",
        )
    _check_weights(folder, "diffusion_pytorch_model")


def _check_autoencoder(folder: Path, preset: str) -> None:
    wanted = FOUNDATIONS[preset]
    config = _config(folder, f"give a copy of {wanted.repository}")
    if (config.get("_class_name"), config.get("z_dim")) != ("AutoencoderKLWan", wanted.channels):
        raise ModelError(
            f"{folder} holds a {config.get('_class_name')!r} of {config.get('z_dim')} channels, not an "
            f"AutoencoderKLWan of {wanted.channels}",
            f"--set model.backbone=FOLDER, a copy of {wanted.repository}",
        )
    _check_weights(folder, "diffusion_pytorch_model")


def _check_language_model(folder: Path, preset: str) -> None:
    """The language model is the same for every size."""
    remedy = f"--set model.language_model=FOLDER, a copy of {LANGUAGE_MODEL}"
    config = _config(folder, remedy)
    if config.get("model_type") != "qwen2_5_vl":
        raise ModelError(f"{folder} holds a {config.get('model_type')!r}, not Qwen2.5-VL", remedy)
    text = config.get("text_config") or config
    found = (text.get("hidden_size"), text.get("num_hidden_layers"))
    if found != (LANGUAGE_WIDTH, LANGUAGE_LAYERS):
        raise ModelError(
            f"{folder} is {found[0]} wide and has {found[1]} layers, Qwen2.5-VL-3B {LANGUAGE_WIDTH} and "
            f"{LANGUAGE_LAYERS}", remedy,
        )  # fmt: skip
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError(f"{folder} has no tokenizer", remedy)
    _check_weights(folder, "model")


def _config(folder: Path, remedy: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError(f"no folder {folder}", remedy)
    said = _json(folder / "config.json", remedy)
    if not isinstance(said, dict):
        raise ModelError(f"{folder / 'config.json'} holds no JSON object", remedy)
    return said


def _json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist", remedy) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}", remedy) from error


def _check_weights(folder: Path, stem: str) -> None:
    """Raises ModelError for weights that are missing, pickled, or shorter than their header says."""
    remedy = "fetch the folder again"
    index = folder / f"{stem}.safetensors.index.json"
    names = {f"{stem}.safetensors"}
    if index.is_file():
        listed = _json(index, remedy)
        names = set(listed.get("weight_map", {}).values()) if isinstance(listed, dict) else set()
    if not names:
        raise ModelError(f"{index} lists no weights", remedy)
    for name in sorted(map(str, names)):
        path = folder / Path(name).name
        if not path.is_file():
            pickled = next((each for each in sorted(folder.glob("*")) if each.suffix in PICKLES), None)
            if pickled is not None:
                raise ModelError(f"{pickled} is a pickle, and it is not read", "give the safetensors of these weights")
            raise ModelError(f"{path} does not exist", remedy)
        _check_header(path, remedy)


def _check_header(path: Path, remedy: str) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise ModelError(f"{path} is damaged, or no safetensors file", remedy)
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise ModelError(f"{path} is damaged, or no safetensors file", remedy) from error
    if 8 + length + max(ends, default=0) != size:
        raise ModelError(
            f"{path} has {size:,} bytes, and its header speaks of {8 + length + max(ends, default=0):,}", remedy
        )
