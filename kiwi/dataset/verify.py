"""Checks that a dataset is what its manifest says: files, hashes, counts, columns, reasons, and media that decode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from kiwi.dataset.manifest import CARD, MANIFEST, ManifestError, dataset_digest, read_manifest, sha256_of
from kiwi.dataset.reader import open_media, read_rows
from kiwi.dataset.rows import COLUMNS
from kiwi.dataset.schema import FAILURES, Reason, Status, Task, TrainsAs
from kiwi.dataset.shards import ShardError
from kiwi.dataset.statistics import FunnelError, funnel_of

_SHOWN = 20
_LOOK = 128 * 128  # pixels a frame: every frame is decoded, none is kept large


@dataclass
class Verification:
    """What was checked and what was found. `passed` if there are no problems; each problem is one line."""

    folder: Path
    problems: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.problems

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


def verify_dataset(
    folder: Path | str,
    *,
    decode_media: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Verifies a dataset folder. It raises nothing for a broken dataset: it tells.

    Args:
        decode_media: how many rows' clips and references to decode, evenly spread over the useful rows; None for all,
            0 for none (members are then only looked up and read).
        progress: called with rows whose media were read and rows in all.
    """
    found = Verification(Path(folder))
    try:
        manifest = read_manifest(found.folder)
    except ManifestError as error:
        found.problems.append(error.message)
        return found
    _check_files(found, manifest)
    if found.problems:
        return found
    try:
        rows = read_rows(found.folder)
    except ManifestError as error:
        found.problems.append(error.message)
        return found
    _check_columns(found, rows)
    if found.problems:
        return found
    _check_rows(found, rows, manifest)
    _check_media(found, rows, decode_media, progress)
    return found


def _check_files(found: Verification, manifest: Mapping[str, Any]) -> None:
    for entry in manifest["files"]:
        path = found.folder / str(entry["path"])
        if not path.is_file():
            found.problems.append(f"{entry['path']}: missing")
        elif path.stat().st_size != entry["bytes"]:
            found.problems.append(f"{entry['path']}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}")
        elif sha256_of(path) != entry["sha256"]:
            found.problems.append(f"{entry['path']}: content differs from the manifest's hash")
    found.checked["files"] = len(manifest["files"])
    listed = {str(entry["path"]) for entry in manifest["files"]} | {MANIFEST, CARD}
    there = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    found.problems += [f"{name}: is not in the manifest" for name in sorted(there - listed)[:_SHOWN]]
    found.expect((found.folder / CARD).is_file(), f"{CARD}: missing")
    digest = dataset_digest(manifest["files"], manifest["parameters"])
    found.expect(digest == manifest["digest"], f"digest {manifest['digest'][:16]} should be {digest[:16]}")


def _check_columns(found: Verification, rows: pl.DataFrame) -> None:
    for name, kind in COLUMNS.items():
        if name not in rows.columns:
            found.problems.append(f"column {name}: missing")
        elif rows.schema[name] != kind:
            found.problems.append(f"column {name}: {rows.schema[name]}, expected {kind()}")


def _check_rows(found: Verification, rows: pl.DataFrame, manifest: Mapping[str, Any]) -> None:
    found.checked["rows"] = rows.height
    for name, words in (
        ("status", set(Status)),
        ("trains_as", set(TrainsAs)),
        ("task", set(Task)),
        ("reason", {"", *Reason}),
        ("split", {"train", "benchmark"}),
    ):
        strange = sorted(set(rows[name].unique().to_list()) - {str(word) for word in words})
        found.expect(not strange, f"column {name}: unknown {', '.join(map(repr, strange[:5]))}")
    failed = [str(reason) for reason in FAILURES]
    kept, rejected = pl.col("status") == Status.KEPT, pl.col("status") == Status.REJECTED
    useful = pl.col("trains_as") != TrainsAs.NOTHING
    quadruplet = pl.col("trains_as") == TrainsAs.QUADRUPLET
    for wrong, problem in (
        (kept & (pl.col("reason") != ""), "kept, and yet with a reason"),
        (~kept & (pl.col("reason") == ""), "left without a reason"),
        (rejected & pl.col("reason").is_in(failed), "rejected for what is a failure"),
        ((pl.col("status") == Status.FAILED) & ~pl.col("reason").is_in(failed), "failed for what is a rejection"),
        (quadruplet & ~kept, "a quadruplet that was not kept"),
        (quadruplet & pl.col("ref_image_bytes").is_null(), "a quadruplet without a reference"),
        (useful & ((pl.col("src_video") == "") | (pl.col("tgt_video") == "")), "trains without its media"),
    ):
        rows_wrong = rows.filter(wrong)["position"].to_list()
        found.expect(not rows_wrong, f"{len(rows_wrong)} rows {problem} (positions {rows_wrong[:5]})")
    found.expect(rows["position"].is_unique().all(), "positions come twice")
    found.expect(rows["position"].is_sorted(), "rows are out of order")
    identities = rows.filter(useful)["iid"]
    found.expect(identities.is_unique().all(), "samples that train come twice (iid)")
    shared = rows.filter(useful).group_by("src_sha256").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    found.expect(shared.is_empty(), f"{shared.height} source clips are in both splits")
    for name, kind in (("quadruplets", TrainsAs.QUADRUPLET), ("instruction", TrainsAs.INSTRUCTION)):
        count = rows.filter(pl.col("trains_as") == kind).height
        found.expect(count == manifest[name], f"{count} rows train as {kind}, the manifest says {manifest[name]}")
    found.expect(rows.height == manifest["pairs"], f"{rows.height} rows, the manifest says {manifest['pairs']}")
    try:
        found.expect(funnel_of(rows) == manifest["funnel"], "the funnel of the rows is not the manifest's")
    except FunnelError as error:
        found.problems.append(error.message)


def _check_media(
    found: Verification, rows: pl.DataFrame, decode_media: int | None, progress: Callable[[int, int], None]
) -> None:
    wanted = ["position", "src_video", "tgt_video", "trains_as", "frames", "ref_image_bytes"]
    with_media = rows.filter((pl.col("src_video") != "") & (pl.col("tgt_video") != "")).select(wanted)
    useful = [place for place, kind in enumerate(with_media["trains_as"]) if kind != TrainsAs.NOTHING]
    count = len(useful) if decode_media is None else min(decode_media, len(useful))
    decoded = {useful[(number * len(useful)) // count] for number in range(count)} if count else set()
    problems: list[str] = []
    for place, row in enumerate(with_media.iter_rows(named=True)):
        problem = _media_problem(found.folder, row, place in decoded)
        if problem:
            problems.append(f"row {row['position']}: {problem}")
        progress(place + 1, with_media.height)
    found.problems += problems[:_SHOWN]
    if len(problems) > _SHOWN:
        found.problems.append(f"… and {len(problems) - _SHOWN} more rows with broken media")
    found.checked.update(media=2 * with_media.height, decoded=2 * len(decoded))


def _media_problem(folder: Path, row: Mapping[str, Any], decodes: bool) -> str:
    from kiwi.media import MediaError, decode, decode_image

    try:
        source, target = open_media(folder, row["src_video"]), open_media(folder, row["tgt_video"])
        if not decodes:
            return ""
        before, after = decode(source, pixel_budget=_LOOK), decode(target, pixel_budget=_LOOK)
        if row["ref_image_bytes"]:
            decode_image(row["ref_image_bytes"], name="its reference")
    except (ShardError, MediaError) as error:
        return error.message
    counted = min(len(before.frames), len(after.frames))
    return "" if counted else "a clip without frames"
