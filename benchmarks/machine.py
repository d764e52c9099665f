"""What a recorded figure was measured on: cores, threads, instruction set and versions; no names, no paths."""

from __future__ import annotations

import os
import platform

import torch


def machine() -> dict[str, object]:
    """The machine and the software of this process, as far as they explain a speed."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
