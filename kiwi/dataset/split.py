"""Holds out a share of the user's own pairs for the benchmark, by content, so that no source is in both parts."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import polars as pl

from kiwi.dataset.schema import TrainsAs

TRAIN, BENCHMARK = "train", "benchmark"
_MIN_TRAINABLE, _MIN_HELD_OUT = 8, 2


def hold_out(rows: pl.DataFrame, share: float) -> pl.DataFrame:
    """`rows` with their `split`: "benchmark" for about `share` of the useful rows, "train" for all others.

    Rows of one source clip (`src_sha256`) go together. Which ones is decided by their hash alone, so more pairs in the
    source move few of them. Quadruplets and instruction rows are held out in the same share, videos before images; at
    least two rows where eight or more are useful, and never so many that a kind is left without training rows.
    """
    useful = rows.filter(pl.col("trains_as") != TrainsAs.NOTHING)
    if useful.filter(pl.col("media") == "video").height >= _MIN_TRAINABLE:
        useful = useful.filter(pl.col("media") == "video")
    members: dict[str, list[str]] = defaultdict(list)
    for source, kind in useful.select("src_sha256", "trains_as").iter_rows():
        members[source].append(kind)
    kinds: dict[str, list[str]] = {TrainsAs.QUADRUPLET: [], TrainsAs.INSTRUCTION: []}
    for source in sorted(members, key=_order):
        kinds[TrainsAs.QUADRUPLET if TrainsAs.QUADRUPLET in members[source] else TrainsAs.INSTRUCTION].append(source)
    wanted = {kind: min(round(share * len(sources)), max(0, len(sources) - 1)) for kind, sources in kinds.items()}
    if useful.height >= _MIN_TRAINABLE:
        for kind, sources in kinds.items():
            wanted[kind] = max(wanted[kind], 1 if len(sources) >= 3 else 0)
        largest = max(kinds, key=lambda kind: len(kinds[kind]))
        while sum(wanted.values()) < _MIN_HELD_OUT and wanted[largest] < len(kinds[largest]) - 1:
            wanted[largest] += 1
    held_out = [source for kind, sources in kinds.items() for source in sources[: wanted[kind]]]
    split = pl.when(pl.col("src_sha256").is_in(held_out)).then(pl.lit(BENCHMARK)).otherwise(pl.lit(TRAIN))
    return rows.with_columns(split.alias("split"))


def all_train(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` for training alone: a source whose benchmark is drawn elsewhere (procedural, from another seed)."""
    return rows.with_columns(pl.lit(TRAIN).alias("split"))


def _order(source_sha256: str) -> str:
    return hashlib.sha256(f"hold-out:{source_sha256}".encode()).hexdigest()
