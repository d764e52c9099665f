"""Loading stock classes from local folders: safetensors alone, whole or not at all, every failure one clear line."""

from __future__ import annotations

import json
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
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
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
    listed = read_json(index).get("weight_map", {})
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        if Path(name).name != name:
            raise ModelError(f"{index} names a shard outside its folder: {name!r}", RESTORE)
        tensors |= read_tensors(folder / name)[0]
    if missing := sorted(set(listed) - set(tensors)):
        raise ModelError(f"the shards of {index} lack {listing(missing)}", RESTORE)
    return tensors


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
    if not any(folder.glob("*.safetensors")):
        refuse_only_pickles(folder)
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
