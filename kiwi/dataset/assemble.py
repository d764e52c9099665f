"""Makes a finished dataset of curated rows: rows in Parquet, media in shards, the card, and the manifest last.

Parts are cut by the rows' order and sizes alone, so the same rows give the same bytes, whatever the shards were that
curated them, and however often that was interrupted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from kiwi import storage
from kiwi.dataset.card import write_card
from kiwi.dataset.manifest import MANIFEST, MEDIA, ROWS, FileEntry, build_manifest, describe_file, read_manifest
from kiwi.dataset.rows import conform, write_rows
from kiwi.dataset.schema import TrainsAs
from kiwi.dataset.shards import SEPARATOR, ShardSet, pack_shards
from kiwi.dataset.split import TRAIN
from kiwi.dataset.statistics import funnel_of, funnel_text
from kiwi.errors import KiwiError
from kiwi.workspace import write_json

ROWS_PER_PART = 8192
SHARD_BYTES = 1_000_000_000
SHOWN = 8  # rejected rows by reason that keep their clips, to be looked at
RESULT = ("digest", "pairs", "quadruplets", "instruction", "splits", "rejected", "failed", "funnel")


class TooFewSamples(KiwiError):  # noqa: N818 - the word that the field uses for it
    """Curation left fewer samples than training needs. The message holds the funnel."""


def write_dataset(
    folder: Path,
    parts: Sequence[str | Path] | pl.DataFrame,
    media_root: str | Path,
    *,
    parameters: Mapping[str, Any],
    split: Callable[[pl.DataFrame], pl.DataFrame],
    min_quadruplets: int = 0,
    min_training_pairs: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes `folder` whole or not at all (it is built beside and renamed in place), replacing one that is there.

    References stream through; what is held of all rows is the rest of their columns. Clips of rows that train go in,
    and those of the first SHOWN rejected rows by reason.

    Args:
        parts: Parquet parts, sorted by position over all of them, or a table; one row a listed pair, with at least
            the columns of kiwi/dataset/rows.py. `src_video` and `tgt_video` are member addresses of shards under
            `media_root`, or "" where no media could be read.
        media_root: a folder or an address.
        parameters: what the dataset was made with; goes into the manifest and its digest.
        split: gives each row its split (kiwi/dataset/split.py).
        progress: called with members packed and members in all.

    Returns:
        {path, digest, pairs, quadruplets, instruction, splits, rejected{}, failed{}, funnel[]}.

    Raises:
        TooFewSamples: fewer quadruplets, or fewer rows to train on, than asked for.
        FunnelError, ShardError: rows that do not reconcile, or media that are not there.
    """
    rows = split(conform(_without_references(parts)).sort("position"))
    funnel = funnel_of(rows)
    quadruplets = rows.filter(pl.col("trains_as") == TrainsAs.QUADRUPLET).height
    training = rows.filter((pl.col("trains_as") != TrainsAs.NOTHING) & (pl.col("split") == TRAIN)).height
    check_enough(
        quadruplets,
        training,
        rows.height,
        funnel,
        min_quadruplets=min_quadruplets,
        min_training_pairs=min_training_pairs,
    )
    building = folder.with_name(f".{folder.name}.{os.getpid()}.building")
    for left in folder.parent.glob(f".{folder.name}.*.building"):  # by a writer that was killed; there is one at a time
        shutil.rmtree(left, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        rows, files = _pack_media(building, _with_shown_media(rows), media_root, shard_bytes, progress)
        for number, part in enumerate(_with_references(rows, parts)):
            path = building / ROWS / f"part-{number:05d}.parquet"
            write_rows(part, path)
            files.append(describe_file(building, path, part.height))
        manifest = build_manifest(rows, files, funnel, parameters)
        write_card(building, manifest)
        write_json(building / MANIFEST, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return assembled(folder)


def assembled(folder: Path) -> dict[str, Any]:
    """What `write_dataset` returned for a folder that is finished. Raises ManifestError if it is not."""
    manifest = read_manifest(folder)
    return {"path": str(folder), **{key: manifest[key] for key in RESULT}}


def check_enough(
    quadruplets: int,
    training: int,
    pairs: int,
    funnel: Sequence[Mapping[str, Any]],
    *,
    min_quadruplets: int,
    min_training_pairs: int,
) -> None:
    """Raises TooFewSamples, with the funnel, where curation left fewer than were asked for."""
    lacking = []
    if quadruplets < min_quadruplets:
        lacking.append(f"{quadruplets} quadruplets of the {min_quadruplets} needed")
    if training < min_training_pairs:
        lacking.append(f"{training} training pairs of the {min_training_pairs} needed")
    if lacking:
        raise TooFewSamples(
            f"curation left {' and '.join(lacking)}, from {pairs} pairs\n{funnel_text(funnel)}",
            "give more pairs, mend what the reasons name, or lower curation.min_quadruplets, min_training_pairs or the "
            "thresholds",
        )


def _portions(parts: Sequence[str | Path] | pl.DataFrame, columns: list[str] | None) -> Iterator[pl.DataFrame]:
    """The parts as tables, with these columns of those they have, or with all but the references."""
    if isinstance(parts, pl.DataFrame):
        parts = parts.sort("position")
        yield parts.select(columns) if columns else parts.drop("ref_image_bytes", strict=False)
        return
    for path in parts:
        with storage.open_read(path) as opened, pq.ParquetFile(opened) as file:
            names = columns or [name for name in file.schema_arrow.names if name != "ref_image_bytes"]
            yield pl.DataFrame(pl.from_arrow(file.read(columns=names)))


def _without_references(parts: Sequence[str | Path] | pl.DataFrame) -> pl.DataFrame:
    return pl.concat(list(_portions(parts, None)), how="diagonal_relaxed")


def _with_references(rows: pl.DataFrame, parts: Sequence[str | Path] | pl.DataFrame) -> Iterator[pl.DataFrame]:
    """`rows` in portions of ROWS_PER_PART, each with its references; those of other portions are not held."""
    columns = ["position", "ref_image_bytes"]
    coming, held = _portions(parts, columns), pl.DataFrame(schema={"position": pl.Int64, "ref_image_bytes": pl.Binary})
    for start in range(0, max(1, rows.height), ROWS_PER_PART):
        portion = rows.slice(start, ROWS_PER_PART)
        while held.height < portion.height:
            held = pl.concat([held, next(coming).cast({"position": pl.Int64, "ref_image_bytes": pl.Binary})])
        here, held = held.head(portion.height), held.slice(portion.height)
        if not here["position"].equals(portion["position"]):
            raise KiwiError("the parts of the rows are not in the order of their positions", "deduplicate again")
        yield portion.with_columns(here["ref_image_bytes"])


def _with_shown_media(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` without the addresses of clips that no one will look at."""
    useless = pl.col("trains_as") == TrainsAs.NOTHING
    with_media = useless & (pl.col("src_video") != "")
    place = pl.when(with_media).then(pl.int_range(pl.len()).over("reason", with_media))
    goes = with_media & (place >= SHOWN)
    cleared = [pl.when(goes).then(pl.lit("")).otherwise(name).alias(name) for name in ("src_video", "tgt_video")]
    return rows.with_columns(cleared)


def _pack_media(
    building: Path, rows: pl.DataFrame, media_root: str | Path, capacity: int, progress: Callable[[int, int], None]
) -> tuple[pl.DataFrame, list[FileEntry]]:
    """Copies each row's clips, in the rows' order and each member once, into the dataset's shards; rewrites addresses.

    Rows that are duplicates to the byte share an identity, and so their members.
    """
    columns = ("src_video", "tgt_video")
    listed = rows.select(pl.concat_list(columns).alias("address")).explode("address").filter(pl.col("address") != "")
    listed = listed.with_columns(name=pl.col("address").str.splitn(SEPARATOR, 2).struct.field("field_1"))
    listed = listed.unique("name", keep="first", maintain_order=True)

    def members() -> Iterator[tuple[str, bytes]]:
        with ShardSet(media_root) as shards:
            for done, (address, name) in enumerate(listed.iter_rows()):
                yield name, shards.read(address)
                progress(done + 1, listed.height)

    books, places = pack_shards(building / MEDIA, "media", members(), capacity)
    moved = listed.select("name", shard=pl.Series([places[name] for name in listed["name"]], dtype=pl.String)).select(
        "name", moved=pl.lit(f"{MEDIA}/") + pl.col("shard") + pl.lit(SEPARATOR) + pl.col("name")
    )
    for column in columns:
        name = pl.col(column).str.splitn(SEPARATOR, 2).struct.field("field_1")
        found = rows.select(name=name).join(moved, on="name", how="left", maintain_order="left")
        rows = rows.with_columns(found.to_series(1).fill_null("").alias(column))
    return rows, [FileEntry(f"{MEDIA}/{book.name}", book.bytes, book.sha256, book.members) for book in books]
