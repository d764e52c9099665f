"""The rows of benchmarks/gpu.py on training: one step of a released size on cached-like data, by lever."""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from gpu_cases import (
    CASES,
    Case,
    editor,
    emptied,
    figures,
    milliseconds,
    peak_gb,
    precision,
    recomputed_operations,
)
from gpu_correctness import data

from kiwi.configuration import StageSettings, TrainerSettings
from kiwi.training.loss import losses
from kiwi.training.operations import counting
from kiwi.training.optimizers import Optimizers, freeze_all_but
from kiwi.training.parallelize import parallelize
from kiwi.training.ranks import Ranks

WARMUP, ROUNDS = 3, 5


@dataclass(frozen=True)
class Lever:
    """How a step is made."""

    attention: str = "native"
    compile: bool = False
    recompute: str = "full"
    moments: str = "bfloat16"

    @property
    def name(self) -> str:
        return f"{self.attention}, {self.recompute}, {'compiled' if self.compile else 'eager'}, moments {self.moments}"


def wanted(size: str, attentions: tuple[str, ...], on_gpu: bool) -> list[tuple[Case, Lever]]:
    """What is measured, the most telling first: the plain step, the best guess in each case, then one lever at a
    time.
    """
    cases = CASES[size]
    plain = Lever()
    best = Lever(attentions[0], compile=on_gpu, recompute="attention")
    rows = [(cases[0], plain), *((case, best) for case in cases)]
    rows += [(cases[0], replace(best, attention=name)) for name in attentions[1:]]
    rows += [(cases[0], replace(best, recompute="full")), (cases[0], replace(best, compile=False))]
    rows += [(cases[-1], replace(best, recompute=what)) for what in ("selective", "none")]
    rows += [(cases[-1], replace(best, moments="float32"))]
    seen: dict[tuple[Case, Lever], None] = dict.fromkeys(rows)
    return list(seen)


def row(size: str, case: Case, lever: Lever, device: torch.device, floor: float, peak: float | None) -> dict[str, Any]:
    """One row: milliseconds of the parts of a step, and what they come to.

    Args:
        floor: 10^12 operations a second that a matrix product reaches here.
        peak: the same as published; None where nobody has said.
    """
    said = {key: value for key, value in asdict(lever).items() if key != "moments"}
    low = precision(device) == torch.bfloat16
    trainer = TrainerSettings(device=str(device), precision="bfloat16" if low else "float32", **said)
    stage = StageSettings(
        name="gpu", steps=1, mix={}, learning_rate=1e-5, mllm_learning_rate=1e-5, weighting="bell",
        moments=lever.moments,  # type: ignore[arg-type]
    )  # fmt: skip
    model = editor(size, device, precision(device))
    freeze_all_but(model, stage.trainable)
    parallelize(model, trainer, device, Ranks())
    optimizers = Optimizers(model, stage, trainer)
    model.train()
    batch, noise, levels = data(model, case, device)

    def passes() -> None:
        losses(model, batch, noise, levels, stage).loss.backward()  # type: ignore[no-untyped-call]

    def step() -> None:
        passes()
        optimizers.clip(stage.gradient_clip)
        optimizers.step(1.0)

    with torch.compiler.set_stance("force_eager") if lever.compile else nullcontext(), counting(model) as counted:
        losses(model, batch, noise, levels, stage)
    emptied(device)
    warmup, rounds = (WARMUP, ROUNDS) if low else (0, 1)
    for _ in range(warmup):
        step()
    times = milliseconds(step, device, rounds)
    peak_memory = peak_gb(device)
    alone = statistics.median(milliseconds(passes, device, min(rounds, 3)))
    whole = statistics.median(times)
    rate = counted.total / whole / 1e9
    again = recomputed_operations(model, case, counted.forward, lever.recompute)
    return {
        "section": "training", "case": case.name, "lever": lever.name, "ms": round(whole, 1),
        "ms_all": [round(each, 1) for each in times], "forward_backward_ms": round(alone, 1),
        "clip_and_step_ms": round(whole - alone, 1), "tokens_per_second": round(case.tokens(model) / whole * 1e3),
        "tera_operations": figures(counted.total / 1e12), "tflops": figures(rate),
        "mfu": None if peak is None else round(rate / peak, 4), "of_floor": round(rate / floor, 4),
        "floor_ms": round(counted.total / floor / 1e9, 1),
        "floor_with_recomputation_ms": round((counted.total + again) / floor / 1e9, 1), "peak_gb": peak_memory,
    }  # fmt: skip
