"""What is done to a model before it is trained: attention, recomputation, compilation, and bfloat16 weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kiwi.configuration import StageSettings, TrainerSettings
from kiwi.errors import UsageError
from kiwi.model.editor import KiwiEditModel
from kiwi.tracking import silent
from kiwi.training import loop, parallelize
from kiwi.training.loop import train
from kiwi.training.mixture import Mixture
from kiwi.training.operations import counting
from kiwi.training.optimizers import freeze_all_but
from kiwi.training.preemption import Preempted
from kiwi.training.ranks import Ranks

NewEditor = Callable[[], KiwiEditModel]
Staged = Callable[..., StageSettings]
SEED, CPU = 5, torch.device("cpu")
LOW: dict[str, Any] = {"precision": "bfloat16"}


class _Ran(TorchDispatchMode):
    """Counts matrix products and attention as they run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts["product"] += parallelize.is_product(operation)
        self.counts["attention"] += parallelize.is_attention(operation)
        return operation(*args, **(kwargs or {}))


def prepared(model: KiwiEditModel, **said: Any) -> KiwiEditModel:
    return parallelize.parallelize(model, TrainerSettings(**said), CPU, Ranks())


def velocity(model: KiwiEditModel) -> Tensor:
    """Of a clip with a source, for an equal context."""
    generator = torch.Generator().manual_seed(1)
    noisy, source = (torch.randn(1, 48, 3, 4, 4, generator=generator) for _ in range(2))
    context = torch.randn(1, 6, 96, generator=generator)
    result: Tensor = model(noisy, torch.tensor([0.6]), context, source)
    return result


@pytest.mark.parametrize(
    ("recompute", "products", "attentions"),
    [("none", False, False), ("selective", False, False), ("attention", True, False), ("full", True, True)],
)
def test_a_policy_computes_again_what_it_does_not_keep(
    new_editor: NewEditor, recompute: str, products: bool, attentions: bool
) -> None:
    plain, model = (prepared(new_editor(), **each) for each in ({}, {"recompute": recompute}))
    counts = []
    for each in (plain, model):
        parallelize.attend(each.transformer, "native", CPU, "bfloat16")  # torch's own, in one operation
        loss = velocity(each).square().mean()
        with _Ran() as ran:
            loss.backward()
        counts.append(ran.counts)
    assert counts[0]["attention"] == 0
    assert counts[1]["attention"] == (2 * len(model.transformer.blocks) if attentions else 0)
    assert (counts[1]["product"] > counts[0]["product"]) == products
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.allclose(one.grad, other.grad, atol=1e-7)  # type: ignore[arg-type]


def test_recomputation_is_not_counted_as_work(cache: Path, new_editor: NewEditor, staged: Staged) -> None:
    totals = []
    for recompute in ("none", "attention", "full"):
        model = prepared(new_editor(), recompute=recompute).train()
        batch = Mixture(cache, staged(), model.context_encoder, SEED).batch("video", 0, 0)
        with counting(model) as counted:
            loop.flow_matching_loss(model, batch, (1,)).backward()
        totals.append(counted.total)
    assert totals[0] == totals[1] == totals[2] > 0


@pytest.mark.parametrize("recompute", ["none", "attention"])
def test_blocks_traced_for_compilation_give_the_velocity_and_the_gradients(
    new_editor: NewEditor, recompute: str
) -> None:
    """Traced and differentiated as for compilation, and run without the code that a compiler would make: making that
    takes a minute. tests/e2e/test_training_compiled.py makes it.
    """
    plain, traced = prepared(new_editor()), prepared(new_editor(), recompute=recompute)
    parallelize.compile_blocks(traced, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for each in (plain, traced):
        velocity(each).square().mean().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch.allclose(velocity(traced), velocity(plain), atol=1e-5)
    for one, other in zip(plain.transformer.parameters(), traced.transformer.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.allclose(one.grad, other.grad, atol=1e-6)  # type: ignore[arg-type]


def test_more_shapes_are_compiled_than_torch_would(new_editor: NewEditor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    parallelize.compile_blocks(new_editor(), backend="eager")
    assert torch._dynamo.config.recompile_limit == parallelize.SHAPES


def test_attention_is_computed_by_the_backend_that_is_asked_for(new_editor: NewEditor) -> None:
    native, other = prepared(new_editor()), prepared(new_editor(), attention="_native_math")
    expected, found = velocity(native), velocity(other)
    assert torch.allclose(found, expected, atol=1e-5)
    with _Ran() as ran:
        velocity(other)
    assert ran.counts["attention"] == 0  # products and a softmax in place of the one operation
    assert {block.attn1.processor._attention_backend for block in other.transformer.blocks} == {"_native_math"}


@pytest.mark.parametrize(
    ("backend", "said"),
    [("fast", "no attention 'fast'"), ("flash", "on a GPU"), ("_native_cudnn", "on a GPU")],
)
def test_an_attention_that_is_not_there_is_one_clear_line(new_editor: NewEditor, backend: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        prepared(new_editor(), attention=backend)
    assert "native" in error.value.remedy
    assert "\n" not in error.value.message


def test_an_attention_whose_library_is_missing_says_which(new_editor: NewEditor) -> None:
    """On the device "meta", for on the CPU it is refused before."""
    pytest.importorskip("diffusers")
    from diffusers.utils import is_flash_attn_available

    if is_flash_attn_available():
        pytest.skip("flash-attn is installed")
    with pytest.raises(UsageError, match=r"attention 'flash' is not there: .*flash-attn"):
        parallelize.attend(new_editor().transformer, "flash", torch.device("meta"))


def test_what_is_frozen_is_bfloat16_but_for_what_the_stock_model_keeps(new_editor: NewEditor, staged: Staged) -> None:
    model = new_editor()
    freeze_all_but(model, ("queries", "connectors", "lora"))
    prepared(model, **LOW)
    kinds = {name: (p.requires_grad, p.dtype) for name, p in model.named_parameters()}
    assert {kind for trains, kind in kinds.values() if trains} == {torch.float32}
    assert kinds["context_encoder.mllm.model.language_model.embed_tokens.weight"] == (False, torch.bfloat16)
    assert kinds["transformer.blocks.0.attn1.to_q.weight"] == (False, torch.bfloat16)
    for name in ("condition_embedder.time_embedder.linear_1.weight", "blocks.0.scale_shift_table"):
        assert kinds[f"transformer.{name}"] == (False, torch.float32)


def test_a_frozen_embedding_of_the_timestep_stays_float32_where_ranks_share_the_weights(
    new_editor: NewEditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ranks: what would spread the parts over them is left out, and the parts are looked at."""
    model = new_editor()
    freeze_all_but(model, ("queries", "connectors", "lora"))
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda *_, **__: None)
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda *_, **__: None)
    monkeypatch.setattr("torch.distributed.fsdp.register_fsdp_forward_method", lambda *_: None)
    parallelize.shard(model, None, CPU, Ranks(world=2), low=True)
    kinds = {name: p.dtype for name, p in model.named_parameters() if not p.requires_grad}
    embedding = {kind for name, kind in kinds.items() if "time_embedder" in name}
    assert embedding == {torch.float32}
    assert kinds["transformer.blocks.0.attn1.to_q.weight"] == torch.bfloat16


def test_the_timestep_reaches_its_embedding_in_float32(new_editor: NewEditor, staged: Staged, cache: Path) -> None:
    model = prepared(new_editor(), **LOW)
    stage = staged(optimizer="adamw", moments="bfloat16")
    loop.Optimizers(model, stage, TrainerSettings(**LOW))
    assert model.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    seen: list[torch.dtype] = []
    embedder = model.transformer.condition_embedder
    for module in (embedder.timesteps_proj, embedder.time_embedder):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    velocity(model)
    assert seen == [torch.float32, torch.float32]


def test_bfloat16_training_that_was_stopped_has_the_losses_of_one_that_was_not(
    cache: Path, new_editor: NewEditor, staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: a checkpoint holds the weights in float32, and no half of them is lost."""
    stage = staged(steps=6, checkpoint_every=100, optimizer="adamw", moments="bfloat16", learning_rate=1e-4)
    trainer = TrainerSettings(**LOW)

    def run(folder: str, stop: int = -1) -> tuple[list[Any], KiwiEditModel]:
        model = prepared(new_editor(), **LOW)
        mixture = Mixture(cache, stage, model.context_encoder, SEED)
        original = loop._synchronised

        def synchronised(*inputs: Any) -> Any:
            told = original(*inputs)
            steps.append(1)
            return told if len(steps) != stop else loop.replace(told, stop=True)

        steps: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_synchronised", synchronised)
            return train(model, mixture, stage, SEED, tmp_path / folder, silent(), trainer=trainer).losses, model

    expected, whole = run("whole")
    with pytest.raises(Preempted):
        run("stopped", stop=3)
    found, resumed = run("stopped")
    assert found == expected
    named = dict(resumed.named_parameters())
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, named[name]), name
    name = "transformer.blocks.0.attn1.to_q.weight"
    assert named[name].dtype == torch.float32
    assert not torch.equal(named[name], named[name].bfloat16().float())  # more than the model computed with
