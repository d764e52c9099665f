"""What each stage after ingest does with one row: it asks its curator, and writes the answer into the row.

Steps hold a curator and settings, no state: a row's outcome depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from kiwi.configuration import CurationSettings
from kiwi.curation.curators import registry
from kiwi.curation.curators.protocols import (
    Deduplicator,
    Grounder,
    Image,
    Judgement,
    RegionKind,
    Scorer,
    Segmenter,
    Synthesizer,
    Verifier,
)
from kiwi.curation.parts import MEASURED, Row, decide
from kiwi.curation.plan import CurationError
from kiwi.dataset.schema import REFERENCE_TASKS, Reason, Status, Task
from kiwi.media import Clip, MediaError, decode, png_bytes
from kiwi.sources.pairs import GUESSED

Fetch = Callable[[str], bytes]


@dataclass(frozen=True)
class Step:
    """One stage: the columns of former stages that it reads, its curator's measures, and the work on a row.

    `work(row, fetch)` fills the row's new columns and decides; `fetch` reads a member address of the media tars.
    """

    name: str
    needs: tuple[str, ...]
    measures: tuple[str, ...]
    work: Callable[[Row, Fetch], None]


def step_of(stage: str, settings: CurationSettings) -> Step:
    """The step of a stage, with the curator that the settings choose."""
    return _STEPS[stage](settings)


def _score_step(settings: CurationSettings) -> Step:
    curator, deduplicator = registry.scorer(settings), registry.deduplicator(settings)
    needs = ("src_video", "tgt_video", "prompt", "task")
    return Step(
        "score", needs, curator.measures, lambda row, fetch: _score(row, fetch, curator, deduplicator, settings)
    )


def _ground_step(settings: CurationSettings) -> Step:
    curator = registry.grounder(settings)
    needs = ("source_frame", "target_frame", "given_reference", "prompt", "task", "edit_type")
    return Step("ground", needs, curator.measures, lambda row, fetch: _ground(row, curator))


def _segment_step(settings: CurationSettings) -> Step:
    curator = registry.segmenter(settings)
    needs = ("source_frame", "target_frame", "given_reference", *_REGION)
    return Step("segment", needs, curator.measures, lambda row, fetch: _segment(row, curator))


def _synthesize_step(settings: CurationSettings) -> Step:
    curator = registry.synthesizer(settings)
    needs = ("target_frame", "given_reference", "mask_png", "region_kind")
    return Step("synthesize", needs, curator.measures, lambda row, fetch: _synthesize(row, curator))


def _verify_step(settings: CurationSettings) -> Step:
    curator, deduplicator = registry.verifier(settings), registry.deduplicator(settings)
    needs = ("source_frame", "target_frame", "given_reference", "mask_png", "region_kind", "ref_image_bytes")
    return Step("verify", needs, curator.measures, lambda row, fetch: _verify(row, curator, deduplicator))


_REGION = ("region_kind", "region_x1", "region_y1", "region_x2", "region_y2")
_STEPS: dict[str, Callable[[CurationSettings], Step]] = {
    "score": _score_step,
    "ground": _ground_step,
    "segment": _segment_step,
    "synthesize": _synthesize_step,
    "verify": _verify_step,
}


def _score(row: Row, fetch: Fetch, curator: Scorer, deduplicator: Deduplicator, settings: CurationSettings) -> None:
    """Decodes both clips once: checks that they fit each other, scores them, and keeps the first frames."""
    source = _decoded(row, fetch(row["src_video"]), Reason.SOURCE_UNREADABLE, settings)
    if source is None:
        return
    target = _decoded(row, fetch(row["tgt_video"]), Reason.TARGET_UNREADABLE, settings)
    if target is None:
        return
    height, width = source.source_size
    row.update(width=width, height=height, frames=len(source.frames), fps=source.fps)
    mismatch = _mismatch(source, target)
    if mismatch is not None:
        decide(row, "score", Status.REJECTED, *mismatch)
        return
    score = curator.score(source.frames, target.frames, row["prompt"], Task(row["task"]))
    _answered(row, "score", score)
    row.update(score_name=score.name, score_overall=score.overall)
    if row["status"] != Status.KEPT:
        return
    if score.overall < max(settings.min_score, settings.min_reference_score):
        needed = settings.min_score if score.overall < settings.min_score else settings.min_reference_score
        detail = f"{score.name} {score.overall:.2f}, needed {needed:.2f}"
        decide(row, "score", Status.REJECTED, Reason.SCORE_BELOW_THRESHOLD, detail)
    elif len(target.frames) == 1:
        decide(row, "score", Status.REJECTED, Reason.IMAGE_PAIR, "references are taken from video")
    else:
        row["source_frame"] = png_bytes(source.frames[0], compression=1)
        row["target_frame"] = png_bytes(target.frames[0], compression=1)
        row["target_fingerprint"] = deduplicator.fingerprint(target.frames[0])


def _decoded(row: Row, data: bytes, unreadable: Reason, settings: CurationSettings) -> Clip | None:
    name = "source" if unreadable is Reason.SOURCE_UNREADABLE else "target"
    try:
        return decode(data, pixel_budget=settings.pixel_budget, max_frames=settings.max_frames, name=name)
    except MediaError as error:
        reason = Reason.OVER_LIMITS if error.reason == "over_limits" else unreadable
        decide(row, "score", Status.FAILED, reason, error.message)
        return None


def _mismatch(source: Clip, target: Clip) -> tuple[Reason, str] | None:
    if source.source_size != target.source_size:
        sizes = [f"{width}x{height}" for height, width in (source.source_size, target.source_size)]
        return Reason.SIZE_MISMATCH, f"source {sizes[0]}, target {sizes[1]}"
    lengths = len(source.frames), len(target.frames)
    spare = 1 if min(lengths) >= 16 else 0  # encoders lose a last frame
    if abs(lengths[0] - lengths[1]) > spare or source.truncated != target.truncated:
        return Reason.LENGTH_MISMATCH, f"source {lengths[0]} frames, target {lengths[1]}"
    if source.fps and target.fps and abs(source.fps - target.fps) > 0.02 * source.fps:
        return Reason.LENGTH_MISMATCH, f"source {source.fps:.2f} frames a second, target {target.fps:.2f}"
    return None


def _ground(row: Row, curator: Grounder) -> None:
    """The task filter, then the edit's place; a pair with a reference of its own needs none."""
    task, declared = Task(row["task"]), bool(row["edit_type"]) and not row["edit_type"].startswith(GUESSED)
    if declared and task not in REFERENCE_TASKS:
        decide(row, "ground", Status.REJECTED, Reason.TASK_NOT_ELIGIBLE, task.value)
        return
    if row["given_reference"] is not None:
        row["region_kind"] = _kind(task)
        decide(row, "ground", Status.KEPT)
        return
    grounding = curator.ground(_picture(row["source_frame"]), _picture(row["target_frame"]), row["prompt"], task)
    _answered(row, "ground", grounding)
    row["region_kind"] = grounding.kind
    if grounding.box is not None:
        row.update(zip(_REGION[1:], grounding.box, strict=True))
    if not declared and task not in REFERENCE_TASKS and row["reason"] != Reason.GLOBAL_CHANGE:
        detail = f"{task.value} (guessed from the instruction)"
        decide(row, "ground", Status.REJECTED, Reason.TASK_NOT_ELIGIBLE, detail)


def _segment(row: Row, curator: Segmenter) -> None:
    if row["given_reference"] is not None:
        decide(row, "segment", Status.KEPT)
        return
    box = (row["region_x1"], row["region_y1"], row["region_x2"], row["region_y2"])
    found = curator.segment(_picture(row["source_frame"]), _picture(row["target_frame"]), box, _region_kind(row))
    _answered(row, "segment", found)
    if found.mask is not None:
        row["mask_png"] = png_bytes(found.mask.astype(np.uint8) * np.uint8(255), compression=1)


def _synthesize(row: Row, curator: Synthesizer) -> None:
    if row["given_reference"] is not None:
        row.update(ref_image_bytes=row["given_reference"], ref_origin="given")
        decide(row, "synthesize", Status.KEPT)
        return
    mask = _picture(row["mask_png"])[..., 0] > 127
    made = curator.synthesize(_picture(row["target_frame"]), np.asarray(mask, bool), _region_kind(row))
    _answered(row, "synthesize", made)
    if made.image is not None:
        row.update(ref_image_bytes=png_bytes(made.image), ref_origin=made.origin)


def _verify(row: Row, curator: Verifier, deduplicator: Deduplicator) -> None:
    given = row["given_reference"] is not None
    reference = _picture(row["ref_image_bytes"])
    mask = None if given else np.asarray(_picture(row["mask_png"])[..., 0] > 127, bool)
    source, target = _picture(row["source_frame"]), _picture(row["target_frame"])
    verdict = curator.verify(reference, source, target, mask, _region_kind(row))
    _answered(row, "verify", verdict)
    row["verify_consistency"] = verdict.consistency
    row["reference_fingerprint"] = deduplicator.fingerprint(reference)


def _answered(row: Row, stage: str, answer: Judgement) -> None:
    """Writes a curator's measures and its verdict into the row."""
    row.update({MEASURED[stage] + name: value for name, value in answer.measures.items()})
    status = Status.KEPT if answer.reason is None else Status.REJECTED
    decide(row, stage, status, answer.reason, answer.detail)


def _kind(task: Task) -> RegionKind:
    return "foreground" if task is Task.BACKGROUND_CHANGE else "object"


def _region_kind(row: Row) -> RegionKind:
    return cast(RegionKind, row["region_kind"])


def _picture(data: bytes) -> Image:
    """An image of our own making: PNG, no orientation, no transparency."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise CurationError("a working image of an earlier stage does not decode", "delete this curation's folder")
    return np.asarray(pixels, np.uint8)
