"""Verification finds what is wrong with a dataset part by part, and says what it did not look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from kiwi.dataset import verify
from kiwi.dataset.assemble import write_dataset
from kiwi.dataset.manifest import dataset_digest, read_manifest
from kiwi.dataset.split import all_train
from kiwi.dataset.verify import reference_problem, verify_dataset
from kiwi.hashing import sha256_of
from kiwi.media import png_bytes

Curated = Callable[..., pl.DataFrame]
PART = Path("rows") / "part-00000.parquet"


@pytest.fixture
def dataset(tmp_path: Path, curated: Curated) -> Path:
    """A sound one of 24 rows, 15 of them quadruplets."""
    rows = curated(tmp_path / "curation", 24)
    write_dataset(tmp_path / "d", rows, tmp_path / "curation", parameters={}, split=all_train)
    return tmp_path / "d"


def rewrite(folder: Path, change: Callable[[pl.DataFrame], pl.DataFrame], **manifest: Any) -> None:
    """Changes rows and makes size, hash and digest agree again, so that only the rows' own rules can tell."""
    path = folder / PART
    change(pl.read_parquet(path)).write_parquet(path)
    said = read_manifest(folder) | manifest
    for entry in said["files"]:
        if entry["path"] == PART.as_posix():
            entry.update(bytes=path.stat().st_size, sha256=sha256_of(path))
    said["digest"] = dataset_digest(said["files"], said["parameters"])
    (folder / "manifest.json").write_text(json.dumps(said))


def first_quadruplet(column: str, value: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def change(rows: pl.DataFrame) -> pl.DataFrame:
        place = rows["trains_as"].to_list().index("quadruplet")
        values = rows[column].to_list()
        values[place] = value
        return rows.with_columns(pl.Series(column, values, rows.schema[column]))

    return change


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.full((8, 8, 3), 200, np.uint8), "its reference is of one colour"),
        (np.arange(36, dtype=np.uint8).reshape(4, 3, 3) * 5, "its reference has 3x4 pixels"),
    ],
)
def test_a_reference_that_shows_nothing_is_found(dataset: Path, image: NDArray[np.uint8], said: str) -> None:
    rewrite(dataset, first_quadruplet("ref_image_bytes", png_bytes(image)))
    assert verify_dataset(dataset).problems == [f"row 0: {said}"]


@pytest.mark.parametrize(("data", "said"), [(b"", "its reference is empty"), (b"no image at all", "no readable image")])
def test_a_reference_that_does_not_decode_is_found(dataset: Path, data: bytes, said: str) -> None:
    rewrite(dataset, first_quadruplet("ref_image_bytes", data))
    assert [said in problem for problem in verify_dataset(dataset).problems] == [True]


def test_a_picture_with_little_in_it_is_still_a_reference() -> None:
    image = np.full((64, 64, 3), 255, np.uint8)
    image[30:33, 30:33] = 0
    assert reference_problem(image) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop("iid"), "column iid: missing (a column of the released RefVIE)"),
        (lambda rows: rows.with_columns(pl.col("position").cast(pl.Int32)), "column position: Int32, expected Int64"),
        (first_quadruplet("ref_image_bytes", None), "1 rows a quadruplet without a reference (positions [0])"),
        (first_quadruplet("src_video", ""), "1 rows trains without its media (positions [0])"),
        (first_quadruplet("reason", "no_region"), "1 rows kept, and yet with a reason (positions [0])"),
        (first_quadruplet("split", "validation"), "column split: unknown 'validation'"),
        (first_quadruplet("position", 1), "positions come twice"),
        (lambda rows: rows.reverse(), "rows are out of order"),
        (lambda rows: rows.head(20), "20 rows, the manifest says 24"),
        (first_quadruplet("tgt_video", "media/media-00000.tar::gone.mp4"), "holds no member gone.mp4"),
    ],
)
def test_rows_that_break_a_rule_are_found_though_every_hash_agrees(
    dataset: Path, change: Callable[[pl.DataFrame], pl.DataFrame], said: str
) -> None:
    rewrite(dataset, change)
    problems = verify_dataset(dataset).problems
    assert any(said in problem for problem in problems), problems


def test_a_funnel_that_is_not_the_rows_own_is_found_and_an_older_one_without_an_idle_stage_is_not(
    dataset: Path,
) -> None:
    funnel = read_manifest(dataset)["funnel"]
    rewrite(dataset, lambda rows: rows, funnel=[entry for entry in funnel if entry["stage"] != "unique_crops"])
    assert verify_dataset(dataset, decode_media=0).passed
    rewrite(dataset, lambda rows: rows, funnel=[entry for entry in funnel if entry["stage"] != "score"])
    assert verify_dataset(dataset, decode_media=0).problems == ["the funnel of the rows is not the manifest's"]


def test_what_was_not_looked_at_is_declared(dataset: Path) -> None:
    whole = verify_dataset(dataset)
    assert whole.unchecked == ["near-duplicates: no deduplicator was asked to look for repetitions"]
    quick = verify_dataset(dataset, decode_media=5, hashes=False)
    assert quick.passed
    assert quick.checked == {
        "files": 2, "hashes": 0, "rows": 24, "media": 44, "decoded": 10, "references": quick.checked["references"]
    }  # fmt: skip
    assert quick.unchecked[:2] == [
        "hashes of files: only their sizes were compared",
        "media of 17 of 22 rows in use: read, not decoded",
    ]


def test_sizes_alone_do_not_find_a_flipped_byte_and_hashes_do(dataset: Path) -> None:
    path = dataset / "media" / "media-00000.tar"
    data = bytearray(path.read_bytes())
    data[-600] ^= 1  # in the padding of the end: every member still reads
    path.write_bytes(bytes(data))
    assert verify_dataset(dataset, decode_media=0, hashes=False).passed
    assert not verify_dataset(dataset, decode_media=0).passed


class Listed:
    """A stand-in for a deduplicator: notes what it is shown, and names one repetition."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, tuple[int, ...], int]] = []

    def see(self, position: int, reference: NDArray[np.uint8], target: bytes) -> None:
        self.seen.append((position, reference.shape, len(target)))

    def found(self) -> list[tuple[int, int]]:
        return [(2, 0)]


def test_every_quadruplet_is_shown_to_the_deduplicator_and_what_it_finds_is_a_problem(dataset: Path) -> None:
    repeats = Listed()
    found = verify_dataset(dataset, repeats=repeats)
    assert len(repeats.seen) == 15
    assert {shape for _, shape, _ in repeats.seen} == {(8, 8, 3)}
    assert found.problems == ["row 2: repeats row 0 (near-duplicate)"]
    assert not found.said()["passed"]


def test_rows_are_read_in_batches_and_progress_is_told(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on memory: never more rows with references at once than a batch."""
    held: list[int] = []
    real = verify.pq.ParquetFile.iter_batches

    def counted(self: Any, size: int, **options: Any) -> Any:
        for batch in real(self, size, **options):
            held.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(verify, "_BATCH", 7)
    monkeypatch.setattr(verify.pq.ParquetFile, "iter_batches", counted)
    told: list[tuple[int, int]] = []
    assert verify_dataset(dataset, progress=lambda done, total: told.append((done, total))).passed
    assert held == [7, 7, 7, 3]
    assert told == [(number, 22) for number in range(1, 23)]


def test_rows_that_are_no_parquet_are_told_and_not_raised(dataset: Path) -> None:
    path = dataset / PART
    path.write_bytes(b"PAR1" + bytes(path.stat().st_size - 4))
    assert verify_dataset(dataset, hashes=False).problems[0].startswith("the rows cannot be read")
