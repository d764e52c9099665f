"""The authors' training checkpoints: one safetensors file with the tensors that were trained, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kiwi.model.additions import CHECKPOINT, Additions, card
from kiwi.model.checkpoint import (
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
from kiwi.model.folders import check_names, misshapen, read_json, read_sharded, read_tensors
from kiwi.model.instruction import PromptTemplate
from kiwi.model.parts import (
    check_conditioning,
    check_mllm,
    check_vae,
    connector_shapes,
    copy_files,
    group_of,
    stock_shapes,
)
from kiwi.model.released import Place, place_of, training_name
from kiwi.model.vision import VisionBudget, views_as_json
from kiwi.model.wan import SIZES, SYSTEM_PROMPT, TRAINED_SIZES, Config, name_of

Tensors = dict[Place, Tensor]


def read(source: Path, out: Path, additions: Additions) -> tuple[int, list[str]]:
    """Writes a model folder of ours from a checkpoint. Returns (tensors taken, notes).

    Raises:
        ModelError: names that are unknown, missing or mis-shaped (all of them are counted and the first ones named),
            a part that neither the checkpoint nor the additions have.
    """
    tensors, metadata = read_tensors(source)
    places = {name: place_of(name) for name in tensors}
    known: Tensors = {place: tensors[name] for name, place in places.items() if place is not None}
    unknown = [name for name, place in places.items() if place is None]
    if not known:
        check_names(source, "checkpoint", [], unknown or ["any tensor"], [])
    mllm = _folder(additions.mllm, additions.start, "mllm", source)
    vae = _folder(additions.vae, additions.start, "vae", source)
    config = _transformer_config(known, additions, source)
    check_mllm(mllm)
    check_vae(vae, config)
    lent = _lent(known, additions)
    whole = lent | known
    conditioning = _conditioning(additions)
    rank, queries = _rank(whole), _queries(whole)
    _check(source, whole, unknown, _expected(config, mllm, queries, rank, conditioning))
    name = name_of(config) or "wan"
    index = described(
        preset=name, template=PromptTemplate(SYSTEM_PROMPT, queries), closing_tokens=True, vision=_views(additions),
        conditioning=conditioning, lora={"rank": rank, "alpha": rank},
    )  # fmt: skip
    parts = EditorParts(
        index=index,
        transformer_config=config,
        transformer=_of_part(whole, "transformer"),
        conditioning=_of_part(whole, "conditioning"),
        connectors=_of_part(whole, "connectors"),
        write_mllm=lambda place: copy_files(mllm, place),
        write_codec=lambda place: copy_files(vae, place),
        card=card(name, str(source), "weights of the authors' training checkpoint"),
        origin=_origin(places, metadata),
    )
    write_parts(parts, out)
    return len(known), [f"{part} comes from {where}" for part, where in _lenders(lent, additions)]


def _check(source: Path, whole: Tensors, unknown: list[str], expected: dict[Place, torch.Size]) -> None:
    """Raises ModelError for names that are unknown, missing or mis-shaped, as the authors call them."""
    said = {_said(place): tensor for place, tensor in whole.items()}
    shapes = {_said(place): shape for place, shape in expected.items()}
    optional = {_said(place) for place in expected if TEXT_EMBEDDER in place.name}
    missing = shapes.keys() - said.keys() - optional
    check_names(
        source, "checkpoint", missing, [*unknown, *(said.keys() - shapes.keys())], misshapen(said, shapes)
    )  # fmt: skip


def _conditioning(additions: Additions) -> Conditioning:
    if additions.reference_first:
        return Conditioning(reference_position="first")
    return Conditioning() if additions.start is None else conditioning_of(read_index(additions.start))


def _origin(places: dict[str, Place | None], metadata: dict[str, str] | None) -> dict[str, Any]:
    """What the way back needs: the checkpoint's own names and metadata."""
    names = {name: [place.part, place.name] for name, place in places.items() if place is not None}
    return {"format": "training", "metadata": metadata, "names": names}


def write(source: Path, out: Path) -> tuple[int, list[str]]:
    """Writes `CHECKPOINT` into `out` from a model folder of ours.

    A folder that came from a checkpoint gives that checkpoint's tensors, names and metadata again: the same file.
    """
    index = read_index(source)
    check_conditioning(source, conditioning_of(index))
    lora = index["lora"]
    if not lora or lora["rank"] != lora["alpha"]:
        raise ModelError(
            f"{source} has {'no adapters, they were merged' if not lora else 'adapters with alpha unlike rank'}: a "
            "training checkpoint holds adapters of alpha = rank, and no language model",
            "--to diffusers writes the whole model",
        )
    held = _held(source)
    origin = read_json(source / "origin.json") if (source / "origin.json").is_file() else {}
    if origin.get("format") == "training":
        names = {name: Place(*place) for name, place in origin["names"].items()}
    else:
        names = {training_name(place): place for place in held}
    if missing := [_said(place) for place in names.values() if place not in held]:
        check_names(source, "model folder", missing, [], [])
    tensors = {name: held[place].contiguous() for name, place in names.items()}
    save_file(tensors, out / CHECKPOINT, metadata=origin.get("metadata"))
    return len(tensors), ["the language model and the autoencoder are not in it, as in the authors' own"]


def _held(folder: Path) -> Tensors:
    """Every tensor of a model folder of ours but those of the frozen parts."""
    stems = {"transformer": STOCK_WEIGHTS, "conditioning": WEIGHTS, "connectors": WEIGHTS}
    return {
        Place(part, name): tensor
        for part, stem in stems.items()
        for name, tensor in read_sharded(folder / part, stem).items()
    }


def _folder(given: Path | None, start: Path | None, part: str, source: Path) -> Path:
    if given is not None:
        return given / part if (given / part / "config.json").is_file() else given
    if start is not None:
        return start / part
    what = {"mllm": "the language model, Qwen2.5-VL", "vae": "the autoencoder, AutoencoderKLWan"}[part]
    raise ModelError(f"{source} holds trained tensors alone, without {what}", f"--{part} FOLDER, or --start FOLDER")


def _transformer_config(known: Tensors, additions: Additions, source: Path) -> Config:
    """The transformer's configuration: as given, or that of the released size whose shapes the checkpoint has."""
    for folder in (additions.transformer, additions.start and additions.start / "transformer"):
        if folder is not None:
            inner = folder / "transformer"
            return read_json((inner if inner.is_dir() else folder) / "config.json")
    embedding = known.get(Place("transformer", "patch_embedding.weight"))
    for name in TRAINED_SIZES:
        size = SIZES[name]
        if embedding is not None and list(embedding.shape[:2]) == [size.width, size.transformer["in_channels"]]:
            return {"_class_name": "WanTransformer3DModel", **size.transformer}
    raise ModelError(
        f"{source} does not tell which transformer it belongs to",
        "--transformer FOLDER with its config.json (and its weights, where the checkpoint has none)",
    )


def _lent(known: Tensors, additions: Additions) -> Tensors:
    """Tensors of the parts that the checkpoint has nothing of."""
    lent: Tensors = {}
    if additions.start is not None:
        lent |= _held(additions.start)
    if additions.transformer is not None:
        inner = additions.transformer / "transformer"
        folder = inner if inner.is_dir() else additions.transformer
        if any(folder.glob(f"{STOCK_WEIGHTS}*")):
            weights = read_sharded(folder, STOCK_WEIGHTS)
            lent |= {Place("transformer", name): tensor for name, tensor in weights.items()}
    present = {group_of(place) for place in known}
    return {place: tensor for place, tensor in lent.items() if group_of(place) not in present}


def _lenders(lent: Tensors, additions: Additions) -> list[tuple[str, str]]:
    where = additions.start or additions.transformer
    return [(group, str(where)) for group in sorted({group_of(place) for place in lent})]


def _expected(
    config: Config, mllm: Path, queries: dict[str, int], rank: int, conditioning: Conditioning
) -> dict[Place, torch.Size]:
    transformer, added = stock_shapes(config, conditioning)
    connectors = connector_shapes(mllm, config, queries, rank)
    parts = {"transformer": transformer, "conditioning": added, "connectors": connectors}
    return {Place(part, name): shape for part, shapes in parts.items() for name, shape in shapes.items()}


def _rank(tensors: Tensors) -> int:
    """The adapters' rank, as most of them have it; 1 where there are none (they are missed later, by name)."""
    ranks = [tensor.shape[0] for place, tensor in tensors.items() if ".lora_A." in place.name]
    return max(set(ranks), key=ranks.count) if ranks else 1


def _queries(tensors: Tensors) -> dict[str, int]:
    """How many queries each bank has; 1 where it is missing."""
    found = {mode: tensors.get(Place("connectors", f"queries.{mode}")) for mode in ("image", "video", "reference")}
    return {mode: tensor.shape[0] if tensor is not None else 1 for mode, tensor in found.items()}


def _views(additions: Additions) -> dict[str, Any]:
    if additions.start is not None:
        said: dict[str, Any] = read_index(additions.start)["vision"]
        return said
    return views_as_json(VisionBudget())


def _of_part(tensors: Tensors, part: str) -> dict[str, Tensor]:
    return {place.name: tensor for place, tensor in tensors.items() if place.part == part}


def _said(place: Place) -> str:
    """How a tensor is called in a message: as the authors call it, where they have a name for it."""
    try:
        return training_name(place)
    except ModelError:
        return f"{place.part}/{place.name}"
