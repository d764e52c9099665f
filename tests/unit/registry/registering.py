"""What the tests of the registry share: a workspace as training and judging leave it, and versions without files."""

from __future__ import annotations

from typing import Any

from kiwi.configuration import RunConfiguration
from kiwi.registry import ModelVersion, register, show
from kiwi.tracking import silent
from kiwi.tracking.server import connect
from kiwi.workspace import write_json

NAME = "kiwi-edit-tiny"


def trained(configuration: RunConfiguration, overall: float = 3.0, key: str = "k1", **changes: Any) -> None:
    """What training and judging leave in a workspace."""
    root = configuration.workdir
    model = root / "checkpoints" / key / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "weights.safetensors").write_bytes(key.encode() * 100)
    (model / "model_index.json").write_text("{}")
    (model / "README.md").write_text("# A model\n")
    write_json(root / "training" / "stage1.json", {"name": "stage1", "checkpoint": str(model), "key": key})
    scores = {
        "overall": overall, "criteria": {"video_quality": overall}, "coverage": 1.0, "revision": "r1",
        "judge": "measured", "baselines": {"copy_source": {"overall": 1.5}}, "per_kind": {"recolour": {"samples": 40}},
    }  # fmt: skip
    write_json(root / "benchmark" / "scores.json", {**scores, **changes})
    write_json(root / "dataset.json", {"version": "refvie/v1", "revision": "c0ffee", "digest": "d1"})


def registered(configuration: RunConfiguration, **changes: Any) -> ModelVersion:
    """A version with files, which the gate let through."""
    trained(configuration, **changes)
    number = register(configuration, silent())["version"]
    connect(configuration.tracking_uri).set_model_version_tag(NAME, number, "kiwi.decision", "promote")
    return show(configuration.tracking_uri, NAME, number)


def bare_versions(configuration: RunConfiguration, count: int, decision: str | None = "promote") -> None:
    """Versions 1 to `count` without files, with the gate's decision on them."""
    client = connect(configuration.tracking_uri)
    client.create_registered_model(NAME)
    for _ in range(count):
        tags = {"kiwi.decision": decision} if decision else {}
        client.create_model_version(NAME, source=str(configuration.workdir), tags=tags)
