"""Makes a finished dataset of curated rows: rows in Parquet, media in shards, the card, and the manifest last.

Parts are cut by the rows' order and sizes alone, so the same rows give the same bytes, whatever the shards were that
curated them, and however often that was interrupted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from kiwi.configuration import RunConfiguration
from kiwi.dataset.card import write_card
from kiwi.dataset.manifest import MANIFEST, MEDIA, ROWS, FileEntry, build_manifest, describe_file, read_manifest
from kiwi.dataset.rows import concatenate, conform, write_rows
from kiwi.dataset.schema import TrainsAs
from kiwi.dataset.shards import ShardSet, member_address, pack_shards, split_address
from kiwi.dataset.split import TRAIN, all_train, hold_out
from kiwi.dataset.statistics import funnel_of, funnel_text
from kiwi.errors import KiwiError
from kiwi.tracking import TaskRun
from kiwi.workspace import Workspace, curation_key, write_json

ROWS_PER_PART = 8192
SHARD_BYTES = 1_000_000_000
RESULT = ("digest", "pairs", "quadruplets", "instruction", "splits", "rejected", "failed", "funnel")


class AssemblyError(KiwiError):
    """There is nothing yet that a dataset could be made of."""


class TooFewSamples(KiwiError):  # noqa: N818 - the word that the field uses for it
    """Curation left fewer samples than training needs. The message holds the funnel."""


def assemble(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """Makes `<curation>/dataset` of what deduplication left in `<curation>/deduplicated`; finds a finished one again.

    The user's own pairs give a share to the split `benchmark`; procedural rows all train, for their benchmark is drawn
    from another seed.

    Returns:
        {path, digest, pairs, quadruplets, instruction, splits, rejected{}, failed{}, funnel[]}.

    Raises:
        AssemblyError: deduplication is not finished.
        TooFewSamples: fewer quadruplets or training pairs than curation.min_quadruplets and min_training_pairs.
    """
    curation = Workspace.of(configuration).curation(curation_key(configuration))
    folder, deduplicated = curation / "dataset", curation / "deduplicated"
    if (folder / MANIFEST).exists():
        task.note("reused")
        return assembled(folder)
    if not (deduplicated / "books.json").exists():
        raise AssemblyError(f"{deduplicated}: deduplication is not finished", "run the curation stages first")
    own_pairs, settings = configuration.source.kind == "pairs", configuration.curation
    result = write_dataset(
        folder,
        concatenate(sorted(deduplicated.glob("part-*.parquet"))),
        curation,
        parameters=parameters_of(configuration),
        split=partial(hold_out, share=configuration.benchmark.share) if own_pairs else all_train,
        min_quadruplets=settings.min_quadruplets,
        min_training_pairs=settings.min_training_pairs,
        progress=lambda done, total: task.progress(done, total, "clips"),
    )
    task.metrics({name: result[name] for name in ("pairs", "quadruplets", "instruction")})
    task.tags({"dataset_digest": result["digest"]})
    return result


def parameters_of(configuration: RunConfiguration) -> dict[str, Any]:
    """What a dataset was made with: nothing of where it was made, nor of the portions in which.

    What the user's own pairs are, the rows and media say themselves.
    """
    own_pairs, source = configuration.source.kind == "pairs", configuration.source
    return {
        "source": {"kind": "pairs"}
        if own_pairs
        else source.model_dump(mode="json", exclude={"pairs", "listing_sha256"}),
        "curation": configuration.curation.model_dump(mode="json", exclude={"shards", "chunk_rows"}),
        "benchmark_share": configuration.benchmark.share if own_pairs else 0.0,
        "seed": configuration.seed,
    }


def write_dataset(
    folder: Path,
    rows: pl.DataFrame,
    media_root: Path,
    *,
    parameters: Mapping[str, Any],
    split: Callable[[pl.DataFrame], pl.DataFrame],
    min_quadruplets: int = 0,
    min_training_pairs: int = 0,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Writes `folder` whole or not at all (it is built beside and renamed in place), replacing one that is there.

    Args:
        rows: one row a listed pair, in any order, with at least the columns of kiwi/dataset/rows.py; `src_video` and
            `tgt_video` are member addresses of shards under `media_root`, or "" where no media could be read.
        parameters: what the dataset was made with; goes into the manifest and its digest.
        split: gives each row its split (kiwi/dataset/split.py).
        progress: called with members packed and members in all.

    Returns:
        {path, digest, pairs, quadruplets, instruction, splits, rejected{}, failed{}, funnel[]}.

    Raises:
        TooFewSamples: fewer quadruplets, or fewer rows to train on, than asked for.
        FunnelError, ShardError: rows that do not reconcile, or media that are not there.
    """
    rows = split(conform(rows).sort("position"))
    funnel = funnel_of(rows)
    _check_enough(rows, funnel, min_quadruplets, min_training_pairs)
    building = folder.with_name(f".{folder.name}.{os.getpid()}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        rows, files = _pack_media(building, rows, media_root, shard_bytes, progress)
        for number, start in enumerate(range(0, max(1, rows.height), ROWS_PER_PART)):
            part, path = rows.slice(start, ROWS_PER_PART), building / ROWS / f"part-{number:05d}.parquet"
            write_rows(part, path)
            files.append(describe_file(building, path, part.height))
        bare = rows.with_columns(pl.lit(b"", pl.Binary).alias("ref_image_bytes"))
        manifest = build_manifest(bare, files, funnel, parameters)
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


def _check_enough(
    rows: pl.DataFrame, funnel: list[dict[str, Any]], min_quadruplets: int, min_training_pairs: int
) -> None:
    quadruplets = rows.filter(pl.col("trains_as") == TrainsAs.QUADRUPLET).height
    training = rows.filter((pl.col("trains_as") != TrainsAs.NOTHING) & (pl.col("split") == TRAIN)).height
    lacking = []
    if quadruplets < min_quadruplets:
        lacking.append(f"{quadruplets} quadruplets of the {min_quadruplets} needed")
    if training < min_training_pairs:
        lacking.append(f"{training} training pairs of the {min_training_pairs} needed")
    if lacking:
        raise TooFewSamples(
            f"curation left {' and '.join(lacking)}, from {rows.height} pairs\n{funnel_text(funnel)}",
            "give more pairs, mend what the reasons name, or lower curation.min_quadruplets, min_training_pairs or the "
            "thresholds",
        )


def _pack_media(
    building: Path, rows: pl.DataFrame, media_root: Path, capacity: int, progress: Callable[[int, int], None]
) -> tuple[pl.DataFrame, list[FileEntry]]:
    """Copies each row's clips, in the rows' order and each member once, into the dataset's shards; rewrites addresses.

    Rows that are duplicates to the byte share an identity, and so their members.
    """
    listed = [address for pair in rows.select("src_video", "tgt_video").iter_rows() for address in pair if address]
    first: dict[str, str] = {}
    for address in listed:
        first.setdefault(split_address(address)[1], address)

    def members() -> Iterator[tuple[str, bytes]]:
        with ShardSet(media_root) as shards:
            for done, (name, address) in enumerate(first.items()):
                yield name, shards.read(address)
                progress(done + 1, len(first))

    books, places = pack_shards(building / MEDIA, "media", members(), capacity)
    moved = {address: _moved(address, places) for address in listed}
    rows = rows.with_columns(
        pl.col(column).replace_strict(moved, default="", return_dtype=pl.String) if moved else pl.lit("").alias(column)
        for column in ("src_video", "tgt_video")
    )
    return rows, [FileEntry(f"{MEDIA}/{book.name}", book.bytes, book.sha256, book.members) for book in books]


def _moved(address: str, places: Mapping[str, str]) -> str:
    name = split_address(address)[1]
    return member_address(f"{MEDIA}/{places[name]}", name)
