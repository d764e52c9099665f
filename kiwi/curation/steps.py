"""What each stage after ingest does with the rows of a chunk: it asks its curator, and writes the answers into them.

Steps hold a curator and settings, no state: a row's outcome depends on that row alone. Rows reach a curator as a
stream, decoded one after the other as it takes them.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar, cast

import cv2
import numpy as np

from kiwi.configuration import CurationSettings
from kiwi.curation.curators import registry
from kiwi.curation.curators.protocols import (
    Deduplicator,
    Grounder,
    GroundRequest,
    Image,
    Judgement,
    RegionKind,
    Score,
    Scorer,
    ScoreRequest,
    Segmenter,
    SegmentRequest,
    Synthesizer,
    SynthesizeRequest,
    Verifier,
    VerifyRequest,
)
from kiwi.curation.errors import CurationError
from kiwi.curation.parts import MEASURED, Row, decide, leave
from kiwi.dataset.schema import REFERENCE_TASKS, Reason, Status, Task
from kiwi.dataset.shards import ShardError
from kiwi.media import Clip, MediaError, decode, png_bytes
from kiwi.sources.pairs import GUESSED
from kiwi.storage import StorageError

Fetch = Callable[[str], bytes]
Request = TypeVar("Request")
Answer = TypeVar("Answer", bound=Judgement)


@dataclass(frozen=True)
class Step:
    """One stage: the columns of former stages that it reads, its curator's measures, and the work on a chunk's rows.

    `work(rows, fetch)` fills the standing rows' new columns and decides them; `fetch` reads a member address of the
    media tars. `curator` is asked what it spent on a server, if it asks one (usage_of).
    """

    name: str
    needs: tuple[str, ...]
    measures: tuple[str, ...]
    work: Callable[[Sequence[Row], Fetch], None]
    curator: object = None


def usage_of(step: Step) -> dict[str, float]:
    """Requests and tokens that the step's curator has spent so far; nothing for one that asks no server."""
    usage = getattr(getattr(step.curator, "client", None), "usage", None)
    counts = {} if usage is None else {each.name: getattr(usage, each.name) for each in fields(usage)}
    return {f"service_{name}": float(count) for name, count in counts.items()}


def step_of(stage: str, settings: CurationSettings, *, seed: int = 0, cache: str | None = None) -> Step:
    """The step of a stage, with the curator that the settings choose.

    Args:
        seed: of the run; a sample's own seed is made of it and of the sample's identity.
        cache: where the replies of a server are kept.
    """
    return _STEPS[stage](settings, seed, cache)


def _score_step(settings: CurationSettings, seed: int, cache: str | None) -> Step:
    curator = registry.scorer(settings, cache)
    needs = ("iid", "src_video", "tgt_video", "prompt", "task", "edit_type", "media", "given_reference")
    return Step("score", needs, curator.measures, lambda rows, fetch: _score(rows, fetch, curator, settings), curator)


def _ground_step(settings: CurationSettings, seed: int, cache: str | None) -> Step:
    curator = registry.grounder(settings, cache)
    needs = ("iid", "given_reference", "prompt", "task", "edit_type", *_FRAMES)
    return Step("ground", needs, curator.measures, lambda rows, fetch: _ground(rows, fetch, curator, settings), curator)


def _segment_step(settings: CurationSettings, seed: int, cache: str | None) -> Step:
    curator = registry.segmenter(settings)
    deduplicator = registry.deduplicator(settings) if settings.unique_crops else None
    needs = ("iid", "given_reference", *_REGION, *_FRAMES)

    def work(rows: Sequence[Row], fetch: Fetch) -> None:
        _segment(rows, fetch, curator, deduplicator, settings)

    return Step("segment", needs, curator.measures, work, curator)


def _synthesize_step(settings: CurationSettings, seed: int, cache: str | None) -> Step:
    curator = registry.synthesizer(settings)
    needs = ("iid", "prompt", "given_reference", "mask_png", "region_kind", *_FRAMES)

    def work(rows: Sequence[Row], fetch: Fetch) -> None:
        _synthesize(rows, fetch, curator, seed, settings)

    return Step("synthesize", needs, curator.measures, work, curator)


def _verify_step(settings: CurationSettings, seed: int, cache: str | None) -> Step:
    curator, deduplicator = registry.verifier(settings, cache), registry.deduplicator(settings)
    needs = ("iid", "prompt", "task", "given_reference", "mask_png", "region_kind", "ref_image_bytes", *_FRAMES)

    def work(rows: Sequence[Row], fetch: Fetch) -> None:
        _verify(rows, fetch, curator, deduplicator, settings)

    return Step("verify", needs, curator.measures, work, curator)


_REGION = ("region_kind", "region_x1", "region_y1", "region_x2", "region_y2")
_FRAMES = ("source_frame", "target_frame", "src_video", "tgt_video")
_STEPS: dict[str, Callable[[CurationSettings, int, str | None], Step]] = {
    "score": _score_step,
    "ground": _ground_step,
    "segment": _segment_step,
    "synthesize": _synthesize_step,
    "verify": _verify_step,
}


def _answers(
    stage: str,
    rows: Sequence[Row],
    ask: Callable[[Row], Request | None],
    answer: Callable[[Iterable[Request]], Iterator[Answer]],
) -> Iterator[tuple[Row, Answer]]:
    """Each standing row that `ask` has a request for, with its answer. `ask` decides the others itself.

    Whatever one row trips over while it is made ready becomes its failure, with the error's words.
    """
    asked: deque[Row] = deque()

    def requests() -> Iterator[Request]:
        for row in rows:
            if row["status"] != Status.KEPT:
                continue
            try:
                request = ask(row)
            except (ShardError, StorageError, CurationError, MemoryError):  # the machine's fault, not the row's
                raise
            except Exception as error:  # noqa: BLE001 - a row must not take its shard along
                leave(row, stage, Reason.CURATOR_ERROR, f"{type(error).__name__}: {error}")
                continue
            if request is not None:
                asked.append(row)
                yield request

    for given in answer(requests()):
        row = asked.popleft()
        _answered(row, stage, given)
        yield row, given
    if asked:
        raise CurationError(f"{stage}: {len(asked)} rows were asked about and not answered", "the curator is at fault")


def _answered(row: Row, stage: str, answer: Judgement) -> None:
    """Writes a curator's measures and its verdict into the row."""
    row.update({MEASURED[stage] + name: value for name, value in answer.measures.items()})
    if answer.reason is None:
        decide(row, stage, Status.KEPT)
    else:
        leave(row, stage, answer.reason, answer.detail)


def _score(rows: Sequence[Row], fetch: Fetch, curator: Scorer, settings: CurationSettings) -> None:
    """Decodes both clips once: checks that they fit each other, scores them, and keeps the first frames.

    The thresholds on the whole score are applied later, by whoever reads it (kiwi/curation/stages.py).
    """
    if settings.only_reference_tasks:
        for row in rows:
            if row["status"] == Status.KEPT:
                _exit_by_task(row)
    if settings.min_first_frame_score > 0:
        _exit_by_first_frame(rows, fetch, curator, settings)
    firsts: dict[int, tuple[Image, Image]] = {}

    def ask(row: Row) -> ScoreRequest | None:
        clips = _clips(row, fetch, settings, settings.max_frames, curator.sample_fps)
        if clips is None:
            return None
        source, target = clips
        height, width = source.source_size
        row.update(width=width, height=height, frames=source.total_frames, fps=source.fps)
        mismatch = _mismatch(source, target)
        if mismatch is not None:
            leave(row, "score", *mismatch)
            return None
        row["frames_in_target"] = target.total_frames
        firsts[id(row)] = source.frames[0], target.frames[0]
        return ScoreRequest(row["iid"], source.frames, target.frames, row["prompt"], Task(row["task"]))

    for row, score in _answers("score", rows, ask, curator.score):
        first = firsts.pop(id(row))
        row.update(score_name=score.name, score_overall=score.overall)
        if row["status"] != Status.KEPT:
            continue
        if score.overall is None:
            leave(row, "score", Reason.CURATOR_ERROR, f"{curator.name} gave neither a score nor a reason")
        elif row.pop("frames_in_target") == 1:
            leave(row, "score", Reason.IMAGE_PAIR, "references are taken from video")
        elif score.overall >= needed_score(settings):
            row["source_frame"], row["target_frame"] = (png_bytes(frame, compression=1) for frame in first)


def needed_score(settings: CurationSettings) -> float:
    """The score that a row needs to become reference data."""
    return max(settings.min_score, settings.min_reference_score)


def apply_score_threshold(row: Row, settings: CurationSettings) -> None:
    """Decides a row that the score stage measured and kept."""
    if row["status"] == Status.KEPT and row["score_overall"] < needed_score(settings):
        detail = f"{row['score_name']} {row['score_overall']:.2f}, needed {needed_score(settings):.2f}"
        leave(row, "score", Reason.SCORE_BELOW_THRESHOLD, detail)


def _exit_by_task(row: Row) -> None:
    if row["media"] == "image":
        leave(row, "score", Reason.IMAGE_PAIR, "references are taken from video")
    elif Task(row["task"]) not in REFERENCE_TASKS and (_declared(row) or row["given_reference"] is None):
        guessed = "" if _declared(row) else " (guessed from the instruction)"
        leave(row, "score", Reason.TASK_NOT_ELIGIBLE, f"{row['task']}{guessed}, before it was scored")


def _exit_by_first_frame(rows: Sequence[Row], fetch: Fetch, curator: Scorer, settings: CurationSettings) -> None:
    def ask(row: Row) -> ScoreRequest | None:
        clips = _clips(row, fetch, settings, 1, None)
        if clips is None or clips[0].frames.shape != clips[1].frames.shape:
            return None  # the look at the whole clips says what is wrong with them
        source, target = clips
        return ScoreRequest(row["iid"], source.frames, target.frames, row["prompt"], Task(row["task"]))

    answers: Iterator[tuple[Row, Score]] = _answers("score", rows, ask, curator.score)
    for row, score in answers:
        for name in score.measures:  # those of the whole clip go there
            row.pop(MEASURED["score"] + name, None)
        row["score_first_frame"] = score.overall
        if row["status"] == Status.FAILED:
            continue
        decide(row, "ingest", Status.KEPT)
        if score.overall is None:
            leave(row, "score", Reason.CURATOR_ERROR, f"{curator.name} gave neither a score nor a reason")
        elif score.overall < settings.min_first_frame_score:
            detail = f"{score.name} {score.overall:.2f} of the first frame, needed {settings.min_first_frame_score:.2f}"
            leave(row, "score", Reason.FIRST_FRAME_BELOW_THRESHOLD, detail)


def _clips(
    row: Row, fetch: Fetch, settings: CurationSettings, max_frames: int, sample_fps: float | None
) -> tuple[Clip, Clip] | None:
    """Source and target of a row; None, with the row marked, where one cannot be decoded."""
    clips = []
    for column, name, unreadable in (
        ("src_video", "source", Reason.SOURCE_UNREADABLE),
        ("tgt_video", "target", Reason.TARGET_UNREADABLE),
    ):
        try:
            data = fetch(row[column])
            budget = settings.pixel_budget
            clips.append(decode(data, pixel_budget=budget, max_frames=max_frames, sample_fps=sample_fps, name=name))
        except MediaError as error:
            leave(row, "score", Reason.OVER_LIMITS if error.reason == "over_limits" else unreadable, error.message)
            return None
    return clips[0], clips[1]


def _mismatch(source: Clip, target: Clip) -> tuple[Reason, str] | None:
    if source.source_size != target.source_size:
        sizes = [f"{width}x{height}" for height, width in (source.source_size, target.source_size)]
        return Reason.SIZE_MISMATCH, f"source {sizes[0]}, target {sizes[1]}"
    lengths = source.total_frames, target.total_frames
    spare = 1 if min(lengths) >= 16 else 0  # encoders lose a last frame
    if abs(lengths[0] - lengths[1]) > spare or source.truncated != target.truncated:
        return Reason.LENGTH_MISMATCH, f"source {lengths[0]} frames, target {lengths[1]}"
    if source.fps and target.fps and abs(source.fps - target.fps) > 0.02 * source.fps:
        return Reason.LENGTH_MISMATCH, f"source {source.fps:.2f} frames a second, target {target.fps:.2f}"
    return None


def _ground(rows: Sequence[Row], fetch: Fetch, curator: Grounder, settings: CurationSettings) -> None:
    """The task filter, then the edit's place; a pair with a reference of its own needs none."""

    def ask(row: Row) -> GroundRequest | None:
        task = Task(row["task"])
        if _declared(row) and task not in REFERENCE_TASKS:
            leave(row, "ground", Reason.TASK_NOT_ELIGIBLE, task.value)
            return None
        if row["given_reference"] is not None:
            row["region_kind"] = "foreground" if task is Task.BACKGROUND_CHANGE else "object"
            decide(row, "ground", Status.KEPT)
            return None
        return GroundRequest(row["iid"], *_pictures(row, fetch, settings), row["prompt"], task)

    for row, grounding in _answers("ground", rows, ask, curator.ground):
        row["region_kind"] = grounding.kind
        if grounding.box is not None:
            row.update(zip(_REGION[1:], grounding.box, strict=True))
        guessed = not _declared(row) and Task(row["task"]) not in REFERENCE_TASKS
        if guessed and row["status"] != Status.FAILED and row["reason"] != Reason.GLOBAL_CHANGE:
            leave(row, "ground", Reason.TASK_NOT_ELIGIBLE, f"{row['task']} (guessed from the instruction)")


def _declared(row: Row) -> bool:
    """Whether the source itself says what kind of edit it is."""
    return bool(row["edit_type"]) and not row["edit_type"].startswith(GUESSED)


def _segment(
    rows: Sequence[Row],
    fetch: Fetch,
    curator: Segmenter,
    deduplicator: Deduplicator | None,
    settings: CurationSettings,
) -> None:
    def ask(row: Row) -> SegmentRequest | None:
        if row["given_reference"] is not None:
            decide(row, "segment", Status.KEPT)
            return None
        box = (row["region_x1"], row["region_y1"], row["region_x2"], row["region_y2"])
        return SegmentRequest(row["iid"], *_pictures(row, fetch, settings), box, _region_kind(row))

    for row, found in _answers("segment", rows, ask, curator.segment):
        if found.mask is not None:
            row["mask_png"] = png_bytes(found.mask.astype(np.uint8) * np.uint8(255), compression=1)
    if deduplicator is not None:
        cut = [row for row in rows if row["status"] == Status.KEPT and row["given_reference"] is None]
        crops = (_crop(row, _pictures(row, fetch, settings)[1]) for row in cut)
        for row, print_ in zip(cut, deduplicator.fingerprints(crops), strict=True):
            row["crop_fingerprint"] = print_


def _crop(row: Row, target: Image) -> Image:
    """What a reference would be made of: the object on white, or the frame with its foreground greyed out."""
    mask = _picture(row["mask_png"])[..., 0] > 127
    if row["region_kind"] == "foreground":
        return np.asarray(np.where(mask[..., None], np.uint8(128), target), np.uint8)
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = slice(down[0], down[-1] + 1), slice(across[0], across[-1] + 1)
    return np.asarray(np.where(mask[window][..., None], target[window], np.uint8(255)), np.uint8)


def _synthesize(rows: Sequence[Row], fetch: Fetch, curator: Synthesizer, seed: int, settings: CurationSettings) -> None:
    def ask(row: Row) -> SynthesizeRequest | None:
        if row["given_reference"] is not None:
            row.update(ref_image_bytes=row["given_reference"], ref_origin="given")
            decide(row, "synthesize", Status.KEPT)
            return None
        target = _pictures(row, fetch, settings)[1]
        mask = np.asarray(_picture(row["mask_png"])[..., 0] > 127, bool)
        return SynthesizeRequest(
            row["iid"], target, mask, _region_kind(row), row["prompt"], sample_seed(seed, row["iid"])
        )

    for row, made in _answers("synthesize", rows, ask, curator.synthesize):
        if made.image is not None:
            row.update(ref_image_bytes=png_bytes(made.image), ref_origin=made.origin)


def sample_seed(seed: int, iid: str) -> int:
    """A sample's own seed, 63 bits, the same wherever and whenever it is worked on."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{iid}".encode()).digest()[:8], "big") >> 1


def _verify(
    rows: Sequence[Row],
    fetch: Fetch,
    curator: Verifier,
    deduplicator: Deduplicator,
    settings: CurationSettings,
) -> None:
    def ask(row: Row) -> VerifyRequest:
        given = row["given_reference"] is not None
        mask = None if given else np.asarray(_picture(row["mask_png"])[..., 0] > 127, bool)
        source, target = _pictures(row, fetch, settings)
        reference, kind, task = _picture(row["ref_image_bytes"]), _region_kind(row), Task(row["task"])
        return VerifyRequest(row["iid"], reference, source, target, mask, kind, row["prompt"], task)

    for row, verdict in _answers("verify", rows, ask, curator.verify):
        row["verify_consistency"] = verdict.consistency
    standing = [row for row in rows if row["status"] == Status.KEPT]
    references = deduplicator.fingerprints(_picture(row["ref_image_bytes"]) for row in standing)
    for row, print_ in zip(standing, references, strict=True):
        row["reference_fingerprint"] = print_
    targets = deduplicator.fingerprints(_pictures(row, fetch, settings)[1] for row in standing)
    for row, print_ in zip(standing, targets, strict=True):
        row["target_fingerprint"] = print_


def _pictures(row: Row, fetch: Fetch, settings: CurationSettings) -> tuple[Image, Image]:
    """The first frames of source and target: those that the score stage kept; else, where the score threshold was
    higher when it was scored, decoded again."""
    if row["source_frame"] is not None:
        return _picture(row["source_frame"]), _picture(row["target_frame"])
    budget = settings.pixel_budget
    first = [decode(fetch(row[name]), pixel_budget=budget, max_frames=1) for name in ("src_video", "tgt_video")]
    return first[0].frames[0], first[1].frames[0]


def _region_kind(row: Row) -> RegionKind:
    return cast(RegionKind, row["region_kind"])


def _picture(data: bytes) -> Image:
    """An image of our own making: PNG, no orientation, no transparency."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise CurationError("a working image of an earlier stage does not decode", "delete this curation's folder")
    return np.asarray(pixels, np.uint8)
