"""Names of the authors' training checkpoints and diffusers repositories, and ours: both ways, by one table each.

Ours are the stock names of a model folder: part `transformer`, `conditioning` or `connectors`, and the name in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from kiwi.model.errors import ModelError
from kiwi.model.folders import listing

Part = str  # a sub-folder of a model folder: "transformer", "conditioning", "connectors"

# Beginnings of names; `#` stands for a number, and what follows is kept.
_TRANSFORMER = (
    ("dit.blocks.#.self_attn.q.", "blocks.#.attn1.to_q."),
    ("dit.blocks.#.self_attn.k.", "blocks.#.attn1.to_k."),
    ("dit.blocks.#.self_attn.v.", "blocks.#.attn1.to_v."),
    ("dit.blocks.#.self_attn.o.", "blocks.#.attn1.to_out.0."),
    ("dit.blocks.#.self_attn.norm_q.", "blocks.#.attn1.norm_q."),
    ("dit.blocks.#.self_attn.norm_k.", "blocks.#.attn1.norm_k."),
    ("dit.blocks.#.cross_attn.q.", "blocks.#.attn2.to_q."),
    ("dit.blocks.#.cross_attn.k.", "blocks.#.attn2.to_k."),
    ("dit.blocks.#.cross_attn.v.", "blocks.#.attn2.to_v."),
    ("dit.blocks.#.cross_attn.o.", "blocks.#.attn2.to_out.0."),
    ("dit.blocks.#.cross_attn.norm_q.", "blocks.#.attn2.norm_q."),
    ("dit.blocks.#.cross_attn.norm_k.", "blocks.#.attn2.norm_k."),
    ("dit.blocks.#.ffn.0.", "blocks.#.ffn.net.0.proj."),
    ("dit.blocks.#.ffn.2.", "blocks.#.ffn.net.2."),
    ("dit.blocks.#.norm3.", "blocks.#.norm2."),
    ("dit.blocks.#.modulation", "blocks.#.scale_shift_table"),
    ("dit.head.head.", "proj_out."),
    ("dit.head.modulation", "scale_shift_table"),
    ("dit.time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("dit.time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("dit.time_projection.1.", "condition_embedder.time_proj."),
    ("dit.text_embedding.0.", "condition_embedder.text_embedder.linear_1."),  # unused, but kept for the way back
    ("dit.text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("dit.patch_embedding.", "patch_embedding."),
)
_CONDITIONING = (
    ("vae_condition.patch_embedding.", "source."),
    ("ref_vae_condition.patch_embedding.", "reference."),
)
_CONNECTORS = (
    ("mllm.image_queries.q", "queries.image"),
    ("mllm.video_queries.q", "queries.video"),
    ("mllm.ref_queries.q", "queries.reference"),
    ("mllm.connetor.", "query_connector."),  # so spelt in the released weights
    ("mllm.connector.", "query_connector."),  # and here and there put right
    ("mllm.ref_connector.", "reference_connector."),
    ("mllm.model.model.language_model.", "mllm.model.language_model."),
)
_TRAINING: tuple[tuple[Part, tuple[tuple[str, str], ...]], ...] = (
    ("transformer", _TRANSFORMER),
    ("conditioning", _CONDITIONING),
    ("connectors", _CONNECTORS),
)
_REPOSITORY_QUERIES = (
    ("image_queries", "queries.image"),
    ("video_queries", "queries.video"),
    ("ref_queries", "queries.reference"),
    ("connector.", "query_connector."),
    ("ref_connector.", "reference_connector."),
)
_LORA = re.compile(
    r"mllm\.model\.language_model\.layers\.\d+\.self_attn\.[qkvo]_proj\.lora_[AB]\.default\.weight", re.ASCII
)
_BARE_TRANSFORMER = (
    "blocks.", "head.", "patch_embedding.", "text_embedding.", "time_embedding.", "time_projection.",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in a model folder."""

    part: Part
    name: str


def place_of(name: str) -> Place | None:
    """Where a tensor of a training checkpoint belongs; None for a name that is not Kiwi-Edit's.

    Checkpoints come with the prefix `pipe.`, without it, or with `pipe.dit.` taken off.
    """
    plain = name.removeprefix("pipe.")
    if plain.startswith(_BARE_TRANSFORMER):
        plain = f"dit.{plain}"
    for part, table in _TRAINING:
        ours = _renamed(plain, table)
        if ours is not None and (not ours.startswith("mllm.") or _LORA.fullmatch(ours)):
            return Place(part, ours)
    return None


def training_name(place: Place) -> str:
    """The authors' name of a tensor of ours. Raises ModelError for one that their checkpoints have no name for."""
    table = tuple((ours, theirs) for theirs, ours in dict(_TRAINING)[place.part])
    theirs = _renamed(place.name, table)
    if theirs is None:
        raise ModelError(
            f"the authors' checkpoints have no name for {place.part}/{place.name}",
            "only editors with the paper's conditioning (separate, sigma) can be written in their format",
        )
    return theirs


def repository_place(name: str) -> str | None:
    """Our name in `connectors/` of a tensor in `mllm_encoder/` of the authors' diffusers repositories."""
    return _renamed(name, _REPOSITORY_QUERIES)


def repository_name(ours: str) -> str | None:
    """The inverse of `repository_place`."""
    return _renamed(ours, tuple((second, first) for first, second in _REPOSITORY_QUERIES))


def transformer_names(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's part of a checkpoint under the names of our adapted stock transformer."""
    out = {}
    for place, tensor in _placed(checkpoint):
        if place.part == "conditioning":
            out[f"patch_embedding.{place.name}"] = tensor
        elif place.part == "transformer" and "text_embedder" not in place.name:
            out[re.sub(r"^patch_embedding\.", "patch_embedding.base.", place.name)] = tensor
    return out


def context_names(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, connectors and LoRA of a checkpoint under the names of our ContextEncoder."""
    return {place.name: tensor for place, tensor in _placed(checkpoint) if place.part == "connectors"}


def _placed(checkpoint: dict[str, Tensor]) -> list[tuple[Place, Tensor]]:
    places = {name: place_of(name) for name in checkpoint}
    if unknown := [name for name, place in places.items() if place is None]:
        raise ModelError(
            f"the checkpoint has {len(unknown)} names that are not Kiwi-Edit's: {listing(unknown)}",
            "give a training checkpoint of Kiwi-Edit",
        )
    return [(place, checkpoint[name]) for name, place in places.items() if place is not None]


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    """The name with the beginning that the table gives it; None where no row fits."""
    for old, new in table:
        pattern = re.escape(old).replace(r"\#", r"(\d+)")
        found = re.match(pattern if old.endswith(".") else f"{pattern}$", name, re.ASCII)
        if found:
            beginning = new.replace("#", found.group(1)) if "#" in new else new
            return beginning + name[found.end() :]
    return None
