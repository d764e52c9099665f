"""`kiwi run --backend kfp`: the end-to-end pipeline compiled, started on a cluster, and followed to its end."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kiwi.errors import KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi.cluster.api import Cluster
    from kiwi.configuration import RunConfiguration

POLL_SECONDS = 10.0
NEWEST = 100
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")


def run_on_cluster(configuration: RunConfiguration, profile: str, summary: Path | None, as_json: bool) -> None:
    """Starts the run and waits for its end. Ctrl-C stops the waiting, not the run.

    Raises:
        UsageError: no server or image is named, or the profile is no cluster's.
        KiwiError: the run failed or was cancelled; a server that does not answer is a ClusterError.
    """
    from kiwi.cluster.api import Address, Cluster
    from kiwi.cluster.submitting import compiled, submit
    from pipelines.placing import place_of

    if summary is not None:
        raise UsageError("--summary is for runs on this machine", "a cluster's lies in the work folder on its volume")
    address, place = Address.told(), place_of(profile)
    cluster = Cluster(address, place.namespace)
    spec = compiled("end_to_end", profile, os.environ.get("KIWI_IMAGE"), configuration)
    identity = submit(cluster, f"end_to_end-{configuration.workdir.name}", spec, place, configuration)
    print(f"Run {identity} started in {place.namespace}", file=sys.stderr, flush=True)
    try:
        state = follow(cluster, identity)
    except KeyboardInterrupt:
        print(f"Run {identity} goes on; see: kiwi pipeline runs --profile {profile}", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps({"run_id": identity, "namespace": place.namespace, "state": state}))
    if state != "SUCCEEDED":
        raise KiwiError(f"run {identity} ended as {state}", "its tasks and their logs are in the Pipelines console")


def follow(cluster: Cluster, identity: str, pause: Callable[[float], None] = time.sleep) -> str:
    """Waits until a run has ended, telling each change of its state; returns the last one."""
    told = ""
    while True:
        state = _state(cluster.runs(NEWEST), identity)
        if state != told:
            print(f"  {time.strftime('%H:%M:%S')}  {state}", file=sys.stderr, flush=True)
            told = state
        if state in ENDED:
            return state
        pause(POLL_SECONDS)


def _state(runs: Sequence[Any], identity: str) -> str:
    for run in runs:
        if run.run_id == identity:
            return str(run.state or "PENDING")
    raise KiwiError(f"run {identity} is not among the {NEWEST} newest any more", "look for it in the Pipelines console")
