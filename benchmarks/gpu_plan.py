"""The memory that training a released size takes on one GPU, computed from shapes: no weight is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from gpu_cases import CASES, Case, context_tokens, editor, seen_grids
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kiwi.model.editor import KiwiEditModel
from kiwi.training.optimizers import freeze_all_but, stays_float32
from kiwi.training.parallelize import attend, is_attention, is_product

META = torch.device("meta")
CARD = 80.0  # GB as sold; a card of that name holds 83.7 to 85.5 * 10^9 bytes
POLICIES = ("none", "selective", "attention", "full")


class _Bytes(TorchDispatchMode):
    """Adds up the results of operations that a policy keeps."""

    def __init__(self, kept: Callable[[Any], bool]) -> None:
        super().__init__()
        self.kept, self.total = kept, 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        if self.kept(operation):
            each = result if isinstance(result, tuple | list) else (result,)
            self.total += sum(tensor.nbytes for tensor in each if isinstance(tensor, Tensor))
        return result


def _attention_of_a_gpu(query: Tensor, key: Tensor, value: Tensor, *_: Any, **named: Any) -> Tensor:
    """Flash attention, which a GPU takes; without one torch would plan for all scores at once."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1) if groups > 1 else each for each in (key, value))
    result: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False)[0]
    return result


def kept_without_recomputing(run: Callable[[], Any], parameters: set[int]) -> int:
    """Bytes of what autograd keeps of a call, each storage once and weights left out."""
    held: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            held[storage._cdata] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(size for _, size in held.values())


def activations(model: KiwiEditModel, case: Case) -> dict[str, float]:
    """10^9 bytes that one sample's backward pass finds kept, by policy, and what one block takes while it runs."""
    config, blocks = model.transformer.config, model.transformer.blocks
    width = config.num_attention_heads * config.attention_head_dim
    tokens, low = case.tokens(model), {"dtype": torch.bfloat16, "device": META}
    hidden = torch.empty(1, tokens, width, **low, requires_grad=True)
    context = torch.empty(1, context_tokens(model, case), width, **low, requires_grad=True)
    level = torch.empty(1, 6, width, **low, requires_grad=True)
    angles = tuple(torch.empty(1, tokens, 1, config.attention_head_dim, device=META) for _ in range(2))

    def block() -> Any:
        return blocks[0](hidden, context, level, angles)

    own = {each.untyped_storage()._cdata for each in (*blocks[0].parameters(), hidden, context, level, *angles)}
    with patch("torch.nn.functional.scaled_dot_product_attention", _attention_of_a_gpu):
        whole = kept_without_recomputing(block, own)
        kept = {"none": whole, "full": 0}
        for policy, rule in (("selective", lambda each: is_product(each) or is_attention(each)),
                             ("attention", is_attention)):  # fmt: skip
            with _Bytes(rule) as counted:
                block()
            kept[policy] = counted.total
        language = _language(model, case)
    found = {policy: (len(blocks) * (size + hidden.nbytes)) / 1e9 for policy, size in kept.items()}
    return {**found, "one block": whole / 1e9, **language}


def _language(model: KiwiEditModel, case: Case) -> dict[str, float]:
    """The same of the language model's layers: their inputs alone, and one layer while it is computed again."""
    language, encoder = model.context_encoder.mllm.model.language_model, model.context_encoder
    grid, reference = seen_grids(model, case)
    queries = encoder.template.queries["reference" if case.reference else "video"]
    length = grid.tokens(2) + (reference.tokens(2) if reference else 0) + queries + 80  # about the prompt's words
    hidden = torch.empty(1, length, language.config.hidden_size, dtype=torch.bfloat16, device=META, requires_grad=True)
    head = language.config.hidden_size // language.config.num_attention_heads
    angles = tuple(torch.empty(1, length, head, dtype=torch.bfloat16, device=META) for _ in range(2))
    layer = language.layers[0]
    own = {each.untyped_storage()._cdata for each in (*layer.parameters(), hidden, *angles)}

    def run() -> Any:
        return layer(hidden, attention_mask=None, position_embeddings=angles)

    return {
        "language layers' inputs": len(language.layers) * hidden.nbytes / 1e9,
        "one language layer": kept_without_recomputing(run, own) / 1e9,
        "language layers, none recomputed": len(language.layers) * kept_without_recomputing(run, own) / 1e9,
    }


def weights(model: KiwiEditModel) -> dict[str, float]:
    """10^9 bytes of weights and of what the optimiser holds, on one rank with precision and moments in bfloat16."""
    freeze_all_but(model, ("all",))
    halves = whole = frozen = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen += parameter.numel()
        elif stays_float32(name):
            whole += parameter.numel()
        else:
            halves += parameter.numel()
    codec: Any = model.codec
    autoencoder = sum(p.numel() for p in codec.vae.parameters())
    return {
        "trained weights, bfloat16": (2 * halves + 4 * whole) / 1e9,
        "their other halves (float32 together)": 2 * halves / 1e9,
        "gradients, bfloat16": (2 * halves + 4 * whole) / 1e9,
        "two moments, bfloat16": 4 * (halves + whole) / 1e9,
        "frozen language model and vision tower, bfloat16": 2 * frozen / 1e9,
        "autoencoder, bfloat16": 2 * autoencoder / 1e9,
    }


def plan(size: str, model: KiwiEditModel) -> dict[str, Any]:
    """{"weights": {part: GB}, "cases": {case: {policy: GB in all}}, "activations": {case: {part: GB}}}.

    Args:
        model: of the size, on the device "meta".
    """
    attend(model.transformer, "native", META)
    model.train()
    held = weights(model)
    cases, parts = {}, {}
    for case in CASES[size]:
        found = parts[case.name] = activations(model, case)
        always = sum(held.values()) + found["language layers' inputs"]
        # a block that is computed again has its activations, and gradients of about their size
        working = max(2 * found["one block"], found["one language layer"])
        cases[case.name] = {
            policy: always + found[policy] + working if policy != "none"
            else sum(held.values()) + found["none"] + found["language layers, none recomputed"] + found["one block"]
            for policy in POLICIES
        }  # fmt: skip
    return {"weights": held, "cases": cases, "activations": parts}


def printed(size: str) -> None:
    """Prints the plan as a table, in 10^9 bytes."""
    found = plan(size, editor(size, META, torch.bfloat16))
    print(f"{size}, trained in full on one GPU, in 10^9 bytes (computed, not measured)\n")
    for part, gigabytes in found["weights"].items():
        print(f"  {part:<52}{gigabytes:>8.1f}")
    print(f"  {'together':<52}{sum(found['weights'].values()):>8.1f}\n")
    print(f"  {'with one sample, by trainer.recompute':<40}" + "".join(f"{policy:>12}" for policy in POLICIES))
    for case, by_policy in found["cases"].items():
        print(f"  {case:<40}" + "".join(f"{by_policy[policy]:>12.1f}" for policy in POLICIES))
    print(f"\n  A card sold as {CARD:.0f} GB holds about 84. Not counted: the CUDA context and the allocator's gaps.")
