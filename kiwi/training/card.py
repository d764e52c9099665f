"""The README of a model folder: what the model is, what it started from, what it was trained on, under what terms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kiwi.configuration import ModelSettings, RunConfiguration
from kiwi.dataset.card import licences_in_use
from kiwi.dataset.licences import added_up, forbidden
from kiwi.workspace import published, read_json

PAPER = "arXiv 2603.02175"
RANDOM = ("tiny", "middle")  # sizes that no released weights exist for
CHOICES = {
    "source_embedding": "how source latents enter",
    "source_scaling": "what the added source is multiplied with",
    "reference_position": "where reference frames stand in time",
    "reference_features": "whether the context holds the reference's own features",
}


def origin_of(model: ModelSettings) -> str:
    """What the first stage starts from."""
    return "random weights" if model.preset in RANDOM else "foundation weights"


def model_card(configuration: RunConfiguration, result: dict[str, Any]) -> str:
    """The card of what a stage left: `result` is the stage's."""
    dataset, model = published(configuration), configuration.model
    stages = json.dumps([stage.name for stage in configuration.stages])
    facts = [
        f"dataset: `{dataset['version']}` at `{dataset['revision']}`",
        f"configuration: `{configuration.identity()}`, seed {configuration.seed}, stages {stages}",
        f"this stage: {result['steps']} steps from {result['start']}, "
        f"loss {result['loss_first']:.4f} to {result['loss_last']:.4f}",
        *_choices(model),
    ]
    parts = [
        f"# {configuration.model_name}, after {result['name']}",
        f"An editor in Kiwi-Edit's architecture ({PAPER}), preset `{configuration.preset}`, model `{model.preset}`. "
        + _start(model),
        "\n".join(f"- {fact}" for fact in facts),
        _licences(Path(dataset["path"])),
    ]
    return "\n\n".join(parts) + "\n"


def _start(model: ModelSettings) -> str:
    if model.preset not in RANDOM:
        return (
            f"Training started from foundation weights: `{_name(model.backbone)}` (transformer and autoencoder) and "
            f"`{_name(model.language_model)}` (language model); what Kiwi-Edit adds to them started anew. It is no "
            "released Kiwi-Edit model, and the licences of these weights hold for it."
        )
    frozen = "a fixed transform" if model.preset == "tiny" else "an autoencoder with random weights"
    return (
        "Its weights were random when training started, the frozen parts of its language model still are, and its "
        f"latent codec is {frozen}: it is a small model that shows the method at work, and no released Kiwi-Edit model."
    )


def _name(folder: str | None) -> str:
    """The last part of a folder's path, which says what it holds; where it lies is nobody's business."""
    return Path(folder).name if folder else "not named"


def _choices(model: ModelSettings) -> list[str]:
    """What differs from the paper's own choice of conditioning."""
    paper = {name: ModelSettings.model_fields[name].default for name in CHOICES}
    return [
        f"not the paper's choice: {what} (`{name}`): {json.dumps(getattr(model, name))} for {json.dumps(paper[name])}"
        for name, what in CHOICES.items()
        if getattr(model, name) != paper[name]
    ]


def _licences(dataset: Path) -> str:
    """What the licences of the data ask for, as far as the dataset's manifest tells."""
    manifest = dataset / "manifest.json"
    if not manifest.is_file():
        return "## Licences of the data\n\nNot known: the dataset's manifest was not at hand when this was written."
    used = licences_in_use(read_json(manifest))
    rows = ", ".join(f"{name or 'none stated'} ({count:,} rows)" for name, count in sorted(used.items()))
    said = "\n".join(f"- {sentence}" for sentence in (*added_up(used), *(f"Not: {what}" for what in forbidden(used))))
    return f"## Licences of the data\n\n{rows or 'No rows are in use.'}\n\n{said}".rstrip()
