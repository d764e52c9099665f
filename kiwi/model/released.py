"""Names of the authors' training checkpoints, and ours: a state-dict adapter for the transformer and the context."""

from __future__ import annotations

import re

from torch import Tensor

from kiwi.model.errors import ModelError

_TRANSFORMER = (
    (r"dit\.blocks\.(\d+)\.self_attn\.([qkv])\.", r"blocks.\1.attn1.to_\2."),
    (r"dit\.blocks\.(\d+)\.cross_attn\.([qkv])\.", r"blocks.\1.attn2.to_\2."),
    (r"dit\.blocks\.(\d+)\.self_attn\.o\.", r"blocks.\1.attn1.to_out.0."),
    (r"dit\.blocks\.(\d+)\.cross_attn\.o\.", r"blocks.\1.attn2.to_out.0."),
    (r"dit\.blocks\.(\d+)\.self_attn\.norm_", r"blocks.\1.attn1.norm_"),
    (r"dit\.blocks\.(\d+)\.cross_attn\.norm_", r"blocks.\1.attn2.norm_"),
    (r"dit\.blocks\.(\d+)\.ffn\.0\.", r"blocks.\1.ffn.net.0.proj."),
    (r"dit\.blocks\.(\d+)\.ffn\.2\.", r"blocks.\1.ffn.net.2."),
    (r"dit\.blocks\.(\d+)\.norm3\.", r"blocks.\1.norm2."),
    (r"dit\.blocks\.(\d+)\.modulation$", r"blocks.\1.scale_shift_table"),
    (r"dit\.head\.head\.", "proj_out."),
    (r"dit\.head\.modulation$", "scale_shift_table"),
    (r"dit\.time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"dit\.time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"dit\.time_projection\.1\.", "condition_embedder.time_proj."),
    (r"dit\.patch_embedding\.", "patch_embedding.base."),
    (r"vae_condition\.patch_embedding\.", "patch_embedding.source."),
    (r"ref_vae_condition\.patch_embedding\.", "patch_embedding.reference."),
)
_CONTEXT = (
    (r"mllm\.(image|video)_queries\.q$", r"queries.\1"),
    (r"mllm\.ref_queries\.q$", "queries.reference"),
    (r"mllm\.connetor\.", "query_connector."),  # so spelt in the released weights
    (r"mllm\.ref_connector\.", "reference_connector."),
    (r"mllm\.model\.(model\.language_model\..*lora_[AB]\.default\.weight)$", r"mllm.\1"),
)
_UNUSED = re.compile(r"dit\.text_embedding\.")  # the connectors take its place


def transformer_names(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's part of a checkpoint under the names of our adapted stock transformer."""
    return _renamed(checkpoint, _TRANSFORMER, _CONTEXT)


def context_names(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, connectors and LoRA of a checkpoint under the names of our ContextEncoder."""
    return _renamed(checkpoint, _CONTEXT, _TRANSFORMER)


def _renamed(
    checkpoint: dict[str, Tensor], wanted: tuple[tuple[str, str], ...], others: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    """Renames by the first pattern that fits. Raises ModelError for a name that no pattern knows."""
    out: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in checkpoint.items():
        plain = name.removeprefix("pipe.")
        found = [re.sub(f"^{pattern}", ours, plain) for pattern, ours in wanted if re.match(pattern, plain)]
        if found:
            out[found[0]] = tensor
        elif not _UNUSED.match(plain) and not any(re.match(pattern, plain) for pattern, _ in others):
            unknown.append(name)
    if unknown:
        raise ModelError(
            f"the checkpoint has {len(unknown)} names that are not Kiwi-Edit's, such as {unknown[0]}",
            "give a training checkpoint of Kiwi-Edit",
        )
    return out
