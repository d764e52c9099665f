"""The assembly task: from what deduplication left in the workspace to a dataset folder, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from kiwi.configuration import CurationSettings, RunConfiguration, SourceSettings
from kiwi.curation.errors import CurationError
from kiwi.curation.finished import assemble, dataset_folder
from kiwi.dataset.assemble import TooFewSamples
from kiwi.dataset.reader import read_manifest, read_split
from kiwi.dataset.verify import verify_dataset
from kiwi.tracking import silent

Curated = Callable[..., pl.DataFrame]


def configured(workspace: Path, shards: int = 1, kind: str = "pairs", **curation: int) -> RunConfiguration:
    return RunConfiguration(
        preset="tiny",
        workspace=str(workspace),
        tracking_uri="",
        source=SourceSettings(kind=kind, pairs=str(workspace / "mine" / "pairs.csv")),  # type: ignore[arg-type]
        curation=CurationSettings(shards=shards, chunk_rows=4 + shards, **curation),  # type: ignore[arg-type]
        stages=(),
    )


def curate(configuration: RunConfiguration, curated: Curated, parts: int = 2) -> Path:
    folder = dataset_folder(configuration).parent
    rows = curated(folder.parent, 24, configuration.curation.shards)
    (folder / "deduplicated").mkdir(parents=True)
    for number, start in enumerate(range(0, 24, 24 // parts)):
        rows.slice(start, 24 // parts).write_parquet(folder / "deduplicated" / f"part-{number:05d}.parquet")
    (folder / "deduplicated" / "books.json").write_text("{}")
    return folder


def test_the_users_own_pairs_become_a_verified_dataset_with_a_held_out_part(tmp_path: Path, curated: Curated) -> None:
    configuration = configured(tmp_path)
    folder = curate(configuration, curated)
    result = assemble(configuration, silent())
    assert result["path"] == str(folder / "dataset")
    assert verify_dataset(folder / "dataset").passed
    assert read_split(folder / "dataset", "benchmark").height >= 2


def test_procedural_rows_all_train(tmp_path: Path, curated: Curated) -> None:
    configuration = configured(tmp_path, kind="procedural")
    curate(configuration, curated)
    assert assemble(configuration, silent())["splits"] == {"train": 22}


def test_nothing_of_the_place_or_the_portions_is_in_the_dataset(tmp_path: Path, curated: Curated) -> None:
    results = []
    for name, shards in (("here", 1), ("elsewhere", 3)):
        configuration = configured(tmp_path / name, shards)
        folder = curate(configuration, curated, parts=shards)
        results.append(assemble(configuration, silent())["digest"])
        for path in (folder / "dataset").rglob("*"):
            assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()
    assert results[0] == results[1]


def test_a_finished_dataset_is_found_again(tmp_path: Path, curated: Curated) -> None:
    configuration = configured(tmp_path)
    folder = curate(configuration, curated)
    first = assemble(configuration, silent())
    written = (folder / "dataset" / "manifest.json").stat().st_mtime_ns
    assert assemble(configuration, silent()) == first
    assert (folder / "dataset" / "manifest.json").stat().st_mtime_ns == written


def test_assembly_waits_for_deduplication_and_for_enough_samples(tmp_path: Path, curated: Curated) -> None:
    with pytest.raises(CurationError, match="deduplication is not finished"):
        assemble(configured(tmp_path), silent())
    configuration = configured(tmp_path, min_quadruplets=1000)
    curate(configuration, curated)
    with pytest.raises(TooFewSamples, match="of the 1000 needed"):
        assemble(configuration, silent())


def test_the_manifest_names_the_curators_by_stage(tmp_path: Path, curated: Curated) -> None:
    configuration = configured(tmp_path)
    folder = curate(configuration, curated)
    assemble(configuration, silent())
    manifest = read_manifest(folder / "dataset")
    assert manifest["curators"] == {"score": "classical_score-1", "ground": "classical_ground-1"}
    assert json.dumps(manifest)
