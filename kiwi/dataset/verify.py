"""Checks that a dataset is what its manifest says: files, hashes, counts, columns, reasons, media, references.

Rows are read part by part, and references batch by batch, so that memory does not grow with the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kiwi.dataset.manifest import CARD, MANIFEST, ManifestError, dataset_digest, read_manifest
from kiwi.dataset.reader import open_media
from kiwi.dataset.rows import COLUMNS, RELEASED
from kiwi.dataset.schema import FAILURES, Reason, Status, Task, TrainsAs
from kiwi.dataset.shards import ShardError
from kiwi.dataset.statistics import FunnelError, collected, funnel_of
from kiwi.hashing import sha256_of

QUICK = 32  # rows whose media and references a quick verification decodes
SMALLEST_SIDE = 8  # pixels of a reference's shorter side
_SHOWN = 20
_LOOK = 128 * 128  # pixels a frame: every frame is decoded, none is kept large
_BATCH = 256
_STATED = (
    ("status", set(Status)),
    ("trains_as", set(TrainsAs)),
    ("task", set(Task)),
    ("reason", {"", *Reason}),
    ("split", {"train", "benchmark"}),
)


class Repeats(Protocol):
    """Looks for near-duplicates among quadruplets (kiwi/curation/repeats.py)."""

    def see(self, position: int, reference: NDArray[np.uint8], target: bytes) -> None:
        """Takes note of one quadruplet; the reference is uint8 [H,W,3], the target a clip's file."""
        ...

    def found(self) -> list[tuple[int, int]]:
        """(position, position of the earlier one that it repeats)."""
        ...


@dataclass
class Verification:
    """What was checked and what was found. `passed` if there are no problems; each problem is one line.

    `unchecked` says what was left out, and why.
    """

    folder: Path
    problems: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.problems

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)

    def said(self) -> dict[str, Any]:
        """JSON-ready."""
        found = {"problems": self.problems, "checked": self.checked, "unchecked": self.unchecked}
        return {"folder": str(self.folder), "passed": self.passed, **found}


def verify_dataset(
    folder: Path | str,
    *,
    decode_media: int | None = None,
    hashes: bool = True,
    repeats: Repeats | str = "no deduplicator was asked to look for repetitions",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Verifies a dataset folder. It raises nothing for a broken dataset: it tells.

    Args:
        decode_media: how many rows' clips and references to decode, evenly spread over the useful rows; None for all,
            0 for none (members are then only looked up and read).
        hashes: hash every file; else compare sizes alone.
        repeats: looks for near-duplicates among the quadruplets that are decoded; or why nothing does.
        progress: called with rows whose media were read and rows in all.
    """
    found = Verification(Path(folder))
    try:
        manifest = read_manifest(found.folder)
        _check_files(found, manifest, hashes)
        if found.problems:
            return found
        parts = [found.folder / str(entry["path"]) for entry in manifest["files"] if entry["path"].endswith(".parquet")]
        _check_columns(found, parts)
        if found.problems:
            return found
        rows = pl.scan_parquet(parts)
        _check_rows(found, rows, manifest)
        _check_media(found, parts, rows, _Look(decode_media, repeats, progress))
    except ManifestError as error:
        found.problems.append(error.message)
    except (OSError, pl.exceptions.PolarsError, pa.ArrowException) as error:
        found.problems.append(f"the rows cannot be read: {str(error).splitlines()[0]}")
    return found


def _check_files(found: Verification, manifest: Mapping[str, Any], hashes: bool) -> None:
    for entry in manifest["files"]:
        path = found.folder / str(entry["path"])
        if not path.is_file():
            found.problems.append(f"{entry['path']}: missing")
        elif path.stat().st_size != entry["bytes"]:
            found.problems.append(f"{entry['path']}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}")
        elif hashes and sha256_of(path) != entry["sha256"]:
            found.problems.append(f"{entry['path']}: content differs from the manifest's hash")
    found.checked["files"] = len(manifest["files"])
    found.checked["hashes"] = len(manifest["files"]) if hashes else 0
    if not hashes:
        found.unchecked.append("hashes of files: only their sizes were compared")
    listed = {str(entry["path"]) for entry in manifest["files"]} | {MANIFEST, CARD}
    there = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    found.problems += [f"{name}: is not in the manifest" for name in sorted(there - listed)[:_SHOWN]]
    found.expect((found.folder / CARD).is_file(), f"{CARD}: missing")
    digest = dataset_digest(manifest["files"], manifest["parameters"])
    found.expect(digest == manifest["digest"], f"digest {manifest['digest'][:16]} should be {digest[:16]}")


def _check_columns(found: Verification, parts: list[Path]) -> None:
    """Every part has the dataset's columns, the released RefVIE's among them, and all parts the same."""
    first: dict[str, pl.DataType] | None = None
    for part in parts:
        schema = dict(pl.read_parquet_schema(part))
        for name, kind in COLUMNS.items():
            of = " (a column of the released RefVIE)" if name in RELEASED else ""
            if name not in schema:
                found.problems.append(f"{part.name}: column {name}: missing{of}")
            elif schema[name] != kind:
                found.problems.append(f"{part.name}: column {name}: {schema[name]}, expected {kind()}{of}")
        found.expect(first is None or schema == first, f"{part.name}: other columns than the first part")
        first = first or schema
        if found.problems:
            return
    found.expect(bool(parts), "no part holds rows")


def _check_rows(found: Verification, rows: pl.LazyFrame, manifest: Mapping[str, Any]) -> None:
    for name, words in _STATED:
        strange = sorted(set(collected(rows, pl.col(name).unique()).to_series()) - {str(word) for word in words})
        found.expect(not strange, f"column {name}: unknown {', '.join(map(repr, strange[:5]))}")
    useful = pl.col("trains_as") != TrainsAs.NOTHING
    for wrong, problem in _rules(useful):
        rows_wrong = collected(rows.filter(wrong), "position").to_series().to_list()
        found.expect(not rows_wrong, f"{len(rows_wrong)} rows {problem} (positions {rows_wrong[:5]})")
    positions = collected(rows, "position").to_series()
    found.checked["rows"] = len(positions)
    found.expect(bool(positions.is_unique().all()), "positions come twice")
    found.expect(positions.is_sorted(), "rows are out of order")
    twice = collected(rows.filter(useful), pl.col("iid").is_duplicated().sum()).item()
    found.expect(not twice, "samples that train come twice (iid)")
    splits = rows.filter(useful).group_by("src_sha256").agg(pl.col("split").n_unique())
    shared = collected(splits.filter(pl.col("split") > 1), pl.len()).item()
    found.expect(not shared, f"{shared} source clips are in both splits")
    for name, kind in (("quadruplets", TrainsAs.QUADRUPLET), ("instruction", TrainsAs.INSTRUCTION)):
        count = collected(rows, (pl.col("trains_as") == kind).sum()).item()
        found.expect(count == manifest[name], f"{count} rows train as {kind}, the manifest says {manifest[name]}")
    found.expect(len(positions) == manifest["pairs"], f"{len(positions)} rows, the manifest says {manifest['pairs']}")
    _check_funnel(found, rows, manifest)


def _rules(useful: pl.Expr) -> list[tuple[pl.Expr, str]]:
    """What no row may be, and how it is called."""
    failed = [str(reason) for reason in FAILURES]
    kept, rejected = pl.col("status") == Status.KEPT, pl.col("status") == Status.REJECTED
    quadruplet = pl.col("trains_as") == TrainsAs.QUADRUPLET
    return [
        (kept & (pl.col("reason") != ""), "kept, and yet with a reason"),
        (~kept & (pl.col("reason") == ""), "left without a reason"),
        (rejected & pl.col("reason").is_in(failed), "rejected for what is a failure"),
        ((pl.col("status") == Status.FAILED) & ~pl.col("reason").is_in(failed), "failed for what is a rejection"),
        (quadruplet & ~kept, "a quadruplet that was not kept"),
        (quadruplet & pl.col("ref_image_bytes").is_null(), "a quadruplet without a reference"),
        (useful & ((pl.col("src_video") == "") | (pl.col("tgt_video") == "")), "trains without its media"),
    ]


def _check_funnel(found: Verification, rows: pl.LazyFrame, manifest: Mapping[str, Any]) -> None:
    """A stage that passed everything on may be missing: the version that wrote the dataset did not have it yet."""
    try:
        mine = funnel_of(rows)
    except FunnelError as error:
        found.problems.append(error.message)
        return
    told = {entry["stage"]: entry for entry in manifest["funnel"]}
    same = all(told.get(entry["stage"], entry) == entry for entry in mine)
    whole = all(entry["stage"] in told for entry in mine if entry["kept"] != entry["rows_in"])
    found.expect(same and whole, "the funnel of the rows is not the manifest's")


@dataclass
class _Look:
    """What is looked at of the media, and how it goes on."""

    decode_media: int | None
    repeats: Repeats | str
    progress: Callable[[int, int], None]


def _check_media(found: Verification, parts: list[Path], rows: pl.LazyFrame, look: _Look) -> None:
    with_media = (pl.col("src_video") != "") & (pl.col("tgt_video") != "")
    total = collected(rows, with_media.sum()).item()
    useful = collected(rows, (with_media & (pl.col("trains_as") != TrainsAs.NOTHING)).sum()).item()
    count = useful if look.decode_media is None else min(look.decode_media, useful)
    chosen = {(number * useful) // count for number in range(count)} if count < useful else None
    problems, place, references = 0, 0, 0
    for done, row in enumerate(_rows_with_media(parts)):
        of_use = row["trains_as"] != TrainsAs.NOTHING
        decodes = of_use and (chosen is None or place in chosen)
        place += of_use
        problem = _media_problem(found.folder, row, decodes, look.repeats)
        references += bool(decodes and row["ref_image_bytes"])
        if problem:
            problems += 1
            if problems <= _SHOWN:
                found.problems.append(f"row {row['position']}: {problem}")
        look.progress(done + 1, total)
    if problems > _SHOWN:
        found.problems.append(f"… and {problems - _SHOWN} more rows with broken media")
    found.checked.update(media=2 * total, decoded=2 * count, references=references)
    if count < useful:
        found.unchecked.append(f"media of {useful - count:,} of {useful:,} rows in use: read, not decoded")
    _check_repeats(found, look.repeats, references)


def _rows_with_media(parts: list[Path]) -> Iterator[dict[str, Any]]:
    columns = ["position", "src_video", "tgt_video", "trains_as", "ref_image_bytes"]
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(_BATCH, columns=columns):
                for row in batch.to_pylist():
                    if row["src_video"] and row["tgt_video"]:
                        yield row


def _media_problem(folder: Path, row: Mapping[str, Any], decodes: bool, repeats: Repeats | str) -> str:
    from kiwi.media import MediaError, decode, decode_image

    try:
        source, target = open_media(folder, row["src_video"]), open_media(folder, row["tgt_video"])
        if not decodes:
            return ""
        before, after = decode(source, pixel_budget=_LOOK), decode(target, pixel_budget=_LOOK)
        if not min(len(before.frames), len(after.frames)):
            return "a clip without frames"
        if not row["ref_image_bytes"]:
            return "" if row["ref_image_bytes"] is None else "its reference is empty"
        reference = decode_image(row["ref_image_bytes"], name="its reference")
        problem = reference_problem(reference)
        if not problem and not isinstance(repeats, str) and row["trains_as"] == TrainsAs.QUADRUPLET:
            repeats.see(row["position"], reference, target)
        return problem
    except (ShardError, MediaError) as error:
        return error.message


def reference_problem(reference: NDArray[np.uint8]) -> str:
    """What is wrong with a reference, uint8 [H,W,3], whatever it should show; "" where nothing is."""
    height, width = reference.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        return f"its reference has {width}x{height} pixels"
    return "its reference is of one colour" if (reference == reference[0, 0]).all() else ""


def _check_repeats(found: Verification, repeats: Repeats | str, seen: int) -> None:
    if isinstance(repeats, str):
        found.unchecked.append(f"near-duplicates: {repeats}")
        return
    pairs = repeats.found()
    found.checked["compared"] = seen
    found.problems += [f"row {later}: repeats row {earlier} (near-duplicate)" for later, earlier in pairs[:_SHOWN]]
    if len(pairs) > _SHOWN:
        found.problems.append(f"… and {len(pairs) - _SHOWN} more near-duplicates")
