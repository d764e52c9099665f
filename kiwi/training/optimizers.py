"""Optimisers of a stage: AdamW throughout, or Muon for the transformer's matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from kiwi.configuration import TRAINABLE, StageSettings, TrainerSettings
from kiwi.errors import UsageError
from kiwi.model.editor import KiwiEditModel
from kiwi.training.adamw import LeanAdamW
from kiwi.training.masters import Masters
from kiwi.training.muon import Muon
from kiwi.training.ranks import is_sharded

BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.01
FLOAT32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "scale")
PARTS = {
    "dit": ("transformer.",),
    "queries": ("context_encoder.queries.",),
    "connectors": ("context_encoder.query_connector.", "context_encoder.reference_connector."),
    "source": ("transformer.patch_embedding.source.",),
    "reference": ("transformer.patch_embedding.reference.",),
}


class Optimizers:
    """The optimisers of one stage, stepped together; learning rates are shares of each group's own peak.

    With `precision` bfloat16 and the weights on one rank, the weights that products are made with become bfloat16
    here and until `settle`; what they lack of float32 is kept beside them (see Masters) and takes part in every step.
    Sharded weights stay in float32, for FSDP makes bfloat16 copies of them where they are used.
    """

    def __init__(self, model: KiwiEditModel, stage: StageSettings, trainer: TrainerSettings | None = None) -> None:
        trainer = trainer or TrainerSettings()
        self.named = dict(freeze_all_but(model, stage.trainable))
        self.parameters = list(self.named.values())
        halved = trainer.precision == "bfloat16" and not any(is_sharded(each) for each in self.parameters)
        self.masters = Masters(p for name, p in self.named.items() if halved and not stays_float32(name))
        matrices = [p for name, p in self.named.items() if stage.optimizer == "muon" and _is_block_matrix(name, p)]
        taken = {id(parameter) for parameter in matrices}
        language = [p for name, p in self.named.items() if name.startswith("context_encoder.")]
        rest = [p for name, p in self.named.items() if not name.startswith("context_encoder.") and id(p) not in taken]
        groups = [
            {"params": group, "lr": rate}
            for group, rate in ((rest, stage.learning_rate), (language, stage.mllm_learning_rate))
            if group
        ]
        self._all: list[torch.optim.Optimizer] = []
        if groups and stage.moments == "bfloat16":
            options = {"low": self.masters.low, "compiled": trainer.compile}
            self._all.append(LeanAdamW(groups, betas=BETAS, weight_decay=WEIGHT_DECAY, **options))  # type: ignore[arg-type]
        elif groups:
            self._all.append(torch.optim.AdamW(groups, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True))
        if matrices:
            self._all.append(Muon(matrices, lr=stage.muon_learning_rate, weight_decay=WEIGHT_DECAY))
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._all]

    def step(self, share: float) -> None:
        """One step at `share` of the peak rates; gradients are cleared."""
        for optimizer, peaks in zip(self._all, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            if isinstance(optimizer, LeanAdamW):
                optimizer.step()
            else:
                with self.masters.together(p for group in optimizer.param_groups for p in group["params"]):
                    optimizer.step()
            optimizer.zero_grad()

    def clip(self, most: float) -> Tensor:
        """Scales the gradients down to a norm of `most` in all; returns the norm before. A DTensor where sharded."""
        if not self.masters.low:
            return torch.nn.utils.clip_grad_norm_(self.parameters, most)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not gradients:
            return torch.zeros(())
        norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
        norm: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def weights(self) -> dict[str, Tensor]:
        """The trained weights by name, as they are kept: float32. Those in halves are put together in main memory."""
        return {
            name: self.masters.whole(p).cpu() if p in self.masters.low else p.detach() for name, p in self.named.items()
        }

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Takes up what `weights` gave, where that was no parameter itself, which is filled in place."""
        for name, parameter in self.named.items():
            if parameter in self.masters.low:
                self.masters.put(parameter, weights[name])

    def settle(self) -> None:
        """Ends training: all weights are float32 again."""
        self.masters.settle()

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors: `PARAMETER/STATE`. They are the optimisers' own, no copies."""
        names = {id(parameter): name for name, parameter in self.named.items()}
        return {
            f"{names[id(parameter)]}/{key}": value
            for optimizer in self._all
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }

    def blank(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Makes the state that `keys` (of `tensors`) name, of zeros and sharded as the parameters, to be filled."""
        owners = {
            id(p): optimizer for optimizer in self._all for group in optimizer.param_groups for p in group["params"]
        }
        for key in keys:
            name, _, what = key.rpartition("/")
            if name in self.named:
                parameter = self.named[name]
                optimizer = owners[id(parameter)]
                optimizer.state[parameter][what] = _fresh(optimizer, parameter, what)
        return self.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes up what `tensors` gave."""
        with torch.no_grad():
            for key, value in self.blank(tensors).items():
                value.copy_(tensors[key])


def _fresh(optimizer: torch.optim.Optimizer, parameter: Tensor, what: str) -> Tensor:
    """A state of zeros, of the kind and in the place that the optimiser gives it at its first step.

    torch's fused AdamW reads its count of steps on the device; ours reads it here, and would wait for the device.
    """
    lean = isinstance(optimizer, LeanAdamW)
    if what == "step":
        return torch.zeros((), device="cpu" if lean else parameter.device)
    return torch.zeros_like(parameter, dtype=torch.bfloat16 if lean else torch.float32).detach()


def freeze_all_but(model: KiwiEditModel, parts: tuple[str, ...]) -> list[tuple[str, nn.Parameter]]:
    """Lets only `parts` take gradients; returns them. Before a model is sharded, and after, it names the same."""
    chosen = trainable(model, parts)
    model.requires_grad_(False)
    for _, parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def trainable(model: KiwiEditModel, parts: tuple[str, ...]) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a stage trains. Raises UsageError for a part that does not exist.

    "all" is the transformer, the queries, the connectors and LoRA; the language model's own weights are frozen.
    """
    unknown = [part for part in parts if part not in TRAINABLE]
    if unknown:
        raise UsageError(f"no trainable part {unknown[0]!r}", f"parts: {', '.join(TRAINABLE)}")
    return [(name, p) for name, p in model.named_parameters() if _belongs(name, parts)]


def _belongs(name: str, parts: tuple[str, ...]) -> bool:
    if "all" in parts:
        return not name.startswith("context_encoder.mllm.") or "lora_" in name
    prefixes: Iterator[str] = (prefix for part in parts for prefix in PARTS.get(part, ()))
    return any(name.startswith(prefix) for prefix in prefixes) or ("lora" in parts and "lora_" in name)


def stays_float32(name: str) -> bool:
    """Parameters that stay in float32 where a model computes in bfloat16: the stock model's choice, and our curve.

    The timestep's embedding, the tables that it is added to and the norms; they are few.
    """
    parts = name.split(".")
    return parts[0] == "transformer" and any(part in FLOAT32 for part in parts)


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    return name.startswith("transformer.blocks.") and name.endswith(".weight") and parameter.dim() == 2


def schedule(step: int, steps: int, warmup: float, decay_to: float) -> float:
    """The share of the peak rate at a step: a linear rise over `warmup` of the steps, then a linear fall."""
    risen = min(1.0, (step + 1) / max(1.0, warmup * steps))
    return risen * (1 - (1 - decay_to) * step / max(1, steps))
