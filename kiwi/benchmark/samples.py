"""The held-out samples: rendered from the benchmark's own seed, or the rows that a dataset keeps out of training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kiwi.benchmark.measured import changed_region
from kiwi.benchmark.rubric import Category, Frames, Image, JudgeView, Mask, MeasurementError, Rubric, category_of
from kiwi.configuration import RunConfiguration, digest
from kiwi.dataset.schema import Task
from kiwi.errors import KiwiError
from kiwi.media.timing import evenly
from kiwi.workspace import published

Group = Literal["subject", "background", "instruction"]

PROTOCOL = "kiwi-benchmark-1"  # part of the revision: another protocol's scores do not compare
COLOUR_KINDS = frozenset({"recolour", "swap", "add", "subject_reference"})
VIEW_PIXELS = 256 * 256


class BenchmarkError(KiwiError):
    """The benchmark cannot be run or judged: no samples, no trained model, or results of another run."""


@dataclass(frozen=True)
class BenchmarkSample:
    """One held-out sample with its ground truth.

    Attributes:
        sample_id: names its files. kind: the source's word for the edit. prompt: the instruction.
        group: how it is guided, by a subject reference, a background reference, or the instruction alone.
        rubric: which three criteria it is judged by.
        source, truth: uint8 [T, H, W, 3]; fps: frames a second. reference: uint8 [h, w, 3] or None.
        edit_mask: bool [T, H, W], where the edit belongs; core_mask: the object's inner part, procedural only.
        has_answer: whether obedience can be told; answer: the palette colour the core must have, for colour kinds.
        wrong_prompt, swapped_reference: what the controls are given instead, or None where there is no control.
    """

    sample_id: str
    kind: str
    group: Group
    rubric: Rubric
    prompt: str
    fps: float
    source: Frames
    truth: Frames
    edit_mask: Mask
    reference: Image | None = None
    core_mask: Mask | None = None
    has_answer: bool = False
    answer: tuple[int, int, int] | None = None
    palette: tuple[tuple[int, int, int], ...] = ()
    wrong_prompt: str | None = None
    swapped_reference: Image | None = None

    def view(self, edit: Frames) -> JudgeView:
        """What a judge sees of `edit`: not the answer, and of the kind only what sort of edit was asked for."""
        return JudgeView(
            self.source, edit, self.reference, self.rubric, self.prompt, self.edit_mask, self.truth, self.category
        )

    @property
    def category(self) -> Category:
        """The sort of edit, as RefVIE-Bench and OpenVE-Bench sort them."""
        return category_of(self.kind, self.rubric, guided=self.group != "instruction")

    def fingerprint(self) -> str:
        """Hash of everything that can move a score of this sample."""
        said = hashlib.sha256(f"{self.sample_id}\n{self.rubric}\n{self.prompt}\n{self.answer}".encode())
        for pixels in (self.source, self.truth, self.edit_mask, self.reference, self.core_mask):
            if pixels is not None:
                said.update(str(pixels.shape).encode())
                said.update(np.ascontiguousarray(pixels).tobytes())
        return said.hexdigest()


@dataclass(frozen=True)
class HeldOut:
    """The benchmark of a run. `excluded`: rows held out that no video benchmark can use, with the reason of each."""

    samples: tuple[BenchmarkSample, ...]
    revision: str
    excluded: tuple[dict[str, str], ...] = ()

    def of_kind(self, kind: str, at_most: int | None = None) -> list[BenchmarkSample]:
        return [sample for sample in self.samples if sample.kind == kind][:at_most]

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(sample.kind for sample in self.samples))


def load_held_out(configuration: RunConfiguration) -> HeldOut:
    """The samples of this configuration, the same ones and in the same order each time.

    The revision names their content and the number of sampling steps: scores of one revision and one judge compare.

    Raises:
        BenchmarkError: the dataset holds out no usable row. KiwiError: no dataset is published yet.
    """
    excluded: list[dict[str, str]] = []
    if configuration.source.kind == "procedural":
        samples = _procedural(configuration)
    else:
        samples, excluded = _from_pairs(configuration)
    if not samples:
        raise BenchmarkError(
            f"the benchmark has no sample: {len(excluded)} rows were held out and none is a usable video",
            "give more pairs, or raise benchmark.share",
        )
    revision = digest(PROTOCOL, configuration.benchmark.sampling_steps, [each.fingerprint() for each in samples])
    return HeldOut(tuple(samples), revision, tuple(excluded))


def _procedural(configuration: RunConfiguration) -> list[BenchmarkSample]:
    from kiwi.sources.procedural import KINDS

    settings = configuration.source.model_copy(update={"seed": configuration.benchmark.seed})
    if settings.seed == configuration.source.seed:
        raise BenchmarkError(
            f"benchmark.seed is {settings.seed}, the seed of the training data: nothing would be held out",
            "choose another benchmark.seed",
        )
    number = configuration.benchmark.samples_per_kind
    return [
        _rendered(settings, len(KINDS) * index + place, kind, index)
        for place, kind in enumerate(KINDS)
        for index in range(number)
    ]


def _rendered(settings: Any, position: int, kind: str, index: int) -> BenchmarkSample:
    from kiwi.sources.procedural import COLOURS, TASKS, render_pair

    drawn = render_pair(settings, position, kind)
    colour = kind in COLOUR_KINDS
    return BenchmarkSample(
        sample_id=f"{kind}-{index:04d}",
        kind=kind,
        group=group_of(TASKS[kind], drawn.reference is not None),
        rubric=rubric_of(TASKS[kind]),
        prompt=drawn.prompt,
        fps=float(drawn.fps),
        source=drawn.source,
        truth=drawn.target,
        edit_mask=drawn.edit_mask,
        reference=drawn.reference,
        core_mask=drawn.core_mask,
        has_answer=True,
        answer=drawn.answer if colour else None,
        palette=tuple(COLOURS.values()) if colour else (),
        wrong_prompt=drawn.wrong_prompt,
        swapped_reference=drawn.swapped_reference,
    )


def _from_pairs(configuration: RunConfiguration) -> tuple[list[BenchmarkSample], list[dict[str, str]]]:
    from kiwi.dataset.reader import read_split

    folder = Path(published(configuration)["path"])
    samples: list[BenchmarkSample] = []
    excluded: list[dict[str, str]] = []
    for row in read_split(folder, "benchmark").sort("position").iter_rows(named=True):
        try:
            samples.append(_opened(folder, row, configuration.model.frames))
        except _UnusableRowError as unusable:
            excluded.append({"id": str(row["iid"]), "reason": str(unusable)})
    return samples, excluded


class _UnusableRowError(Exception):
    """A held-out row that a benchmark of videos cannot use."""


def _opened(folder: Path, row: dict[str, Any], frames: int) -> BenchmarkSample:
    from kiwi.dataset.reader import open_media
    from kiwi.media import decode, decode_image

    if row["media"] != "video":
        raise _UnusableRowError("an image pair")
    source = decode(open_media(folder, row["src_video"]), pixel_budget=VIEW_PIXELS)
    height, width = source.frames.shape[1:3]
    target = decode(open_media(folder, row["tgt_video"]), size=(height, width))
    length = min(len(source.frames), len(target.frames))
    if length < 2:
        raise _UnusableRowError("one frame only")
    chosen = evenly(length, frames)
    before, after = source.frames[chosen], target.frames[chosen]
    try:
        mask = changed_region(before, after)
    except MeasurementError as unmeasured:
        raise _UnusableRowError(unmeasured.message) from unmeasured
    task = Task(row["task"])
    guided = row["trains_as"] == "quadruplet" and row["ref_image_bytes"] is not None
    return BenchmarkSample(
        sample_id=str(row["iid"]),
        kind=str(row["edit_type"] or row["task"]),
        group=group_of(task, guided),
        rubric=rubric_of(task),
        prompt=str(row["prompt"]),
        fps=max(1.0, source.fps * len(chosen) / length),
        source=before,
        truth=after,
        edit_mask=mask,
        reference=decode_image(row["ref_image_bytes"]) if guided else None,
    )


def rubric_of(task: Task) -> Rubric:
    """Background changes are asked for matting and harmony; every other edit has a subject, also a removed one."""
    return "background" if task == Task.BACKGROUND_CHANGE else "subject"


def group_of(task: Task, guided: bool) -> Group:
    return rubric_of(task) if guided else "instruction"
