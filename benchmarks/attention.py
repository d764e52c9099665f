"""MatmulAttention against diffusers' own processor, forward and backward on the tiny editor's shapes, in one run.

    taskset -c 0,1 python benchmarks/attention.py [--rounds N] [--threads N] [--batch N] [--out FILE]

Both processors work in turns on the same attention modules and inputs, so that a busy machine slows both. Measured
are a block's self-attention, its cross-attention, and a whole pass of the transformer, for a batch of each kind of
sample. Recorded: the median times, their ratios, and the largest relative difference of the outputs and gradients.

Recorded with `--threads 1`, the default: other work shared the cores then, and two threads wait for one another there
(tens of times slower, which says nothing of either). Measure two threads on two cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from machine import machine
from torch import Tensor

from kiwi.configuration import ModelSettings
from kiwi.model.attention import MatmulAttention
from kiwi.model.conditioning import pack
from kiwi.training.start import initial_model
from kiwi.workspace import write_json

LATENT_FRAMES = {"image": (1, 0), "video": (3, 0), "reference": (3, 1)}  # of the video, of the reference
CONTEXT = {"image": 16, "video": 16, "reference": 20}
SIDE = 8
PROCESSORS = {"kiwi": MatmulAttention, "stock": WanAttnProcessor}
WARMUP = 3


def cases(transformer: Any, kind: str, batch: int) -> dict[str, Callable[[], list[Tensor]]]:
    """By what is measured: a call that runs it forward and backward, and returns its output and gradients."""
    generator = torch.Generator().manual_seed(0)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    frames, references = LATENT_FRAMES[kind]

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    source, noisy = (random(batch, transformer.config.in_channels, frames, SIDE, SIDE) for _ in range(2))
    reference = random(batch, transformer.config.in_channels, references, SIDE, SIDE) if references else None
    sigma = torch.linspace(0.1, 0.9, batch)
    packed = pack(noisy, sigma, source, reference)
    rotary = transformer.rope(packed)
    tokens = random(batch, (frames + references) * SIDE * SIDE, width).requires_grad_()
    context = random(batch, CONTEXT[kind], width).requires_grad_()
    block = transformer.blocks[0]

    def measured(module: Any, call: Callable[[], Tensor], *inputs: Tensor) -> list[Tensor]:
        for parameter in (*module.parameters(), *inputs):
            parameter.grad = None
        output = call()
        output.square().mean().backward()
        return [output.detach(), *(p.grad for p in (*module.parameters(), *inputs) if p.grad is not None)]

    return {
        "self_attention": lambda: measured(block.attn1, lambda: block.attn1(tokens, None, None, rotary), tokens),
        "cross_attention": lambda: measured(
            block.attn2, lambda: block.attn2(tokens, context, None, None), tokens, context
        ),
        "transformer": lambda: measured(
            transformer, lambda: transformer(packed, sigma * 1000, context, return_dict=False)[0], context
        ),
    }


def compare(transformer: Any, run: Callable[[], list[Tensor]], rounds: int) -> dict[str, object]:
    """Runs one case `rounds` times with each processor, in turns."""
    times: dict[str, list[float]] = {name: [] for name in PROCESSORS}
    results: dict[str, list[Tensor]] = {}
    for turn in range(WARMUP + rounds):
        for name in list(PROCESSORS) if turn % 2 else list(reversed(PROCESSORS)):
            transformer.set_attn_processor(PROCESSORS[name]())
            started = time.perf_counter()
            results[name] = run()
            if turn >= WARMUP:
                times[name].append(time.perf_counter() - started)
    milliseconds = {name: round(1e3 * statistics.median(each), 3) for name, each in times.items()}
    apart = [
        float((one - other).norm() / other.norm())
        for one, other in zip(results["kiwi"], results["stock"], strict=True)
        if float(other.norm()) > 1e-6
    ]
    return {
        "median_ms": milliseconds,
        "stock_over_kiwi": round(milliseconds["stock"] / milliseconds["kiwi"], 2),
        "largest_relative_difference": float(f"{max(apart):.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attention.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformer = initial_model(ModelSettings()).transformer
    kinds: dict[str, dict[str, Any]] = {}
    print(f"{'kind':<10} {'case':<16} {'stock ms':>9} {'kiwi ms':>9} {'ratio':>6}")
    for kind in LATENT_FRAMES:
        kinds[kind] = {}
        for case, run in cases(transformer, kind, arguments.batch).items():
            found = kinds[kind][case] = compare(transformer, run, arguments.rounds)
            stock, ours = found["median_ms"]["stock"], found["median_ms"]["kiwi"]
            print(f"{kind:<10} {case:<16} {stock:>9.2f} {ours:>9.2f} {found['stock_over_kiwi']:>6.2f}")
    said = {"batch": arguments.batch, "rounds": arguments.rounds, "kinds": kinds}
    write_json(arguments.out, {"machine": machine(), **said})
    print(f"written to {arguments.out.name}")


if __name__ == "__main__":
    main()
