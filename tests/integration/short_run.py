"""All tasks of the end-to-end pipeline by their components' bodies, in one process: `short_run.py CONFIG [STOP]`.

What the pipeline wires up, without KFP's start of a process a task, so that a run that is interrupted again and again
fits into a test. CONFIG is a file with the canonical JSON. It opens and closes the run as the tasks of a cluster do,
and prints each task's name when it begins. With STOP=TASK:SIGNAL it sends itself that signal in the middle of a task:
at its first metrics or progress, or where it begins.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kiwi.cluster.opening import open_run
from kiwi.configuration import RunConfiguration
from kiwi.tracking import records


def body(name: str) -> Any:
    return getattr(importlib.import_module(f"components.{name}.component"), name).python_func


class Story:
    """The tasks in their order; `artifact` stands for KFP's artifacts, which hold a path."""

    def __init__(self, config: str, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.made = 0

    def artifact(self) -> SimpleNamespace:
        self.made += 1
        return SimpleNamespace(path=str(self.folder / str(self.made)))

    def do(self, name: str, **arguments: Any) -> Any:
        print(name, *arguments.get("stage", "").split(), flush=True)
        return body(name)(config=self.config, **arguments)

    def tell(self, configuration: RunConfiguration) -> None:
        nothing = SimpleNamespace(path="")
        for shard in self.do("plan_shards"):
            self.do("ingest", shard=shard, books=self.artifact())
            for stage in ("score", "ground", "segment"):
                self.do(stage, shard=shard, previous=nothing, books=self.artifact())
        self.do("unique_crops", shards=[], books=self.artifact())
        for shard in range(configuration.curation.shards):
            for stage in ("synthesize", "verify"):
                self.do(stage, shard=shard, previous=nothing, books=self.artifact())
        self.do("deduplicate", shards=[], books=self.artifact())
        self.do("publish_dataset", books=nothing, dataset=self.artifact())
        self.do("cache_latents", dataset=nothing, latents=self.artifact())
        for stage in configuration.stages:
            self.do("train_stage", stage=stage.name, latents=nothing, model=self.artifact())
        self.do("run_benchmark", model=nothing, edits=self.artifact())
        self.do("judge", edits=nothing, scores=self.artifact())
        self.do("register_model", model=nothing, scores=nothing, version=self.artifact())
        self.do("report", version=nothing, scores=nothing)
        self.do("promote" if self.do("decide", version=nothing, scores=nothing) == "promote" else "hold")


def stop_at(task: str, name: str) -> None:
    """The signal in the middle of that task."""
    kind = getattr(signal, name)
    said = records.TaskRun._append

    def append(self: records.TaskRun, event: str, **more: Any) -> None:
        said(self, event, **more)
        if self.name == task and event in ("metrics", "progress") and more.get("done", 1) > 0:
            os.kill(os.getpid(), kind)

    records.TaskRun._append = append  # type: ignore[method-assign]


def main(path: Path, stop: str = "") -> None:
    configuration = RunConfiguration.parse(path.read_text())
    if stop:
        stop_at(*stop.split(":"))
    open_run(configuration)
    state = "FAILED"
    with tempfile.TemporaryDirectory() as folder:
        try:
            Story(configuration.canonical(), Path(folder)).tell(configuration)
            state = "SUCCEEDED"
        finally:
            print("finish", flush=True)
            page = SimpleNamespace(path=str(Path(folder) / "page.html"))
            body("finish")(config=configuration.canonical(), status=SimpleNamespace(state=state), page=page)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
