"""A pipeline compiled in a process of its own, as the API takes it, and started on a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kiwi.cluster.api import Cluster
from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError, UsageError

# Kubernetes' own limit on one object is 1.5 MiB; the server wraps the specification into a workflow.
WORKFLOW_LIMIT = 1024 * 1024


@dataclass(frozen=True)
class Place:
    """What of a profile concerns a run as a whole."""

    namespace: str
    service_account: str | None
    pipeline_root: str | None


def compiled(pipeline: str, profile: str, image: str | None, configuration: RunConfiguration) -> dict[str, Any]:
    """The specification of a pipeline. Compiling reads the environment once, so a process
    does it for one profile.

    Raises UsageError for an unknown pipeline, a faulty profile, an image that can move, or one that is no cluster's.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pipeline.yaml"
        stages = ",".join(stage.name for stage in configuration.stages)
        command = [sys.executable, "-m", "kiwi", "pipeline", "compile", pipeline, "--profile", profile]
        command += ["--stages", stages, "--out", str(out)] + (["--image", image] if image else [])
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ.copy())
        if done.returncode:
            said = done.stderr.strip().removeprefix("kiwi: ")
            kind = UsageError if done.returncode == UsageError.exit_code else KiwiError
            raise kind(f"{pipeline} does not compile for profile {profile!r}: {said}")
        return read_specification(out)


def read_specification(path: Path) -> dict[str, Any]:
    """The one or two documents of a compiled pipeline, as the API takes them. Raises KiwiError if it is too large."""
    size = path.stat().st_size
    if size > WORKFLOW_LIMIT:
        raise KiwiError(f"{path} has {size} bytes, a workflow may have {WORKFLOW_LIMIT}", "split the pipeline")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where it was built in: ten times as quick
    documents = [document for document in yaml.load_all(path.read_text(), loader) if document]
    if len(documents) == 1:
        only: dict[str, Any] = documents[0]
        return only
    return {"pipeline_spec": documents[0], "platform_spec": documents[1]}


def submit(cluster: Cluster, name: str, spec: dict[str, Any], place: Place, configuration: RunConfiguration) -> str:
    """Starts a run; returns its id."""
    experiment = cluster.experiment(configuration.experiment)
    canonical = configuration.canonical()
    return cluster.submit(name, spec, canonical, experiment, place.service_account, place.pipeline_root)
