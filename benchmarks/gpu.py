"""What a GPU makes of training and editing at a released size: correctness first, then time and memory by lever.

    python benchmarks/gpu.py [--only SECTION …] [--budget-seconds N] [--size wan2.2-5b] [--out FILE]
    python benchmarks/gpu.py --plan          the memory that training takes, computed without a GPU
    python benchmarks/gpu.py --device cpu --size middle --steps 2 --out FILE      the same code, small

Weights are random and made on the device, data are random in the shapes of real ones: it needs no download. Sections,
in this order, each of which fits a run of nine minutes on an H100 (docs/gpu.md says how):

    correctness   each lever on two layers of the real width against float32; what is wrong ends the run
    floor         matrix products and copies: what this card does at best
    training      a step with the language model and its LoRA, on cached-like latents and vision tokens
    denoising     the steps of one edit, all of them
    autoencoder   encoding and decoding by precision, tiling and memory layout
    edit          a whole edit through the pipeline

Each row is written when it is measured, so that what a run did before it ended is kept; rows of an earlier run with
the same machine and size stay until they are measured again. A row that does not fit the memory says so.

Fails where a lever computes something wrong or breaks; without a GPU it says so and does nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import machine

from kiwi.errors import KiwiError
from kiwi.workspace import write_json

SECTIONS = ("correctness", "floor", "training", "denoising", "autoencoder", "edit")
ATTENTIONS = ("_native_cudnn", "native", "_native_flash", "flash", "_flash_3")  # the likeliest best first
KEY = ("section", "case", "lever")


class Results:
    """The rows of a run and of those before it, on disk after each."""

    def __init__(self, path: Path, said: dict[str, Any]) -> None:
        self._path, self._said = path, said
        before = json.loads(path.read_text()) if path.is_file() else {}
        same = all(before.get(key) == value for key, value in said.items())
        self.rows: list[dict[str, Any]] = before["rows"] if same and before else []
        self.failed = False

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a row in place of the one of the same section, case and lever; prints it."""
        same = [tuple(each.get(key) for key in KEY) == tuple(row.get(key) for key in KEY) for each in self.rows]
        self.rows = [each for each, known in zip(self.rows, same, strict=True) if not known] + [row]
        self.failed |= row.get("right") is False or "failed" in row
        write_json(self._path, {**self._said, "rows": self.rows})
        print("  ".join(f"{key}={value}" for key, value in row.items() if value is not None), flush=True)

    def of(self, section: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["section"] == section]


class Budget:
    """Seconds for the whole run; nothing new is begun where what is left is less than the last thing took."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._longest = 0.0

    def enough(self) -> bool:
        return self._end is None or time.monotonic() + 1.2 * self._longest < self._end

    def spent(self, seconds: float) -> None:
        self._longest = max(self._longest, seconds)


def measured(
    results: Results, budget: Budget, named: dict[str, Any], run: Callable[[], dict[str, Any] | list[dict[str, Any]]]
) -> None:
    """Adds what `run` measures, or why it could not; a failure of one lever does not end the others."""
    if not budget.enough():
        print(f"left out for want of time: {named}", flush=True)
        return
    began = time.monotonic()
    try:
        found = run()
        for row in found if isinstance(found, list) else [found]:
            results.add(row)
    except torch.OutOfMemoryError as error:
        results.add({**named, "out_of_memory": str(error).splitlines()[0][:200]})
    except KiwiError as error:
        results.add({**named, "unavailable": error.message})
    except (RuntimeError, ValueError, NotImplementedError) as error:
        results.add({**named, "failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"})
    cleared(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    budget.spent(time.monotonic() - began)


def cleared(device: torch.device) -> None:
    """Forgets what was compiled, and gives memory back, before the next lever."""
    from gpu_cases import emptied

    if device.type == "cuda":
        torch.compiler.reset()
    emptied(device)


def floor(device: torch.device, small: bool) -> list[dict[str, Any]]:
    """10^12 operations a second of products, and 10^12 bytes a second of copies, read and written."""
    from gpu_cases import precision

    dtype = precision(device)
    shapes = ((512,) * 3,) if small else ((8192,) * 3, (18480, 3072, 14336), (18480, 3072, 3072))
    rows: list[dict[str, Any]] = []
    for rows_, inner, columns in shapes:
        left, right = (torch.randn(shape, device=device, dtype=dtype) for shape in ((rows_, inner), (inner, columns)))
        rate = 2.0 * rows_ * inner * columns / _least(partial(torch.mm, left, right), device) / 1e9
        named = {"case": f"{rows_}x{inner}x{columns}", "lever": f"{str(dtype).removeprefix('torch.')} product"}
        rows.append({"section": "floor", **named, "tflops": float(f"{rate:.4g}")})
    size = 1 << (22 if small else 31)
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    rate = 2 * size / _least(partial(target.copy_, source), device) / 1e9
    rows.append({"section": "floor", "case": f"{size} bytes", "lever": "copy", "terabytes_per_second": round(rate, 3)})
    return rows


def _least(call: Callable[[], Any], device: torch.device) -> float:
    """The least milliseconds of one call, of several rounds of ten: one call alone would be mostly waiting."""
    from gpu_cases import milliseconds

    for _ in range(3):
        call()
    return min(milliseconds(lambda: [call() for _ in range(10)], device, 5)) / 10


def run_correctness(size: str, device: torch.device, results: Results) -> None:
    """Raises SystemExit where a lever is wrong: what computes something else need not be timed."""
    from gpu_cases import CASES
    from gpu_correctness import checks, levers, optimizer_check

    on_gpu = device.type == "cuda"
    small = [replace(case, height=case.height // 2 // 32 * 32, width=case.width // 2 // 32 * 32, frames=17)
             if on_gpu else case for case in CASES[size][:2]]  # fmt: skip
    names = ATTENTIONS if on_gpu else ("native", "_native_math")
    for case in small:
        for row in checks(size, case, device, levers(lambda: names, on_gpu)):
            results.add({"section": "correctness", "case": case.name, **row})
            cleared(device)
    for compiled in (False, True) if on_gpu else (False,):
        results.add({"section": "correctness", "case": "512x513", **optimizer_check(device, compiled)})
    wrong = [f"{row['case']}, {row['lever']}" for row in results.of("correctness") if row["right"] is False]
    if wrong:
        raise SystemExit(f"wrong, so nothing is timed: {'; '.join(wrong)}")


def usable(device: torch.device, results: Results) -> tuple[str, ...]:
    """The attentions that are there, as the correctness section found, or all that might be."""
    if device.type != "cuda":
        return ("native", "_native_math")
    missing = {row["lever"] for row in results.of("correctness") if row["right"] is None}
    return tuple(name for name in ATTENTIONS if f"attention {name}" not in missing)


def run_section(section: str, arguments: argparse.Namespace, device: torch.device, results: Results,
                budget: Budget) -> None:  # fmt: skip
    size, on_gpu = arguments.size, device.type == "cuda"
    if section == "correctness":
        run_correctness(size, device, results)
        return
    if section == "floor":
        measured(results, budget, {"section": section, "case": "all", "lever": ""}, lambda: floor(device, not on_gpu))
        return
    best = max((row["tflops"] for row in results.of("floor") if "tflops" in row), default=None)
    if best is None:
        raise SystemExit("no floor was measured on this machine yet: --only floor first")
    names = usable(device, results)
    for named, run in _rows(section, size, device, names, best, arguments.steps):
        if arguments.lever and not all(word in f"{named['case']} {named['lever']}" for word in arguments.lever):
            continue
        measured(results, budget, {"section": section, **named}, run)


def _rows(section: str, size: str, device: torch.device, names: tuple[str, ...], best: float,
          steps: int) -> list[tuple[dict[str, Any], Callable[[], Any]]]:  # fmt: skip
    """What a section measures: what it is called, and a call that measures it."""
    import gpu_editing
    import gpu_training
    from gpu_cases import CASES

    from kiwi.training.operations import peak_tflops

    on_gpu = device.type == "cuda"
    if section == "training":
        peak = peak_tflops(None, device)
        return [
            (
                _named(case, lever),
                partial(gpu_training.row, size, case, lever, device, best, peak),
            )
            for case, lever in gpu_training.wanted(size, names, on_gpu)
        ]
    if section == "denoising":
        return [
            (_named(case, lever), partial(gpu_editing.denoising_row, size, case, lever, device, steps, best))
            for case, lever in gpu_editing.wanted(size, names, on_gpu)
        ]  # fmt: skip
    if section == "autoencoder":
        cases = [case for case in CASES[size] if not case.reference]
        return [
            (_named(case, path), partial(gpu_editing.autoencoder_row, size, case, path, device, best))
            for case in cases for path in gpu_editing.PATHS
        ]  # fmt: skip
    lever = gpu_editing.Denoising(names[0], compile=on_gpu)
    return [
        (_named(case, lever), partial(gpu_editing.whole_row, size, case, lever, device, steps)) for case in CASES[size]
    ]


def _named(case: Any, lever: Any) -> dict[str, Any]:
    return {"case": case.name, "lever": lever.name}


def described(device: torch.device, size: str) -> dict[str, Any]:
    """What the rows were measured on."""
    said: dict[str, Any] = {"size": size, "machine": machine(), "device": "cpu"}
    if device.type == "cuda":
        said["device"] = torch.cuda.get_device_name(device)
        said["memory_gb"] = round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)
        said["cuda"] = torch.version.cuda
        said["cudnn"] = torch.backends.cudnn.version()
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", action="store_true", help="print the memory that training takes, and end")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", default="wan2.2-5b", choices=("wan2.2-5b", "wan2.1-14b", "middle"))
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--lever", nargs="+", help="words that a row's case and lever must have, to measure a few")
    parser.add_argument("--steps", type=int, default=50, help="of an edit")
    parser.add_argument("--budget-seconds", type=float, help="begin nothing that would not be done by then")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    arguments = parser.parse_args()
    if arguments.plan:
        from gpu_plan import printed

        printed(arguments.size)
        return
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU that torch can use: nothing was measured (--device cpu --size middle runs the same code, small)")
        return
    device = torch.device(arguments.device)
    results, budget = Results(arguments.out, described(device, arguments.size)), Budget(arguments.budget_seconds)
    for section in SECTIONS:
        if section in arguments.only:
            print(f"— {section}", flush=True)
            run_section(section, arguments, device, results, budget)
    print(f"written to {arguments.out.name}")
    if results.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
