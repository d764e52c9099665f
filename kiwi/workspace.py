"""Where everything of a run lies: one place that names every file, so that no other module spells a path.

Results of expensive work lie under a key that is the hash of what they were made from. A task that finds its own
result there returns it, so a retry, a second run and a resumed run all do only what is missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi import storage
from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError


@dataclass(frozen=True)
class Workspace:
    """The folder of one run (`runs/demo`)."""

    root: Path

    @classmethod
    def of(cls, configuration: RunConfiguration) -> Workspace:
        return cls(configuration.workdir)

    @property
    def run_record(self) -> Path:
        return self.root / "run.json"

    @property
    def configuration(self) -> Path:
        return self.root / "configuration.json"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        return self.root / "report" / "index.html"

    @property
    def records(self) -> Path:
        """Task records (kiwi/tracking.py): one JSON-lines file a task."""
        return self.root / "records"

    @property
    def locks(self) -> Path:
        """Held by tasks at work, one file a task."""
        return self.root / ".locks"

    @property
    def repository(self) -> Path:
        """The git and DVC repository in which dataset versions are published."""
        return self.root / "data"

    @property
    def dvc_remote(self) -> Path:
        return self.root / "dvc-remote"

    def curation(self, key: str) -> Path:
        return self.root / "curation" / key

    def latents(self, key: str) -> Path:
        return self.root / "latents" / key

    def checkpoint(self, key: str) -> Path:
        return self.root / "checkpoints" / key

    def benchmark(self, key: str) -> Path:
        return self.root / "benchmark" / key

    @property
    def decision(self) -> Path:
        return self.root / "decision.json"


def write_json(path: str | Path, value: Any) -> None:
    """Writes to a path or an address, atomically: a reader sees the old file or the new one, whole."""
    storage.write_bytes(path, json.dumps(value, indent=1, ensure_ascii=False).encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def published(configuration: RunConfiguration) -> dict[str, Any]:
    """What `publish_dataset` said of the run's dataset version: path, version, revision, digest.

    Raises KiwiError where none was published.
    """
    path = Workspace.of(configuration).root / "dataset.json"
    if not path.is_file():
        raise KiwiError(
            f"no dataset was published in {path.parent}", "run `kiwi run`, or `kiwi data build --publish`, first"
        )
    said: dict[str, Any] = read_json(path)
    return said
