"""What tests of all layers share."""

from __future__ import annotations

import atexit
import fcntl
import gc
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

# A test run starts hundreds of processes. Each would compile our modules anew, and each worker rewrite every test
# file's assertions, where no bytecode is kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import hypothesis  # noqa: E402
import pytest  # noqa: E402

TESTS = Path(__file__).parent
# Files that take longest, the longest first: a worker that came to one of them last would work on alone.
LONGEST = (
    "e2e/test_editing_files.py",
    "e2e/test_run_orchestration.py",
    "e2e/test_training_nodes.py",
    "e2e/test_training_ranks.py",
    "e2e/test_training_compiled.py",
    "e2e/test_killed_builds.py",
    "e2e/test_training_killed.py",
    "e2e/test_many_workers.py",
    "pipelines/test_compiled_pipeline.py",
    "pipelines/test_cluster_pipelines.py",
    "unit/benchmarks/test_gpu_benchmark.py",  # early: it collects garbage often, of which there is less then
    "unit/registry/test_registry.py",
    "unit/reports/test_reports_page.py",
    "unit/tracking/test_delivery_to_mlflow.py",
    "unit/training/test_starts.py",
    "unit/benchmark/test_benchmark_run.py",
    "unit/training/test_training_loop.py",
    "unit/training/test_parallelize.py",
    "unit/lineage/test_dataset_versions.py",
    "unit/metrics/test_i3d.py",
    "unit/training/test_trainer_options.py",
    "unit/curation/test_execution.py",
)
MadeOnce = Callable[[str, Callable[[Path], None]], Path]

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code's
hypothesis.settings.load_profile("untimed")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores. Waiting OpenMP threads spin, and two workers with a pool each slow each other tenfold.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(name, "1")


def pytest_configure(config: pytest.Config) -> None:
    """Files are handed to workers in the order below, rather than by their number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection() -> None:
    """All files' imports make millions of objects that stay: there is nothing to collect among them."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """What all imports have made stays: the garbage collector need not look at it again until the process ends."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)


@pytest.fixture(scope="session")
def real_pairs() -> Path:
    """The folder of real clips with their edits; the test is skipped where it is not there."""
    named = os.environ.get("KIWI_REAL_PAIRS")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
    if not (folder / "pairs.csv").exists():
        pytest.skip(f"no real pairs at {folder} (set KIWI_REAL_PAIRS)")
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """made_once(name, make): the folder that `make` filled, once for all of xdist's workers. Read only: copy it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = root / f"once-{name}", root / f"once-{name}.done"
        with (root / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made
