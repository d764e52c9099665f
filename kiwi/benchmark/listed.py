"""RefVIE-Bench, OpenVE-Bench, or one's own list in either form: what is to be edited, without a ground truth.

Clips are opened when they are needed, never all at once. Nothing here is measured against a truth: the judge must be
one that can do without, such as `mllm`. Editing is in listed_edits.py, judging in listed_scores.py.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kiwi import storage
from kiwi.benchmark.rubric import (
    REFERENCE_CATEGORIES,
    Category,
    FailedMeasurement,
    Frames,
    Image,
    MeasurementError,
    Rubric,
    category_of,
)
from kiwi.benchmark.samples import PROTOCOL, VIEW_PIXELS, BenchmarkError, Group
from kiwi.configuration import RunConfiguration, digest
from kiwi.errors import UsageError
from kiwi.media.timing import evenly
from kiwi.sources.adapter import SourceFailure
from kiwi.sources.benchmarks import (
    OPENVE_CATEGORIES,
    BenchmarkEntry,
    find_entry,
    open_entry,
    read_openve_bench,
    read_refvie_bench,
)

Reader = Callable[[str], list[BenchmarkEntry]]
PUBLISHED: dict[str, Reader] = {"refvie-bench": read_refvie_bench, "openve-bench": read_openve_bench}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
TAKEN = ("edits", "judged", "replies")  # folders of a benchmark's own
LISTS = (".yaml", ".yml", ".csv")
LOOKED_AT = 60  # entries whose media are looked for before a run starts
LOOKERS = 8
FORMS = "refvie-bench=FOLDER, openve-bench=FOLDER, or NAME=LIST.yaml or NAME=LIST.csv of your own in those forms"


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
    """A benchmark of a list: its name, where it lies, its samples, and what names their content.

    `root`: what the list's paths are relative to.
    """

    name: str
    location: str
    root: str
    samples: tuple[ListedSample, ...]
    frames: int
    pixels: int
    revision: str

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(sample.kind for sample in self.samples))


@dataclass(frozen=True)
class Opened:
    """A sample's clip uint8 [T, H, W, 3], its frames a second, and its reference uint8 [h, w, 3] or None."""

    source: Frames
    fps: float
    reference: Image | None


def load_listed(configuration: RunConfiguration, said: str) -> Listed:
    """The benchmark that NAME=LOCATION names. Its revision is over the list, the media's bytes and how they are seen.

    Raises:
        UsageError: no such name, no location, or no entry of a type that is rated. SourceError: no usable list there.
    """
    name, _, location = said.partition("=")
    root, entries = _entries(said)
    samples = tuple(_sample(entry) for entry in entries)
    frames, pixels = configuration.model.frames, max(VIEW_PIXELS, configuration.model.size**2)
    listed = [(each.sample_id, each.entry.instruction, each.category, _content(root, each)) for each in samples]
    revision = digest(PROTOCOL, name, configuration.benchmark.sampling_steps, frames, pixels, listed)
    return Listed(name, location, root, samples, frames, pixels, revision)


def check_listed(said: str, least: float) -> None:
    """Looks before a run whether the benchmark that NAME=LOCATION names can be edited: its whole list, and the clips
    and references of up to LOOKED_AT entries, spread evenly. On this machine clips must open, in a store be there.

    Args:
        least: the share of those entries that must be whole; fewer would be a verdict on too few samples.

    Raises:
        UsageError, SourceError: as `load_listed` does. StorageError: the store cannot be asked. BenchmarkError: too
            little of its media is there.
    """
    root, entries = _entries(said)
    if storage.is_remote(root):
        storage.check(root)
    looked = [entries[place] for place in evenly(len(entries), min(len(entries), LOOKED_AT))]
    with ThreadPoolExecutor(LOOKERS) as pool:
        faults = [fault for fault in pool.map(partial(_fault, root), looked) if fault]
    if len(looked) - len(faults) < least * len(looked) - 1e-9:
        whole = "" if len(looked) == len(entries) else f" looked at of {len(entries)}"
        what = f"{said}: {len(faults)} of {len(looked)} entries{whole} cannot be edited: {faults[0]}"
        raise BenchmarkError(what, f"put its media there; gate.min_coverage asks for {least:.0%} of the samples")


def _fault(root: str, entry: BenchmarkEntry) -> str:
    """What is wrong with an entry's clip or reference; "" where both are there."""
    from kiwi.media import MediaError, probe

    try:
        for media in find_entry(root, entry):
            if isinstance(media, Path):
                probe(media)
    except (SourceFailure, MediaError) as error:
        return error.message
    return ""


def _entries(said: str) -> tuple[str, list[BenchmarkEntry]]:
    """The folder that the list's paths are relative to, and the entries that are rated. Raises as `load_listed`."""
    name, _, location = said.partition("=")
    root, reader = _reader(said, name, location)
    entries = reader(root)
    if not entries:
        rated = ", ".join(OPENVE_CATEGORIES)
        raise UsageError(f"{location} holds no entry that is rated", f"edited_type is one of {rated}")
    return root, entries


def _reader(said: str, name: str, location: str) -> tuple[str, Reader]:
    """The folder of the list, and what reads it."""
    if not location or not NAME.fullmatch(name) or name in TAKEN:
        raise UsageError(f"{said!r} names no benchmark", FORMS)
    folder, file = posixpath.split(location)
    ending = posixpath.splitext(file)[1].lower()
    if ending in LISTS:
        reader = read_openve_bench if ending == ".csv" else read_refvie_bench
        return folder or ".", partial(reader, file=file)
    if name not in PUBLISHED:
        raise UsageError(f"{said!r} names no benchmark", FORMS)
    return location, PUBLISHED[name]


def _sample(entry: BenchmarkEntry) -> ListedSample:
    background = "background" in entry.category.lower()
    rubric: Rubric = "background" if background else "subject"
    return ListedSample(entry, rubric, rubric if entry.reference else "instruction")


def _content(root: str, sample: ListedSample) -> list[str]:
    """Hashes of the clip and of the reference; what is wrong with them where they cannot be opened."""
    try:
        media = open_entry(root, sample.entry)
    except SourceFailure as failure:
        return [failure.message]
    return [hashlib.sha256(_bytes(each)).hexdigest() for each in media if each is not None]


def _bytes(media: bytes | Path) -> bytes:
    return media if isinstance(media, bytes) else media.read_bytes()


def open_sample(listed: Listed, sample: ListedSample) -> Opened:
    """The clip's frames, spread evenly, and the reference.

    Raises MeasurementError(SOURCE_UNREADABLE); StorageError where a store cannot be asked, which is not the sample's
    fault.
    """
    from kiwi.media import MediaError, decode, decode_image

    try:
        source, reference = open_entry(listed.root, sample.entry)
        clip = decode(source, pixel_budget=listed.pixels)
        shown = decode_image(_bytes(reference)) if reference is not None else None
    except (SourceFailure, MediaError) as error:
        raise MeasurementError(FailedMeasurement.SOURCE_UNREADABLE, error.message) from error
    chosen = evenly(len(clip.frames), listed.frames)
    needed = sample.category in REFERENCE_CATEGORIES.values()
    fps = max(1.0, clip.fps * len(chosen) / len(clip.frames))
    return Opened(clip.frames[chosen], fps, shown if needed else None)
