"""The configuration of the run that a work folder holds, for commands that look at a run afterwards."""

from __future__ import annotations

from pathlib import Path

from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError
from kiwi.workspace import Workspace


def stored_configuration(workdir: Path) -> RunConfiguration:
    """Reads configuration.json of `workdir`. Raises UsageError where there is no run."""
    path = Workspace(workdir.absolute()).configuration
    if not path.exists():
        raise UsageError(f"no run in {workdir}", "name a run's work folder with --workdir, or make one with `kiwi run`")
    configuration = RunConfiguration.parse(path.read_text())
    # A work folder may have been moved since.
    return configuration.model_copy(update={"workspace": str(workdir.absolute())})
