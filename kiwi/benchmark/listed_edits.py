"""Edits of a listed benchmark: made in batches and shards, each kept lossless in a file of its own.

A file is named by what it was made from, so a run that was killed loses the batch in hand, and shards may run at the
same time, in any order. Whoever makes the last edit writes edits.json, with the hash of every file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kiwi.benchmark.edits import RESULT, Editor
from kiwi.benchmark.judges import judge_of
from kiwi.benchmark.listed import Listed, ListedSample, Opened, open_sample
from kiwi.benchmark.rubric import FailedMeasurement, Frames, MeasurementError
from kiwi.benchmark.run import (
    ChampionRef,
    Load,
    ModelUnderTest,
    Told,
    benchmark_folder,
    champion_under_test,
    kept_files,
    trained_model,
)
from kiwi.benchmark.samples import BenchmarkError
from kiwi.configuration import RunConfiguration, digest
from kiwi.errors import KiwiError, UsageError
from kiwi.hashing import sha256_of
from kiwi.workspace import read_json, write_json

if TYPE_CHECKING:
    from kiwi.tracking import TaskRun

BATCH = 4  # clips that are opened and edited together


@dataclass(frozen=True)
class Shard:
    """Which samples are one process's: every `of`-th, from `number` on. Raises UsageError for what is none."""

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise UsageError(f"there is no shard {self.number} of {self.of}", "count from 0, with --shards N")

    def takes(self, place: int) -> bool:
        return place % self.of == self.number


WHOLE = Shard()


def edit_listed(
    configuration: RunConfiguration,
    listed: Listed,
    task: TaskRun,
    champion: ChampionRef | None = None,
    *,
    load: Load | None = None,
    shard: Shard = WHOLE,
    batch: int = BATCH,
    told: Told = lambda done, total: None,
) -> dict[str, Any]:
    """Lets the trained model, and the champion where its recorded scores do not compare, make a shard's edits.

    What is there already is not made again. An entry whose media cannot be read has no edit. Once no edit is missing,
    edits.json is written and attached to the task, with all edits.

    Returns {key, revision, samples, edits, made, left, unreadable}; `left` is what other shards have still to edit,
    `unreadable` says why of each clip so far.

    Raises:
        BenchmarkError: nothing is trained, or no clip can be read. StorageError: the clips' store cannot be asked.
    """
    task.params({"benchmark": listed.name, "benchmark_revision": listed.revision})
    judge = judge_of(configuration).name
    said, beside = champion_under_test(champion, listed.revision, judge)
    models = [trained_model(configuration, controls=False)]
    asked = models if beside is None else [*models, beside]
    work = _Work(configuration, listed, task, load or _loader(configuration), shard, batch, asked, told)
    made = work.edit(models[0])
    if beside is not None and said is not None:
        try:
            made += work.edit(beside)
            models.append(beside)
        except KiwiError as error:
            said = said | {"unmeasured": error.message}
            task.note(f"the champion cannot be compared: {error.message}")
    unreadable = work.unreadable(models[0])
    task.metrics({"edits_made_now": made, "unreadable": len(unreadable)})
    if len(unreadable) == len(listed.samples):
        first, why = next(iter(unreadable.items()))
        raise BenchmarkError(f"{listed.name}: none of its clips can be read: {first}: {why}", "look at its folder")
    left = sum(len(work.missing(model, WHOLE)) for model in models)
    path = listed_folder(configuration, listed) / "edits.json"
    described = [described_model(listed, model) for model in models]
    key = digest(listed.revision, judge, described, said)
    if left == 0:
        write_json(path, _recorded(configuration, listed, described, said, {"key": key, "judge": judge}))
        _attach(configuration, listed, described, path, task)
    return {
        "key": key,
        "revision": listed.revision,
        "samples": len(listed.samples),
        "edits": path.relative_to(configuration.workdir).as_posix(),
        "made": made,
        "left": left,
        "unreadable": unreadable,
    }


class _Work:
    """One process's share of the edits of a list."""

    def __init__(
        self,
        configuration: RunConfiguration,
        listed: Listed,
        task: TaskRun,
        load: Load,
        shard: Shard,
        batch: int,
        models: Sequence[ModelUnderTest],
        told: Told,
    ) -> None:
        self._configuration, self._listed, self._task, self._load = configuration, listed, task, load
        self._shard, self._batch, self._told = shard, max(1, batch), told
        self._done, self._total = 0, sum(len(self.missing(model, shard)) for model in models)

    def missing(self, model: ModelUnderTest, shard: Shard) -> list[ListedSample]:
        """The samples of a shard that the model has still to edit."""
        home = self._home(model)
        mine = (sample for place, sample in enumerate(self._listed.samples) if shard.takes(place))
        return [each for each in mine if not (_whole(home / file_name(each)) or _unreadable(home, each).exists())]

    def unreadable(self, model: ModelUnderTest) -> dict[str, str]:
        """What is wrong with each clip or reference that could not be read, by any shard."""
        marks = {each.sample_id: _unreadable(self._home(model), each) for each in self._listed.samples}
        return {name: str(read_json(mark)["said"]) for name, mark in marks.items() if mark.exists()}

    def edit(self, model: ModelUnderTest) -> int:
        """Makes the shard's missing edits of one model, which is loaded only where there is one. How many it made."""
        missing, editor, made = self.missing(model, self._shard), None, 0
        if missing:
            self._told(self._done, self._total)
        for start in range(0, len(missing), self._batch):
            batch = list(self._opened(model, missing[start : start + self._batch]))
            if batch:
                editor = editor or self._load(model.folder)
                self._make(editor, model, batch)
                made += len(batch)
            self._done += len(missing[start : start + self._batch])
            self._told(self._done, self._total)
            self._task.progress(min(start + self._batch, len(missing)), len(missing), "edits", model.name)
        return made

    def _opened(self, model: ModelUnderTest, samples: Sequence[ListedSample]) -> Iterator[tuple[ListedSample, Opened]]:
        for sample in samples:
            try:
                yield sample, open_sample(self._listed, sample)
            except MeasurementError as failure:  # other bytes would be another revision, so this stays as it is
                write_json(_unreadable(self._home(model), sample), {"reason": failure.reason, "said": failure.message})

    def _make(self, editor: Editor, model: ModelUnderTest, batch: Sequence[tuple[ListedSample, Opened]]) -> None:
        edits = editor(
            [opened.source for _, opened in batch],
            [sample.entry.instruction for sample, _ in batch],
            [opened.reference for _, opened in batch],
            num_inference_steps=self._configuration.benchmark.sampling_steps,
            seed=0,
        )
        if len(edits) != len(batch):
            raise BenchmarkError(f"{model.name} gave {len(edits)} edits of {len(batch)} clips", "look at its editor")
        for (sample, _), edit in zip(batch, edits, strict=True):
            _keep(self._home(model) / file_name(sample), edit)

    def _home(self, model: ModelUnderTest) -> Path:
        return benchmark_folder(self._configuration) / _shards(self._listed, model)


def described_model(listed: Listed, model: ModelUnderTest) -> dict[str, Any]:
    """A model's entry of edits.json, without the files."""
    return model.said(listed.revision) | {"shards": _shards(listed, model)}


def listed_folder(configuration: RunConfiguration, listed: Listed) -> Path:
    """Where all of one list lies: edits.json, scores.json, the edits and what is to be looked at."""
    return benchmark_folder(configuration) / listed.name


def file_name(sample: ListedSample) -> str:
    """The entry's number alone: what a list calls its clip may be no file name."""
    return f"{sample.sample_id.partition('_')[0]}.safetensors"


def kept_edit(configuration: RunConfiguration, model: Mapping[str, Any], sample: ListedSample) -> Frames | None:
    """The edit of a sample by one of edits.json's models; None where there is none that can be read.

    Raises MeasurementError(EDIT_MISSING) for a file that is not the one that was recorded.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    name = file_name(sample)
    path = benchmark_folder(configuration) / model["shards"] / name
    recorded = {entry["file"]: entry["sha256"] for entry in model["files"]}
    try:
        if recorded.get(name) != sha256_of(path):
            said = f"{path} is not the file that edits.json records: its SHA-256 is another one"
            raise MeasurementError(FailedMeasurement.EDIT_MISSING, said)
        found: Frames | None = load_file(str(path)).get(RESULT)
    except (OSError, SafetensorError):
        return None
    return found


def _recorded(
    configuration: RunConfiguration,
    listed: Listed,
    described: Sequence[Mapping[str, Any]],
    champion: Mapping[str, Any] | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What edits.json says. The files to look at are added when the edits are judged."""
    home = benchmark_folder(configuration)
    return {
        **about,
        "benchmark": listed.name,
        "location": listed.location,
        "revision": listed.revision,
        "sampling_steps": configuration.benchmark.sampling_steps,
        "models": [
            {**model, "files": kept_files(sorted((home / model["shards"]).glob("*.safetensors")))}
            for model in described
        ],
        "champion": champion,
        "excluded": [],
        "samples": [sample_row(sample) for sample in listed.samples],
    }


def sample_row(sample: ListedSample) -> dict[str, Any]:
    return {
        "id": sample.sample_id,
        "kind": sample.kind,
        "group": sample.group,
        "rubric": sample.rubric,
        "prompt": sample.entry.instruction,
        "wrong_prompt": None,
        "pick": None,
        "files": {},
        "failure": None,
    }


def _attach(
    configuration: RunConfiguration, listed: Listed, described: Sequence[Mapping[str, Any]], path: Path, task: TaskRun
) -> None:
    """Keeps edits.json and all edits with the task's MLflow run."""
    for model in described:
        folder = benchmark_folder(configuration) / model["shards"]
        task.artifact(folder, f"edits/{listed.name}/{folder.name}")
    task.artifact(path, f"edits/{listed.name}")


def _shards(listed: Listed, model: ModelUnderTest) -> str:
    return f"{listed.name}/edits/{model.fingerprint}-{listed.revision}"


def _unreadable(home: Path, sample: ListedSample) -> Path:
    return (home / file_name(sample)).with_suffix(".unreadable.json")


def _keep(path: Path, edit: Frames) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({RESULT: np.ascontiguousarray(edit)}, str(temporary))
    os.replace(temporary, path)


def _whole(path: Path) -> bool:
    """Whether an edit is there that can be read; the format's header knows how long the file must be."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "numpy") as file:
            return RESULT in file.keys()  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError):
        return False


def _loader(configuration: RunConfiguration) -> Callable[[Path], Editor]:
    from kiwi.editing.pipeline import KiwiEditPipeline

    frames, side = configuration.model.frames, configuration.model.size

    def load(folder: Path) -> Editor:
        editor: Editor = KiwiEditPipeline.from_pretrained(folder, frames=frames, side=side).edit_clips
        return editor

    return load
