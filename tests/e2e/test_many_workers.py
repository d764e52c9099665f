"""Several workers: however the work is divided, and whoever does it twice, the dataset is the same to the byte."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kiwi.configuration import CurationSettings, RunConfiguration, SourceSettings
from kiwi.curation.build import build_dataset
from kiwi.curation.finished import dataset_folder
from kiwi.curation.plan import plan_shards
from kiwi.tracking import silent


def configured(workspace: Path, **curation: Any) -> RunConfiguration:
    return RunConfiguration(
        preset="tiny",
        workspace=str(workspace),
        tracking_uri="",
        stages=(),
        source=SourceSettings(clips=14, images=2, frames=5),
        curation=CurationSettings(**{"shards": 2, "chunk_rows": 4, "min_training_pairs": 1, **curation}),
    )


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def built(configuration: RunConfiguration) -> dict[str, str]:
    build_dataset(configuration)
    return contents(dataset_folder(configuration))


def test_three_workers_and_other_portions_give_the_same_dataset(tmp_path: Path) -> None:
    expected = built(configured(tmp_path / "one"))
    for shards, chunk_rows, workers in ((1, 100, 1), (3, 2, 3), (8, 1, 2)):
        configuration = configured(tmp_path / f"{shards}", shards=shards, chunk_rows=chunk_rows)
        build_dataset(configuration, workers=workers)
        assert contents(dataset_folder(configuration)) == expected


def test_two_workers_at_one_shard_leave_what_one_leaves(tmp_path: Path) -> None:
    expected = built(configured(tmp_path / "alone"))
    configuration = configured(tmp_path / "both")
    plan_shards(configuration, silent())
    program = (
        "import sys; from kiwi.curation.build import FIRST, SECOND, run_stages\n"
        "from kiwi.configuration import RunConfiguration\n"
        "configuration = RunConfiguration.parse(sys.argv[1])\n"
        "for shard in (0, 1): run_stages(configuration, FIRST + SECOND, shard)\n"
    )
    command = [sys.executable, "-c", program, configuration.canonical()]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for worker in both:
        assert worker.wait() == 0, worker.communicate()[1]
    assert built(configuration) == expected


def test_ctrl_c_stops_workers_that_are_at_work(tmp_path: Path) -> None:
    """A signal to the parent alone, once a worker has committed a part: nothing goes on afterwards."""
    program = (
        "import signal, sys; from kiwi.configuration import RunConfiguration\n"
        "from kiwi.curation.build import build_dataset\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have it ignored
        "if __name__ == '__main__':\n"
        "    build_dataset(RunConfiguration.parse(sys.argv[1]), workers=2)\n"
    )
    configuration = configured(tmp_path).model_copy(update={"source": SourceSettings(clips=400, images=0, frames=9)})
    (tmp_path / "build.py").write_text(program)
    command = [sys.executable, str(tmp_path / "build.py"), configuration.canonical()]
    builder = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    stages = tmp_path / "curation" / "stages"
    while builder.poll() is None and not list(stages.glob("*/*/part-*")):
        time.sleep(0.05)
    builder.send_signal(signal.SIGINT)
    _, said = builder.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    parts = len(list(stages.glob("*/*/part-*")))
    time.sleep(1.0)
    assert len(list(stages.glob("*/*/part-*"))) == parts < 200
