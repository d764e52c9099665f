"""What is done to a model before it is trained: place, recomputation, compilation, sharding. Free functions.

The model file knows nothing of them. The order is that of torchtitan: recompute, compile, shard.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kiwi.configuration import TrainerSettings
from kiwi.errors import UsageError
from kiwi.model.editor import KiwiEditModel
from kiwi.training.ranks import Ranks


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
        UsageError: a number of ranks that cannot be parted as asked.
    """
    placed(model, device, trainer.precision)
    recompute(model, trainer.recompute)
    if trainer.compile:
        for block in model.transformer.blocks:
            block.compile(fullgraph=False, dynamic=False)
    if ranks.several:
        shard(model, trainer.shard_ranks, device, ranks)
    return model


def placed(model: KiwiEditModel, device: torch.device, precision: str) -> None:
    """Moves the model; what it trains becomes float32, which is what the optimiser's small steps need.

    The attention that is made for the CPU works in float32 alone; elsewhere the stock one takes its place.
    """
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    if device.type != "cpu" or precision != "float32":
        model.transformer.set_attn_processor(WanAttnProcessor())
    if device.type != "cpu":
        model.to(device)


def precision(trainer: TrainerSettings, device: torch.device) -> Any:
    """The context of forward passes: bfloat16 arithmetic on float32 weights, or nothing.

    Noise levels are no part of it: the model takes them in float32 to its timestep embedding.
    """
    if trainer.precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def recompute(model: KiwiEditModel, what: str) -> None:
    """Activation checkpointing of the transformer's blocks; "full" takes the language model's layers too."""
    if what == "none":
        return
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    options: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)

    def rerun(block: nn.Module, *inputs: Tensor) -> Any:
        return checkpoint(block.__call__, *inputs, **options)

    model.transformer.enable_gradient_checkpointing(rerun)
    if what == "full":
        model.context_encoder.mllm.gradient_checkpointing_enable({"use_reentrant": False})


def _policy(context: Any, operation: Any, *inputs: Any, **named: Any) -> Any:
    """Keeps the results of matrix products and of attention; all else is computed again."""
    from torch.utils.checkpoint import CheckpointPolicy

    kept = operation in _kept_operations()
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _kept_operations() -> frozenset[Any]:
    aten = torch.ops.aten
    names = (
        "mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )  # fmt: skip
    return frozenset(getattr(aten, name).default for name in names if hasattr(aten, name))


def shard(model: KiwiEditModel, shard_ranks: int | None, device: torch.device, ranks: Ranks) -> None:
    """FSDP2 over all ranks, or HSDP: copies of the weights, each spread over `shard_ranks` ranks.

    Each transformer block and each language layer is gathered by itself; queries, connectors and the rest with the
    module that calls them. All inputs keep their precision: the timestep must stay in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    width = shard_ranks or ranks.world
    if ranks.world % width:
        raise UsageError(
            f"trainer.shard_ranks is {width}, which does not divide {ranks.world} ranks", "give a divisor of them"
        )
    shape, names = ((ranks.world,), ("shard",))
    if width < ranks.world:
        shape, names = (ranks.world // width, width), ("copy", "shard")  # type: ignore[assignment]
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    wrap: Callable[[nn.Module], Any] = functools.partial(fully_shard, mesh=mesh, mp_policy=policy)
    layers = model.context_encoder.mllm.model.language_model.layers
    for module in (*model.transformer.blocks, *layers, model.transformer, model.context_encoder):
        wrap(module)
