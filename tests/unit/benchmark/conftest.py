"""A small benchmark workspace and honest fakes of an editor, with the pipeline's signature."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kiwi.benchmark.samples import BenchmarkSample, HeldOut, load_held_out
from kiwi.configuration import BenchmarkSettings, ModelSettings, RunConfiguration, SourceSettings, StageSettings


def configured(workspace: Path, **benchmark: object) -> RunConfiguration:
    stages = tuple(
        StageSettings(name=name, steps=1, mix={"video": 1.0}, learning_rate=1e-3, mllm_learning_rate=1e-3)
        for name in ("align", "reference")
    )
    settings = {"samples_per_kind": 4, "stage_samples_per_kind": 2} | benchmark
    return RunConfiguration(
        preset="tiny",
        workspace=str(workspace),
        tracking_uri="unused",
        stages=stages,
        source=SourceSettings(size=32, frames=5),
        model=ModelSettings(size=32, frames=5),
        benchmark=BenchmarkSettings(**settings),
    )


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfiguration:
    """A workspace with two trained stages whose model folders hold a few bytes; its gallery is not enlarged."""
    monkeypatch.setattr("kiwi.benchmark.gallery.VIEW_SIDE", 32)
    made = configured(tmp_path / "work")
    for stage in made.stages:
        folder = made.workdir / "checkpoints" / stage.name / "model"
        folder.mkdir(parents=True)
        (folder / "weights").write_text(stage.name)
        record = made.workdir / "training" / f"{stage.name}.json"
        record.parent.mkdir(exist_ok=True)
        record.write_text(json.dumps({"name": stage.name, "checkpoint": f"checkpoints/{stage.name}/model"}))
    return made


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    """Four samples of each procedural kind at 64x64, nine frames."""
    made = configured(tmp_path_factory.mktemp("unused"))
    return load_held_out(made.model_copy(update={"source": SourceSettings(), "model": ModelSettings()}))


def same(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return first is second or (first is not None and second is not None and np.array_equal(first, second))


class FakeEditor:
    """Answers by `edit(sample)` where it is asked the sample's own question, and obeys controls as a good model would:
    another instruction or reference gives another colour, other latents another background."""

    def __init__(self, held_out: HeldOut, edit: Callable[[BenchmarkSample], np.ndarray]) -> None:
        self.samples = {each.source.tobytes(): each for each in held_out.samples}
        self.edit = edit
        self.calls: list[int] = []

    def __call__(self, videos, instructions, references=None, *, num_inference_steps, seed, latent_references=None):
        self.calls.append(len(videos))
        references = references or [None] * len(videos)
        latent_references = latent_references or references
        return [self.one(*asked) for asked in zip(videos, instructions, references, latent_references, strict=True)]

    def one(self, video, instruction, reference, latents):
        sample = self.samples[video.tobytes()]
        made = self.edit(sample).copy()
        if latents is not reference:
            made[sample.edit_mask] = np.broadcast_to(latents, made.shape)[sample.edit_mask]
        elif instruction != sample.prompt or not same(reference, sample.reference):
            other = next(colour for colour in sample.palette if colour != sample.answer)
            made[sample.edit_mask] = other
        return made


@pytest.fixture
def fake_editor() -> type[FakeEditor]:
    return FakeEditor
