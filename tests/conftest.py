"""What tests of all layers share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores. Waiting OpenMP threads spin, and two workers with a pool each slow each other tenfold.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(name, "1")


@pytest.fixture(scope="session")
def real_pairs() -> Path:
    """The folder of real clips with their edits; the test is skipped where it is not there."""
    named = os.environ.get("KIWI_REAL_PAIRS")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
    if not (folder / "pairs.csv").exists():
        pytest.skip(f"no real pairs at {folder} (set KIWI_REAL_PAIRS)")
    return folder
