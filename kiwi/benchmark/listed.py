"""RefVIE-Bench, OpenVE-Bench, or one's own list in either form: what is to be edited, without a ground truth.

Each edit is kept lossless in a file of its own, named by what it was made from, so a run that was killed goes on where
it was. Judging reads clips and edits again. Nothing here is measured against a truth: the judge must be one that can
do without, such as `mllm`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kiwi.benchmark.edits import RESULT, Editor
from kiwi.benchmark.judge import FORMAT, failed, judge_into
from kiwi.benchmark.judges import judge_of
from kiwi.benchmark.rubric import (
    REFERENCE_CATEGORIES,
    Category,
    FailedMeasurement,
    Frames,
    Image,
    JudgeView,
    MeasurementError,
    Rubric,
    category_of,
    check_edit,
)
from kiwi.benchmark.run import benchmark_folder, model_folder
from kiwi.benchmark.samples import PROTOCOL, VIEW_PIXELS, BenchmarkError, Group
from kiwi.benchmark.scores import Outcome, averaged, per_sample
from kiwi.configuration import RunConfiguration, digest
from kiwi.errors import KiwiError, UsageError
from kiwi.hashing import contents_digest
from kiwi.media.timing import evenly
from kiwi.sources.benchmarks import BenchmarkEntry, open_entry, read_openve_bench, read_refvie_bench
from kiwi.workspace import write_json

if TYPE_CHECKING:
    from kiwi.tracking import TaskRun

READERS: dict[str, Callable[[str], list[BenchmarkEntry]]] = {
    "refvie-bench": read_refvie_bench,
    "openve-bench": read_openve_bench,
}


@dataclass(frozen=True)
class ListedSample:
    """One entry of the list; its media are opened when they are needed."""

    entry: BenchmarkEntry
    rubric: Rubric
    group: Group

    @property
    def sample_id(self) -> str:
        return self.entry.id

    @property
    def kind(self) -> str:
        return self.entry.edit_type

    @property
    def category(self) -> Category:
        return category_of(self.kind, self.rubric, guided=self.group != "instruction")


@dataclass(frozen=True)
class Listed:
    """A benchmark of a list: its name, where it lies, its samples, and what names their content."""

    name: str
    location: str
    samples: tuple[ListedSample, ...]
    frames: int
    pixels: int
    revision: str


def load_listed(configuration: RunConfiguration, said: str) -> Listed:
    """The benchmark that NAME=LOCATION names. Its revision is over the list, the media's bytes and how they are seen.

    Raises:
        UsageError: no such name, or no location. SourceError: no usable list there.
    """
    name, _, location = said.partition("=")
    if name not in READERS or not location:
        raise UsageError(f"{said!r} names no benchmark", f"NAME=LOCATION, where NAME is {' or '.join(READERS)}")
    samples = tuple(_sample(entry) for entry in READERS[name](location))
    frames, pixels = configuration.model.frames, max(VIEW_PIXELS, configuration.model.size**2)
    listed = [(each.sample_id, each.entry.instruction, each.category, _content(location, each)) for each in samples]
    revision = digest(PROTOCOL, name, configuration.benchmark.sampling_steps, frames, pixels, listed)
    return Listed(name, location, samples, frames, pixels, revision)


def _sample(entry: BenchmarkEntry) -> ListedSample:
    background = "background" in entry.category.lower()
    rubric: Rubric = "background" if background else "subject"
    return ListedSample(entry, rubric, rubric if entry.reference else "instruction")


def _content(location: str, sample: ListedSample) -> list[str]:
    """Hashes of the clip and of the reference; what is wrong with them where they cannot be opened."""
    try:
        media = open_entry(location, sample.entry)
    except KiwiError as error:
        return [error.message]
    return [hashlib.sha256(_bytes(each)).hexdigest() for each in media if each is not None]


def _bytes(media: bytes | Path) -> bytes:
    return media if isinstance(media, bytes) else media.read_bytes()


def edit_listed(
    configuration: RunConfiguration, listed: Listed, task: TaskRun, *, load: Callable[[Path], Editor] | None = None
) -> dict[str, Any]:
    """Lets the trained model edit every entry that it has not edited yet; returns {revision, samples, edits, made}.

    An entry whose media cannot be read has no edit; judging says so. Raises BenchmarkError where nothing is trained.
    """
    folder = model_folder(configuration, configuration.stages[-1].name)
    home = _edits_folder(configuration, listed)
    editor: Editor | None = None
    made = 0
    for number, sample in enumerate(listed.samples):
        path = home / f"{_file_name(sample)}.safetensors"
        if not path.exists() and (opened := _try_open(listed, sample)) is not None:
            editor = editor or (load or _loader(configuration))(folder)
            _make(editor, sample, opened, path, configuration.benchmark.sampling_steps)
            made += 1
        task.progress(number + 1, len(listed.samples), "edits", listed.name)
    return {"revision": listed.revision, "samples": len(listed.samples), "edits": str(home), "made": made}


def judge_listed(configuration: RunConfiguration, listed: Listed) -> tuple[dict[str, Any], Path]:
    """Judges the edits of a list; writes `benchmark/NAME/scores.json` and returns it with its path.

    Raises BenchmarkError for a judge that needs a ground truth, or where no edits were made.
    """
    judge = judge_of(configuration)
    if judge.exact:
        raise BenchmarkError(f"{listed.name} has no ground truth, which {judge.name} needs", "add --judge mllm")
    home = _edits_folder(configuration, listed)
    if not home.is_dir():
        run = f"kiwi bench run --benchmark {listed.name}={listed.location}"
        raise BenchmarkError(f"{listed.name}: no edits of this model and this list", f"make them: `{run}`")
    outcome = Outcome([], judge.exact)
    model = configuration.stages[-1].name
    judge_into(outcome, judge, _views(listed, home, outcome, model), model)
    scores = {
        "format": FORMAT,
        "benchmark": listed.name,
        "revision": listed.revision,
        "judge": judge.name,
        **averaged(outcome),
        "baselines": {},
        "judging": judge.spent(),
        "failures": outcome.failures,
        "per_sample": per_sample(outcome, None),
    }
    path = benchmark_folder(configuration) / listed.name / "scores.json"
    write_json(path, scores)
    return scores, path


def _views(listed: Listed, home: Path, outcome: Outcome, model: str) -> Iterator[tuple[str, JudgeView]]:
    for sample in listed.samples:
        outcome.samples.append(sample)
        try:
            source, reference = _open(listed, sample)
            edit = check_edit(source, _kept(home / f"{_file_name(sample)}.safetensors"))
        except MeasurementError as failure:
            outcome.failures.append(failed(model, sample.sample_id, RESULT, failure))
            continue
        said = sample.entry.instruction
        yield sample.sample_id, JudgeView(source, edit, reference, sample.rubric, said, None, None, sample.category)


def _open(listed: Listed, sample: ListedSample) -> tuple[Frames, Image | None]:
    """The clip's frames, spread evenly, and the reference. Raises MeasurementError(SOURCE_UNREADABLE)."""
    from kiwi.media import decode, decode_image

    try:
        source, reference = open_entry(listed.location, sample.entry)
        clip = decode(source, pixel_budget=listed.pixels).frames
        shown = decode_image(_bytes(reference)) if reference is not None else None
    except KiwiError as error:
        raise MeasurementError(FailedMeasurement.SOURCE_UNREADABLE, error.message) from error
    chosen = evenly(len(clip), listed.frames)
    needed = sample.category in REFERENCE_CATEGORIES.values()
    return clip[chosen], shown if needed else None


def _try_open(listed: Listed, sample: ListedSample) -> tuple[Frames, Image | None] | None:
    try:
        return _open(listed, sample)
    except MeasurementError:
        return None  # judging opens it again, and says what is wrong


def _make(
    editor: Editor, sample: ListedSample, opened: tuple[Frames, Image | None], path: Path, sampling_steps: int
) -> None:
    from safetensors.numpy import save_file

    source, reference = opened
    (edit,) = editor([source], [sample.entry.instruction], [reference], num_inference_steps=sampling_steps, seed=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({RESULT: np.ascontiguousarray(edit)}, str(temporary))
    os.replace(temporary, path)


def _kept(path: Path) -> Frames | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        kept: Frames | None = load_file(str(path)).get(RESULT)
    except (OSError, SafetensorError):
        return None
    return kept


def _edits_folder(configuration: RunConfiguration, listed: Listed) -> Path:
    folder = model_folder(configuration, configuration.stages[-1].name)
    return benchmark_folder(configuration) / listed.name / f"{contents_digest(folder)[:16]}-{listed.revision}"


def _file_name(sample: ListedSample) -> str:
    """The entry's number alone: what a list calls its clip may be no file name."""
    return sample.sample_id.partition("_")[0]


def _loader(configuration: RunConfiguration) -> Callable[[Path], Editor]:
    from kiwi.editing.pipeline import KiwiEditPipeline

    frames, side = configuration.model.frames, configuration.model.size

    def load(folder: Path) -> Editor:
        editor: Editor = KiwiEditPipeline.from_pretrained(folder, frames=frames, side=side)
        return editor

    return load
