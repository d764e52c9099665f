"""Loading stock classes from local folders: safetensors alone, whole or not at all, every failure one clear line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from kiwi.model.errors import ModelError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
RESTORE = "restore the file from where it came"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError naming the file."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist", "give a whole model folder") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}", RESTORE) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, not a JSON object", RESTORE)
    return value


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Every tensor of one safetensors file, and the file's own metadata.

    Raises:
        ModelError: not there, a pickle, truncated, or no safetensors at all.
    """
    refuse_pickle(path)
    if not path.is_file():
        raise ModelError(f"{path} does not exist", "give a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged, or no safetensors file: {error}", RESTORE) from error


def read_metadata(path: Path) -> dict[str, str] | None:
    """A safetensors file's own metadata, without its tensors."""
    with safe_open(path, framework="pt") as file:
        said: dict[str, str] | None = file.metadata()
        return said


def read_sharded(folder: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of `STEM.safetensors`, or of the shards that `STEM.safetensors.index.json` lists.

    Raises:
        ModelError: neither is there, a shard is missing or damaged, or there are pickles alone.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        if not (folder / f"{stem}.safetensors").is_file():
            refuse_only_pickles(folder)
        return read_tensors(folder / f"{stem}.safetensors")[0]
    listed = weight_map(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        tensors |= read_tensors(folder / name)[0]
    if missing := sorted(set(listed) - set(tensors)):
        raise ModelError(f"the shards of {index} lack {listing(missing)}", RESTORE)
    return tensors


def weight_map(index: Path) -> dict[str, str]:
    """The shard of every tensor that an index lists.

    Raises:
        ModelError: no such list, or a shard that is no safetensors file in the index's own folder.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError(f"{index} has no weight_map of tensors and files", RESTORE)
    for name in sorted(set(listed.values())):
        if Path(name).name != name:
            raise ModelError(f"{index} names a shard outside its folder: {name!r}", RESTORE)
        refuse_pickle(index.with_name(name))
    return listed


def check_kind(kind: Any, folder: Path, what: str) -> None:
    """Raises ModelError for another model than `kind`, or of another depth than its weights, before any is built.

    A configuration that is read alone could ask for any amount of memory.
    """
    config = read_json(folder / "config.json")
    wanted = getattr(getattr(kind, "config_class", None), "model_type", None)
    said, expected = (config.get("model_type"), wanted) if wanted else (config.get("_class_name"), kind.__name__)
    if said != expected:
        raise ModelError(f"{folder} holds a {said!r}, not the {what} {expected}", "give the folder of that model")
    text = config.get("text_config", config)
    layers = text.get("num_hidden_layers", config.get("num_layers")) if isinstance(text, dict) else None
    found = _depth(folder)
    if layers is not None and found and layers != found:
        raise ModelError(f"the {what} in {folder} says {layers!r} layers, and its weights have {found}", RESTORE)


def _depth(folder: Path) -> int:
    """Blocks of the language model or the transformer that the weights in a folder have; 0 where they name none."""
    names: list[str] = []
    for index in sorted(folder.glob("*.safetensors.index.json")):
        names += weight_map(index)
    for path in [] if names else sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names += list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged, or no safetensors file: {error}", RESTORE) from error
    places = [re.match(r"(?:model\.(?:language_model\.)?layers|blocks)\.(\d+)\.", name) for name in names]
    return max((int(place.group(1)) + 1 for place in places if place), default=0)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a local folder. Raises ModelError where there is none, or one that brings code of its own."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError(f"{folder} has no tokenizer.json", RESTORE)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {first}", RESTORE) from error


def refuse_pickle(path: Path) -> None:
    if path.suffix in PICKLES:
        raise ModelError(
            f"{path} is a pickle, and loading one runs whatever code is in it: it is not read",
            "give the safetensors of the same weights",
        )


def refuse_only_pickles(folder: Path) -> None:
    """Raises ModelError where a folder's weights are pickles."""
    for path in sorted(folder.glob("*")):
        refuse_pickle(path)


def loaded_whole(kind: Any, folder: Path, what: str, **options: Any) -> Any:
    """A diffusers or transformers model from a local folder, with every weight given and none left over.

    Raises:
        ModelError: a folder that is missing, damaged, pickled or another model's; the message names it.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"no {what} in {folder}: it has no config.json", "give a folder as diffusers or transformers saves it"
        )
    check_kind(kind, folder, what)
    if not any(folder.glob("*.safetensors")):
        refuse_only_pickles(folder)
    for index in sorted(folder.glob("*.safetensors.index.json")):
        weight_map(index)
    try:
        with _no_progress_bar():
            model, said = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the {what} in {folder} cannot be loaded: {first}", RESTORE) from error
    check_names(folder, what, said["missing_keys"], said["unexpected_keys"], said["mismatched_keys"])
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without transformers' own bar on the terminal, which would run through ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_names(
    where: Path, what: str, missing: Iterable[Any], unknown: Iterable[Any], misshapen: Iterable[Any]
) -> None:
    """Raises ModelError listing what does not fit; says nothing where all does."""
    found = {"unknown": unknown, "missing": missing, "mis-shaped": misshapen}
    lists = {kind: sorted(map(str, names)) for kind, names in found.items()}
    parts = [f"{len(names)} {kind} ({listing(names)})" for kind, names in lists.items() if names]
    if parts:
        raise ModelError(f"the {what} in {where} does not fit: {'; '.join(parts)}", "give the weights of this model")


def misshapen(tensors: Mapping[str, Tensor], expected: Mapping[str, Iterable[int]]) -> list[str]:
    """Sentences on tensors whose shape is not the expected one."""
    return [
        f"{name} is {list(tensors[name].shape)}, not {list(expected[name])}"
        for name in sorted(tensors)
        if name in expected and list(tensors[name].shape) != list(expected[name])
    ]


def listing(names: list[str], most: int = 8) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
