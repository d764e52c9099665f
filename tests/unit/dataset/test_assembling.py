"""A finished dataset: the same bytes however it was curated, verified down to the clip, stopped when too small."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kiwi.dataset.assemble import TooFewSamples, assembled, write_dataset
from kiwi.dataset.manifest import ManifestError, read_manifest
from kiwi.dataset.reader import open_media, read_rows, read_split
from kiwi.dataset.rows import COLUMNS, RELEASED
from kiwi.dataset.split import all_train, hold_out
from kiwi.dataset.statistics import FunnelError, funnel_of
from kiwi.dataset.verify import verify_dataset
from kiwi.media import decode, decode_image

Curated = Callable[..., pl.DataFrame]


def write(folder: Path, curated: Curated, count: int = 24, shards: int = 1, **options: object) -> dict[str, object]:
    root = folder.parent / f"curation-{folder.name}"
    rows = curated(root, count, shards).sample(fraction=1.0, shuffle=True, seed=shards)
    settings: dict[str, object] = {"parameters": {"seed": 0}, "split": lambda rows: hold_out(rows, 0.2), **options}
    return write_dataset(folder, rows, root, **settings)  # type: ignore[arg-type]


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_number_of_curation_shards_changes_no_byte(tmp_path: Path, curated: Curated) -> None:
    one = write(tmp_path / "one", curated, shards=1)
    three = write(tmp_path / "three", curated, shards=3)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "three")
    assert one["digest"] == three["digest"]


def test_writing_again_gives_the_same_dataset_and_other_parameters_another_digest(
    tmp_path: Path, curated: Curated
) -> None:
    first = write(tmp_path / "d", curated)
    before = fingerprint(tmp_path / "d")
    again = write(tmp_path / "d", curated)
    assert fingerprint(tmp_path / "d") == before
    assert first == again == assembled(tmp_path / "d")
    assert write(tmp_path / "e", curated, parameters={"seed": 1})["digest"] != first["digest"]


def test_every_listed_pair_is_a_row_and_the_funnel_reconciles(tmp_path: Path, curated: Curated) -> None:
    result = write(tmp_path / "d", curated, count=24)
    rows = read_rows(tmp_path / "d")
    assert rows["position"].to_list() == list(range(24))
    assert result["pairs"] == 24
    standing = 24
    for stage in result["funnel"]:  # type: ignore[attr-defined]
        assert stage["rows_in"] == standing
        standing -= sum(stage["rejected"].values()) + sum(stage["failed"].values())
        assert stage["kept"] == standing
    assert standing == result["quadruplets"] == rows.filter(pl.col("trains_as") == "quadruplet").height
    assert result["rejected"] == {"no_visible_edit": 3, "duplicate_reference": 2, "global_change": 2}
    assert result["failed"] == {"source_missing": 2}


def test_rows_have_the_columns_and_no_working_ones(tmp_path: Path, curated: Curated) -> None:
    write(tmp_path / "d", curated)
    rows = read_rows(tmp_path / "d")
    assert rows.columns == [*COLUMNS, "region_x1", "score_overall"]
    assert set(RELEASED) <= set(rows.columns)


def test_media_and_references_come_back_as_they_were(
    tmp_path: Path, curated: Curated, clips: list[tuple[bytes, bytes]]
) -> None:
    write(tmp_path / "d", curated, shard_bytes=20_000)
    assert len(list((tmp_path / "d" / "media").iterdir())) > 1
    for row in read_rows(tmp_path / "d").iter_rows(named=True):
        if row["status"] == "failed":
            assert row["src_video"] == row["tgt_video"] == ""
            continue
        source, target = clips[row["position"] % len(clips)]
        assert open_media(tmp_path / "d", row["src_video"]) == source
        assert open_media(tmp_path / "d", row["tgt_video"]) == target
        if row["trains_as"] == "quadruplet":
            assert (decode_image(row["ref_image_bytes"])[:-1] == row["position"]).all()
    assert np.abs(decode(open_media(tmp_path / "d", row["src_video"])).frames).size


def test_held_out_pairs_share_no_source_with_training(tmp_path: Path, curated: Curated) -> None:
    write(tmp_path / "d", curated, count=20)
    train, benchmark = read_split(tmp_path / "d", "train"), read_split(tmp_path / "d", "benchmark")
    assert benchmark.height >= 2
    assert set(benchmark["trains_as"]) == {"quadruplet", "instruction"} == set(train["trains_as"])
    assert not set(train["src_sha256"]) & set(benchmark["src_sha256"])
    assert read_split(tmp_path / "d", "train", ["iid"]).columns == ["iid"]
    assert benchmark.height <= train.height


def test_a_handful_of_pairs_is_not_held_out_away() -> None:
    few = pl.DataFrame({"src_sha256": ["a", "b"], "trains_as": ["quadruplet", "instruction"], "media": ["video"] * 2})
    assert hold_out(few, 0.4)["split"].to_list() == ["train", "train"]
    assert all_train(few)["split"].to_list() == ["train", "train"]


def test_too_few_samples_stop_with_the_funnel_shown(tmp_path: Path, curated: Curated) -> None:
    with pytest.raises(TooFewSamples) as caught:
        write(tmp_path / "d", curated, min_quadruplets=100)
    said = str(caught.value)
    assert "15 quadruplets of the 100 needed, from 24 pairs" in said
    assert "no_visible_edit 3" in said
    assert "source_missing 2" in said
    assert caught.value.exit_code == 1
    assert not (tmp_path / "d").exists()
    with pytest.raises(TooFewSamples, match="training pairs of the 50 needed"):
        write(tmp_path / "d", curated, min_training_pairs=50)


def test_a_write_that_breaks_leaves_no_dataset_behind(tmp_path: Path, curated: Curated) -> None:
    def broken(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", curated, progress=broken)
    assert not (tmp_path / "d").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["curation-d"]
    write(tmp_path / "d", curated)
    assert verify_dataset(tmp_path / "d").passed


def test_a_row_that_left_without_a_reason_is_an_error(tmp_path: Path, curated: Curated) -> None:
    rows = curated(tmp_path, 4).with_columns(pl.lit("").alias("reason"))
    with pytest.raises(FunnelError, match="row 3"):
        funnel_of(rows)


def test_a_sound_dataset_passes_verification(tmp_path: Path, curated: Curated) -> None:
    write(tmp_path / "d", curated)
    found = verify_dataset(tmp_path / "d")
    assert found.passed, found.problems
    assert found.checked["rows"] == 24
    assert found.checked["decoded"] == 2 * 22
    assert verify_dataset(tmp_path / "d", decode_media=3).checked["decoded"] == 6


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "media" / "media-00000.tar").unlink(), "media-00000.tar: missing"),
        (lambda folder: flip(folder / "media" / "media-00000.tar"), "content differs"),
        (lambda folder: flip(folder / "rows" / "part-00000.parquet"), "content differs"),
        (lambda folder: (folder / "media" / "stray.tar").touch(), "stray.tar: is not in the manifest"),
        (lambda folder: (folder / "README.md").unlink(), "README.md: missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: rewrite(folder, quadruplets=99), "15 rows train as quadruplet, the manifest says 99"),
        (lambda folder: rewrite(folder, digest="0" * 64), "digest"),
    ],
)
def test_harm_to_a_dataset_is_found(tmp_path: Path, curated: Curated, harm: Callable[[Path], None], said: str) -> None:
    write(tmp_path / "d", curated)
    harm(tmp_path / "d")
    found = verify_dataset(tmp_path / "d", decode_media=0)
    assert not found.passed
    assert any(said in problem for problem in found.problems), found.problems


def test_a_folder_that_is_no_dataset_is_told(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "other/9"}')
    with pytest.raises(ManifestError, match="other/9"):
        read_manifest(tmp_path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


def rewrite(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
