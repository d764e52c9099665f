"""Our Muon against torch.optim.Muon, one step on the tiny editor's block matrices, in one run.

    taskset -c 0,1 python benchmarks/optimizers.py [--rounds N] [--threads N] [--out FILE]

Both optimisers step equal copies of the same matrices on the same gradients, in turns, so that a busy machine slows
both. Recorded: the median time of a step of each, their ratio, and how far the two steps are apart (torch's works in
bfloat16, ours in float32).

Recorded with `--threads 1`, the default: other work shared the cores then, and two threads wait for one another there
(tens of times slower, which says nothing of either). Measure two threads on two cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from machine import machine
from torch import Tensor, nn

from kiwi.configuration import ModelSettings
from kiwi.training.muon import Muon
from kiwi.training.start import initial_model
from kiwi.workspace import write_json

SETTINGS = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.01}
WARMUP = 5


def block_matrices() -> list[Tensor]:
    """The matrices that a stage gives to Muon."""
    named = initial_model(ModelSettings()).transformer.blocks.named_parameters()
    return [p.detach().clone() for name, p in named if name.endswith(".weight") and p.dim() == 2]


def seconds_of_a_step(optimizer: torch.optim.Optimizer) -> float:
    started = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - started


def compare(rounds: int) -> dict[str, object]:
    """Steps both `rounds` times in turns."""
    matrices = block_matrices()
    ours, theirs = ([nn.Parameter(matrix.clone()) for matrix in matrices] for _ in range(2))
    optimizers = {"kiwi": Muon(ours, **SETTINGS), "torch": torch.optim.Muon(theirs, **SETTINGS)}
    generator = torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(WARMUP + rounds):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        order = list(optimizers) if turn % 2 else list(reversed(optimizers))
        for name in order:
            seconds = seconds_of_a_step(optimizers[name])
            if turn >= WARMUP:
                times[name].append(seconds)
    moved = [
        torch.cat([(parameter.detach() - start).flatten() for parameter, start in zip(own, matrices, strict=True)])
        for own in (ours, theirs)
    ]
    milliseconds = {name: round(1e3 * statistics.median(each), 3) for name, each in times.items()}
    return {
        "matrices": len(matrices),
        "shapes": sorted({"x".join(map(str, matrix.shape)) for matrix in matrices}),
        "rounds": rounds,
        "median_ms": milliseconds,
        "torch_over_kiwi": round(milliseconds["torch"] / milliseconds["kiwi"], 2),
        "cosine_of_the_two_ways": round(float(torch.cosine_similarity(*moved, dim=0)), 6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "optimizers.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = compare(arguments.rounds)
    write_json(arguments.out, {"machine": machine(), **result})
    for name, milliseconds in result["median_ms"].items():
        print(f"{name:<6} {milliseconds:>8.3f} ms a step of {result['matrices']} matrices")
    print(f"torch / kiwi: {result['torch_over_kiwi']:.2f}; written to {arguments.out.name}")


if __name__ == "__main__":
    main()
