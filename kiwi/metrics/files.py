"""Metrics of files: each is decoded once, and one that is missing or damaged is a typed result like any other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kiwi.errors import UsageError
from kiwi.media import MediaError, decode
from kiwi.metrics.clip import ClipFeatures
from kiwi.metrics.edit import METRICS, EditClips, EditReport, attempt, measure_edit
from kiwi.metrics.frames import luma
from kiwi.metrics.frechet import Features, VideoFeatures, between_features, distance_name
from kiwi.metrics.results import Failure, Frames, Image, Mask, Measured, MetricError, Unmeasured
from kiwi.metrics.vmaf import PROGRAM

NO_MEDIA = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".parquet", ".txt", ".md", ".html", ".log")
"""What may lie in a folder of edits and is none, such as their list."""


@dataclass(frozen=True)
class EditFiles:
    """The files of one edit, or the folders of many: there one name, whatever its suffix, is one edit."""

    edit: Path
    source: Path
    target: Path | None = None
    mask: Path | None = None
    reference: Path | None = None


@dataclass(frozen=True)
class SetReport:
    """The edits of a folder.

    Attributes:
        edits: by name. frechet: the distance of the whole set, where it was asked for.
        without_source: edits of whose name there is no source; what needs one is unmeasured of them.
    """

    edits: dict[str, EditReport]
    frechet: Measured | Unmeasured | None = None
    without_source: tuple[str, ...] = ()

    def means(self) -> dict[str, dict[str, Any]]:
        """By metric: its mean over the edits that have it, and how many these are."""
        found: dict[str, list[Measured]] = {}
        for report in self.edits.values():
            for each in report.measured:
                found.setdefault(each.name, []).append(each)
        return {
            name: {
                "value": float(np.mean([each.value for each in of])),
                "unit": of[0].unit,
                "direction": of[0].direction,
                "measured": len(of),
            }
            for name, of in found.items()
        }

    def as_dict(self) -> dict[str, Any]:
        said: dict[str, Any] = {
            "means": self.means(),
            "edits": {name: report.as_dict() for name, report in self.edits.items()},
            "without_source": list(self.without_source),
        }
        if self.frechet is not None:
            said["frechet"] = {"name": self.frechet.name, **self.frechet.as_dict()}
        return said


def measure_files(
    files: EditFiles,
    prompt: str | None = None,
    clip: ClipFeatures | None = None,
    only: Sequence[str] = METRICS,
    ffmpeg: str = PROGRAM,
) -> EditReport:
    """`measure_edit` of files; decoding stands in `seconds` as `decode`."""
    started = time.perf_counter()
    clips = read_clips(files, prompt)
    decoding = time.perf_counter() - started
    report = measure_edit(clips, clip, only, ffmpeg)
    return EditReport(report.shape, report.measured, report.unmeasured, {"decode": decoding, **report.seconds})


def measure_folders(
    folders: EditFiles,
    clip: ClipFeatures | None = None,
    only: Sequence[str] = METRICS,
    frechet: VideoFeatures | None = None,
    ffmpeg: str = PROGRAM,
) -> SetReport:
    """Every source of a folder with its edit, then the edits without a source; one clip is in memory at a time.

    Args:
        frechet: also the distance between the edits and the targets (without targets: the sources) by these features.

    Raises:
        UsageError: no source in the folder, two files of one name, or a path that is no folder.
    """
    reports: dict[str, EditReport] = {}
    rows: tuple[list[Features], list[Features]] = ([], [])
    failed: list[MetricError] = []
    alone: list[str] = []
    for name, files in _pairs(folders):
        if not files.source.is_file():
            alone.append(name)
        started = time.perf_counter()
        clips = read_clips(files)
        decoding = time.perf_counter() - started
        report = measure_edit(clips, clip, only, ffmpeg)
        reports[name] = EditReport(
            report.shape, report.measured, report.unmeasured, {"decode": decoding, **report.seconds}
        )
        if frechet is not None and not failed:
            try:
                _describe(clips, frechet, rows)
            except MetricError as error:
                failed.append(MetricError(error.reason, f"{name}: {error.message}", error.remedy))
    called = "sources" if folders.target is None else "ground truth"
    distance = _distance(rows, frechet, failed, called) if frechet is not None else None
    return SetReport(reports, distance, tuple(alone))


def read_clips(files: EditFiles, prompt: str | None = None) -> EditClips:
    """The decoded files of one edit; a file that cannot be read is its failure."""
    edit = _clip(files.edit)
    return EditClips(
        edit=edit,
        source=_clip(files.source),
        target=None if files.target is None else _clip(files.target),
        mask=None if files.mask is None else _mask(files.mask, edit),
        reference=None if files.reference is None else _reference(files.reference),
        prompt=prompt,
    )


def _clip(path: Path) -> Frames | MetricError:
    if not path.is_file():
        return MetricError(Failure.MISSING, f"there is no file {path}")
    try:
        return decode(path).frames
    except MediaError as error:
        return MetricError(Failure.UNREADABLE, error.message, error.remedy)


def _reference(path: Path) -> Image | MetricError:
    frames = _clip(path)
    return frames if isinstance(frames, MetricError) else np.array(frames[0])  # torch wants to be able to write


def _mask(path: Path, edit: Frames | MetricError) -> Mask | MetricError:
    """White (luma above 127) is the edit region; a still image holds for every frame."""
    frames = _clip(path)
    if isinstance(frames, MetricError):
        return frames
    white = np.stack([luma(frame) > 127 for frame in frames])
    if len(white) > 1 or isinstance(edit, MetricError):
        return white
    return np.broadcast_to(white, (len(edit), *white.shape[1:]))


def _pairs(folders: EditFiles) -> Iterator[tuple[str, EditFiles]]:
    parts = (folders.edit, folders.target, folders.mask, folders.reference)
    sources = _by_name(folders.source)
    if not sources:
        raise UsageError(f"{folders.source} holds no file", "give the folder of the sources")
    edits, *others = ({} if part is None else _by_name(part) for part in parts)
    alone = {name: edit for name, edit in edits.items() if name not in sources and edit.suffix.lower() not in NO_MEDIA}
    for name, file in {**sources, **alone}.items():
        given = [
            None if part is None else found.get(name, part / file.name)
            for part, found in zip(parts[1:], others, strict=True)
        ]
        edit, source = edits.get(name, folders.edit / file.name), sources.get(name, folders.source / file.name)
        yield name, EditFiles(edit, source, *given)


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", "give folders for all, or files for all")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.stem in found:
            raise UsageError(f"{folder} holds {found[path.stem].name} and {path.name}", "keep one file of each name")
        found[path.stem] = path
    return found


def _describe(clips: EditClips, extractor: VideoFeatures, rows: tuple[list[Features], list[Features]]) -> None:
    """Adds the features of an edit and of what it is held against."""
    other = clips.source if clips.target is None else clips.target
    for part in (clips.edit, other):
        if isinstance(part, MetricError):
            raise part
    for part, kept in zip((clips.edit, other), rows, strict=True):
        assert isinstance(part, np.ndarray)
        kept.append(extractor.features(part))


def _distance(
    rows: tuple[list[Features], list[Features]], extractor: VideoFeatures, failed: list[MetricError], called: str
) -> Measured | Unmeasured:
    def distance() -> Measured:
        if failed:
            raise failed[0]
        if len(rows[0]) < 2:
            raise MetricError(Failure.FEATURES, "a Fréchet distance is one between sets, and there is one edit")
        edits, others = (np.concatenate([np.asarray(each, np.float64) for each in of]) for of in rows)
        return between_features(edits, others, extractor.name, called)

    return attempt(distance_name(extractor.name), distance)
