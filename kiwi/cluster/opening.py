"""A run's work folder on a cluster: opened by the first task, and what later pipelines find in it."""

from __future__ import annotations

import os
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError
from kiwi.runs import CLUSTER, AtWork, claim
from kiwi.workspace import Workspace, read_json

OPENING_SECONDS = 10.0


def open_run(configuration: RunConfiguration) -> None:
    """Writes run.json and configuration.json for the attempt that KIWI_RUN_ID names; a task tried again writes nothing.

    The same configuration may be submitted twice: the other run holds the folder for a moment only, while it opens it.

    Raises UsageError where the folder holds something else or cannot be written.
    """
    workspace = Workspace.of(configuration)
    named = os.environ.get("KIWI_RUN_ID")
    if workspace.run_record.exists():
        known = [attempt["id"] for attempt in read_json(workspace.run_record)["attempts"]]
        if named in known:
            return
    waiting = retry_if_exception_type(AtWork)
    for attempt in Retrying(retry=waiting, wait=wait_fixed(0.2), stop=stop_after_delay(OPENING_SECONDS), reraise=True):
        with attempt, claim(configuration, CLUSTER, named):
            pass


def trained_model(configuration: RunConfiguration) -> dict[str, Any]:
    """The last stage's result. Raises KiwiError where that stage is not finished."""
    from kiwi.training import checkpoint_folder
    from kiwi.training.results import finished_stage

    last = configuration.stages[-1].name
    found = finished_stage(configuration, last)
    if found is None:
        folder = checkpoint_folder(configuration, last)
        raise KiwiError(f"no trained model in {folder}", "run the curriculum pipeline on this work folder first")
    return found
