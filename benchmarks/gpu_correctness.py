"""Whether what benchmarks/gpu.py times is right: each lever against float32, on blocks of the real width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpu_cases import Case, batch_of, editor, emptied
from torch import Tensor, nn

from kiwi.configuration import StageSettings, TrainerSettings
from kiwi.errors import UsageError
from kiwi.model.editor import KiwiEditModel
from kiwi.training.adamw import LeanAdamW
from kiwi.training.loss import losses
from kiwi.training.masters import Masters
from kiwi.training.optimizers import Optimizers
from kiwi.training.parallelize import parallelize
from kiwi.training.ranks import Ranks

LAYERS = 2
LEVEL = 300
# of ||found - expected|| / ||expected||, against float32 without TF32
LOSS, GRADIENT, STEP = 0.03, 0.10, 0.02
STAGE = StageSettings(
    name="correctness", steps=1, mix={}, learning_rate=1e-5, mllm_learning_rate=1e-5, moments="bfloat16"
)


@dataclass(frozen=True)
class Found:
    """What a lever computed: the loss, the gradient of each trained tensor, in float32 on the CPU."""

    loss: float
    gradients: dict[str, Tensor]


def computed(size: str, case: Case, device: torch.device, **said: Any) -> Found:
    """One forward and backward pass at reduced depth, with everything trained that the recipes train."""
    trainer = TrainerSettings(device=str(device), **said)
    model = editor(size, device, torch.float32, LAYERS)
    parallelize(model, trainer, device, Ranks())
    optimizers = Optimizers(model, STAGE, trainer)
    batch, noise, levels = data(model, case, device)
    model.train()
    loss = losses(model, batch, noise, levels, STAGE).loss
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.float().cpu() for name, p in optimizers.named.items() if p.grad is not None}
    return Found(float(loss.detach()), gradients)


def data(model: KiwiEditModel, case: Case, device: torch.device) -> tuple[Any, Tensor, Tensor]:
    """(batch, noise, levels) of a step."""
    batch = batch_of(model, case, device)
    generator = torch.Generator(device).manual_seed(1)
    noise = torch.randn(batch.target.shape, generator=generator, device=device)
    return batch, noise, torch.tensor([LEVEL], device=device)


def apart(found: Found, expected: Found) -> dict[str, float]:
    """Relative differences: of the loss, of all gradients as one vector, and of the worst large tensor."""
    one = torch.cat([found.gradients[name].flatten() for name in expected.gradients])
    other = torch.cat([gradient.flatten() for gradient in expected.gradients.values()])
    share = {
        name: float((found.gradients[name] - gradient).norm() / gradient.norm())
        for name, gradient in expected.gradients.items()
        if float(gradient.norm()) > 0.01 * float(other.norm())
    }
    return {
        "loss": abs(found.loss - expected.loss) / expected.loss,
        "gradient": float((one - other).norm() / other.norm()),
        "worst_tensor": max(share.values()),
    }


def checks(size: str, case: Case, device: torch.device, levers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a lever; `right`: whether it is within the tolerances; not where it breaks, None where it is not there."""
    exact = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        expected = computed(size, case, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = exact
    rows = []
    for name, said in levers.items():
        emptied(device)
        try:
            found = apart(computed(size, case, device, **said), expected)
        except UsageError as error:
            rows.append({"lever": name, "right": None, "unavailable": error.message})
            continue
        except (RuntimeError, NotImplementedError) as error:
            first = (str(error).splitlines() or [""])[0][:300]
            rows.append({"lever": name, "right": False, "failed": f"{type(error).__name__}: {first}"})
            continue
        right = found["loss"] < LOSS and found["gradient"] < GRADIENT
        rows.append({"lever": name, "right": right, **{key: float(f"{value:.2e}") for key, value in found.items()}})
    emptied(device)
    return rows


def optimizer_check(device: torch.device, compiled: bool) -> dict[str, Any]:
    """Weights in halves with bfloat16 moments against torch.optim.AdamW in float32, twenty steps."""
    generator = torch.Generator(device).manual_seed(2)

    def random() -> Tensor:
        return torch.randn(512, 513, generator=generator, device=device)

    start = random()
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    masters = Masters([ours])
    settings: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.01}
    lean = LeanAdamW([ours], **settings, low=masters.low, compiled=compiled)
    stock = torch.optim.AdamW([theirs], **settings)
    for _ in range(20):
        gradient = random().bfloat16()
        ours.grad, theirs.grad = gradient, gradient.float()
        lean.step()
        stock.step()
    moved, difference = theirs.detach() - start, masters.whole(ours) - theirs.detach()
    off = float(difference.norm() / moved.norm())
    return {"lever": f"optimizer{' compiled' if compiled else ''}", "right": off < STEP, "step": float(f"{off:.2e}")}


def levers(attentions: Callable[[], tuple[str, ...]], compiled: bool) -> dict[str, dict[str, Any]]:
    """What is checked: bfloat16 alone, and then with each other lever."""
    low: dict[str, Any] = {"precision": "bfloat16"}
    named = {"bfloat16": low}
    named |= {f"recompute {what}": {**low, "recompute": what} for what in ("selective", "attention", "full")}
    named |= {f"attention {name}": {**low, "attention": name} for name in attentions() if name != "native"}
    if compiled:
        named["compile"] = {**low, "compile": True}
        named["compile, recompute attention"] = {**low, "compile": True, "recompute": "attention"}
    return named
