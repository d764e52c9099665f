"""Kills builds of one small dataset with SIGKILL at random moments and lets them go on: `python killed_builds.py DIR`.

A program of its own, so that every build is a fork of a process that has imported everything and started no thread:
a kill costs a fraction of a second, and fifty of them fit into a test. Prints a JSON object: how many kills there were,
in which stage each fell (by what lay on disk), and the hash of every finished dataset.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from kiwi.configuration import CurationSettings, RunConfiguration, SourceSettings
from kiwi.curation.build import build_dataset
from kiwi.curation.finished import dataset_folder


def configured(workspace: Path) -> RunConfiguration:
    curation = CurationSettings(shards=2, chunk_rows=2, unique_crops=True, min_training_pairs=1)
    source = SourceSettings(clips=14, images=2, frames=5)
    return RunConfiguration(
        preset="tiny", workspace=str(workspace), tracking_uri="", stages=(), source=source, curation=curation
    )


def contents(folder: Path) -> str:
    """One hash over every file of a dataset."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def started(configuration: RunConfiguration) -> int:
    """A child that builds, and exits with 0 when it has built."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            build_dataset(configuration)
            status = 0
        finally:
            os._exit(status)
    return child


def reached(configuration: RunConfiguration) -> str:
    """The last stage that has left a file."""
    folder = Path(configuration.workspace) / "curation"
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not files:
        return "nothing"
    newest = max(files, key=lambda path: path.stat().st_mtime_ns).relative_to(folder).parts
    return newest[1].partition("-")[0] if newest[0] == "stages" else newest[0] if newest[0] == "listings" else newest[1]


def main(folder: Path, kills: int, seed: int) -> None:
    random.seed(seed)
    whole = configured(folder / "whole")
    began = time.monotonic()
    assert os.waitpid(started(whole), 0)[1] == 0
    longest = time.monotonic() - began
    done, stages, datasets = 0, Counter[str](), []
    while done < kills:
        configuration = configured(folder / f"build-{len(datasets)}")
        while True:
            child = started(configuration)
            time.sleep(random.uniform(0.0, longest) if done < kills else 0.0)
            ended, status = os.waitpid(child, os.WNOHANG if done < kills else 0)
            if ended == child:
                assert status == 0, f"a resumed build failed with status {status}"
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += 1
            stages[reached(configuration)] += 1
        datasets.append(contents(dataset_folder(configuration)))
    print(json.dumps({"kills": done, "fell_in": stages, "whole": contents(dataset_folder(whole)), "built": datasets}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
