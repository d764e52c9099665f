"""The ingest stage: opens what a source lists, or draws it, checks it, names it by content, and packs it into tars."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kiwi import storage
from kiwi.configuration import RunConfiguration
from kiwi.curation.parts import Row, decide, leave
from kiwi.dataset.rows import listed_id, sample_id
from kiwi.dataset.schema import EditPair, Reason, Status
from kiwi.dataset.shards import member_address, write_shard
from kiwi.media import DEFAULT_LIMITS, MediaError, decode_image, encode_video, png_bytes, probe, resize_to_budget
from kiwi.sources.listing import SourceFailure, open_pair
from kiwi.sources.procedural import draw

LONGEST_INSTRUCTION = 4000  # characters
REFERENCE_PIXELS = 1_048_576
STAGE = "ingest"


@dataclass
class Opened:
    """One pair's bytes, ready to be packed."""

    source: bytes
    target: bytes
    extension: str
    target_extension: str
    reference: bytes | None = None


def ingest_chunk(configuration: RunConfiguration, pairs: Sequence[EditPair], root: str, tar: str) -> list[Row]:
    """Rows of one chunk, kept or failed; the clips of the kept ones in `root`/`tar`, one pair in memory at a time."""
    rows: list[Row] = []

    def members() -> Iterator[tuple[str, bytes]]:
        packed: set[str] = set()
        for pair in pairs:
            row = _listed(pair)
            rows.append(row)
            opened = _opened(configuration, pair, row)
            if opened is None:
                continue
            names = [f"{row['iid']}.source{opened.extension}", f"{row['iid']}.target{opened.target_extension}"]
            row.update(src_video=member_address(tar, names[0]), tgt_video=member_address(tar, names[1]))
            row["given_reference"] = opened.reference
            for name, data in zip(names, (opened.source, opened.target), strict=True):
                if name not in packed:  # a repeated pair has the same names and the same bytes
                    packed.add(name)
                    yield name, data

    write_shard(storage.join(root, tar), members())
    return rows


def _listed(pair: EditPair) -> Row:
    return {
        "position": pair.position,
        "iid": listed_id(pair.position, pair.src_video, pair.tgt_video, pair.prompt),
        "pair_id": pair.pair_id,
        "source_dataset": pair.source_dataset,
        "license": pair.license,
        "edit_type": pair.edit_type,
        "task": pair.task.value,
        "media": pair.media,
        "prompt": pair.prompt[: LONGEST_INSTRUCTION + 1],
        "needs_reference": pair.needs_reference,
        "src_video": "",
        "tgt_video": "",
        "src_sha256": "",
        "tgt_sha256": "",
    }


def _opened(configuration: RunConfiguration, pair: EditPair, row: Row) -> Opened | None:
    """The pair's media, with `row` marked; None, with the typed reason in `row`, where they cannot be had."""
    if pair.problem is not None:
        leave(row, STAGE, pair.problem, pair.problem_detail)
        return None
    if not pair.prompt.strip():
        leave(row, STAGE, Reason.INSTRUCTION_EMPTY, "the instruction is empty")
        return None
    if len(pair.prompt) > LONGEST_INSTRUCTION:
        detail = f"{len(pair.prompt)} characters, at most {LONGEST_INSTRUCTION}"
        leave(row, STAGE, Reason.INSTRUCTION_TOO_LONG, detail)
        return None
    if configuration.source.kind == "procedural":
        opened: Opened | None = _drawn(configuration, pair)
    else:
        opened = _read(configuration, pair, row)
    if opened is not None:
        hashes = hashlib.sha256(opened.source).hexdigest(), hashlib.sha256(opened.target).hexdigest()
        row.update(src_sha256=hashes[0], tgt_sha256=hashes[1], iid=sample_id(hashes[0], hashes[1], pair.prompt))
        decide(row, STAGE, Status.KEPT)
    return opened


def _drawn(configuration: RunConfiguration, pair: EditPair) -> Opened:
    settings = configuration.source
    frames = 1 if pair.media == "image" else settings.frames
    sample = draw(settings, pair.position, pair.edit_type, frames)
    reference = png_bytes(sample.reference) if sample.reference is not None else None
    if frames == 1:
        return Opened(png_bytes(sample.source[0]), png_bytes(sample.target[0]), ".png", ".png", reference)
    source = encode_video(None, sample.source, sample.fps, lossless=True)
    target = encode_video(None, sample.target, sample.fps, lossless=True)
    return Opened(source, target, ".mp4", ".mp4", reference)


def _read(configuration: RunConfiguration, pair: EditPair, row: Row) -> Opened | None:
    """Bounds on a file's bytes hold before it is read, those on its pictures before they are decoded."""
    try:
        media = open_pair(configuration.source, pair)
    except SourceFailure as failure:
        leave(row, STAGE, failure.reason, failure.detail)
        return None
    failed = Reason.SOURCE_UNREADABLE
    try:
        frames = probe(media.source, name=pair.src_video).frames
        failed = Reason.TARGET_UNREADABLE
        frames = max(frames, probe(media.target, name=pair.tgt_video).frames)
        row["media"] = "image" if frames == 1 else "video"
        failed = Reason.REFERENCE_UNREADABLE
        reference = None if media.reference is None else _reference(media.reference, pair.ref_image)
        failed = Reason.SOURCE_UNREADABLE
        source = _bytes(media.source)
        failed = Reason.TARGET_UNREADABLE
        return Opened(source, _bytes(media.target), media.extension, media.target_extension, reference)
    except MediaError as error:
        leave(row, STAGE, Reason.OVER_LIMITS if error.reason == "over_limits" else failed, error.message)
    except OSError as error:  # a file that went away, or a disk that no longer reads it
        leave(row, STAGE, failed, f"{pair.pair_id}: {error.strerror or error}")
    return None


def _reference(media: bytes | Path, name: str) -> bytes:
    """A given reference as PNG, upright and on white, of at most REFERENCE_PIXELS."""
    if isinstance(media, Path):
        DEFAULT_LIMITS.check_bytes(name, media.stat().st_size)
    return png_bytes(resize_to_budget(decode_image(_bytes(media), name=name)[None], REFERENCE_PIXELS)[0])


def _bytes(media: bytes | Path) -> bytes:
    return media if isinstance(media, bytes) else media.read_bytes()
