"""What is done to a model before it is trained: place, recomputation, compilation, sharding. Free functions.

The model file knows nothing of them. The order is that of torchtitan: recompute, compile, shard.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kiwi.configuration import TrainerSettings
from kiwi.errors import UsageError
from kiwi.model.attention import attend
from kiwi.model.editor import KiwiEditModel
from kiwi.training.optimizers import stays_float32
from kiwi.training.ranks import Ranks

SHAPES = 64  # of data that are compiled before new ones run uncompiled
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")


def chosen_device(said: str) -> torch.device:
    """The device of `trainer.device`; "auto" is the GPU where there is one. Raises UsageError where it is absent."""
    if said == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu", *_own_gpu())
    try:
        device = torch.device(said)
    except RuntimeError as error:
        raise UsageError(f"trainer.device: no device {said!r}", "auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"trainer.device is {said}, and this machine has no usable GPU", "--set trainer.device=cpu")
    return torch.device("cuda", *_own_gpu()) if said == "cuda" else device


def _own_gpu() -> tuple[int, ...]:
    return (int(os.environ.get("LOCAL_RANK", "0")),) if torch.cuda.is_available() else ()


def check_device(device: torch.device, said: str, model: KiwiEditModel) -> None:
    """Raises UsageError where a released size would be trained on a CPU without being told to."""
    from kiwi.model.wan import TRAINED_SIZES

    if device.type == "cpu" and said == "auto" and model.name in TRAINED_SIZES:
        raise UsageError(
            f"the model {model.name} needs a GPU, and this machine has none that torch can use",
            "train where there is one, or --set trainer.device=cpu and wait",
        )


def parallelize(model: KiwiEditModel, trainer: TrainerSettings, device: torch.device, ranks: Ranks) -> KiwiEditModel:
    """Makes a model ready for training, in place. Its parameters keep their names; on several ranks they are DTensors.

    Raises:
        UsageError: a number of ranks that cannot be parted as asked, or an attention that is not there.
    """
    low = trainer.precision == "bfloat16"
    attend(model.transformer, trainer.attention, device, trainer.precision)
    recompute(model, trainer.recompute)
    if trainer.compile:
        compile_blocks(model)
    if ranks.several:
        shard(model, trainer.shard_ranks, device, ranks, low)
    else:
        if device.type != "cpu":
            model.to(device)
        as_trained(model, low)
    codec: Any = model.codec
    if device.type != "cpu" and hasattr(codec, "to"):  # it encodes references whose size varies
        codec.to(device, torch.bfloat16) if low else codec.to(device)
    return model


def as_trained(part: nn.Module, low: bool, prefix: str = "") -> None:
    """Gives the parameters of a part the precision that they are kept in while training.

    What is trained becomes float32, which is what the optimiser's small steps need. What is frozen becomes bfloat16
    where the model computes in that (`low`), but for the few that the stock model keeps in float32. `prefix` is where
    the part stands in the model.
    """
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            kind = torch.float32
        else:
            kind = torch.bfloat16 if low and not stays_float32(prefix + name) else parameter.dtype
        if parameter.dtype != kind:
            parameter.data = parameter.data.to(kind)


def compile_blocks(model: KiwiEditModel, backend: str = "inductor") -> None:
    """Compiles each block of the transformer by itself. A shape of data is compiled when it first comes."""
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    for block in model.transformer.blocks:
        block.compile(fullgraph=False, dynamic=False, backend=backend)


def recompute(model: KiwiEditModel, what: str) -> None:
    """Activation checkpointing: what the backward pass computes again, from little to all.

    selective  keeps the results of matrix products and of attention
    attention  keeps those of attention alone, which at 720p is the dearest to compute of what is small to keep
    full       keeps the blocks' inputs

    With any of them the language model's layers keep their inputs alone: they are a tenth of the operations, and at
    720p they would take as much memory as the transformer. Blocks recompute inside of what is compiled.
    """
    if what == "none":
        return
    from torch.utils.checkpoint import checkpoint

    options: dict[str, Any] = {"use_reentrant": False}
    if what in KEPT:
        options["context_fn"] = KEPT[what]
    for block in model.transformer.blocks:
        forward = block.forward

        def again(*inputs: Any, forward: Callable[..., Any] = forward) -> Any:
            return checkpoint(forward, *inputs, **options) if torch.is_grad_enabled() else forward(*inputs)

        block.forward = again
    mllm = model.context_encoder.mllm
    newer = "activation_checkpointing_enable"  # the name that transformers gave it within version 5
    (getattr(mllm, newer, None) or mllm.gradient_checkpointing_enable)({"use_reentrant": False})


def _keeping(context: Any, operation: Any, *inputs: Any, **named: Any) -> Any:
    from torch.utils.checkpoint import CheckpointPolicy

    kept = is_product(operation) or is_attention(operation)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _keeping_attention(context: Any, operation: Any, *inputs: Any, **named: Any) -> Any:
    from torch.utils.checkpoint import CheckpointPolicy

    return CheckpointPolicy.MUST_SAVE if is_attention(operation) else CheckpointPolicy.PREFER_RECOMPUTE


def _selective() -> Any:
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    return create_selective_checkpoint_contexts(_keeping)  # type: ignore[no-untyped-call]


def _attention() -> Any:
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    return create_selective_checkpoint_contexts(_keeping_attention)  # type: ignore[no-untyped-call]


KEPT: dict[str, Callable[[], Any]] = {"selective": _selective, "attention": _attention}


@functools.cache
def is_product(operation: Any) -> bool:
    """Whether an operation is a matrix product or a convolution."""
    return operation in {getattr(torch.ops.aten, name).default for name in PRODUCTS}


@functools.cache
def is_attention(operation: Any) -> bool:
    """Whether an operation is the forward pass of attention, of torch's own or of a library that registers it."""
    name = str(operation)
    return any(said in name for said in ("attention", "flash_attn")) and "backward" not in name


def shard(model: KiwiEditModel, shard_ranks: int | None, device: torch.device, ranks: Ranks, low: bool = False) -> None:
    """FSDP2 over all ranks, or HSDP: copies of the weights, each spread over `shard_ranks` ranks.

    Each transformer block and each language layer is gathered by itself; queries, connectors and the rest with the
    module that calls them. A part goes to the device, in the precision that it is kept in, just before it is sharded,
    so that no rank ever holds all of it in float32: until then its weights are the pages of the file that all ranks
    have mapped. With `low` parts are gathered in bfloat16 and gradients summed in float32, but for the timestep's
    embedding. All inputs keep their precision, for the timestep must stay in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    width = shard_ranks or ranks.world
    if ranks.world % width:
        raise UsageError(
            f"trainer.shard_ranks is {width}, which does not divide {ranks.world} ranks", "give a divisor of them"
        )
    shape, names = ((ranks.world,), ("shard",))
    if width < ranks.world:
        shape, names = (ranks.world // width, width), ("copy", "shard")  # type: ignore[assignment]
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    rounded = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    transformer, encoder = model.transformer, model.context_encoder
    embedder, layers = transformer.condition_embedder.time_embedder, encoder.mllm.model.language_model.layers
    places = {embedder: "transformer.condition_embedder.time_embedder.", transformer: "transformer."}
    for module in (*transformer.blocks, *layers, embedder, transformer, encoder):
        as_trained(module.to(device), low, places.get(module, ""))
        fully_shard(module, mesh=mesh, mp_policy=rounded if low and module is not embedder else exact)
    register_fsdp_forward_method(encoder, "vision_tokens")
    if low:
        model.arithmetic = torch.bfloat16
