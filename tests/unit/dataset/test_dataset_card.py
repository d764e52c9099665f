"""The card says what is in a dataset and what may be done with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from kiwi.configuration import CurationSettings
from kiwi.dataset.assemble import write_dataset
from kiwi.dataset.licences import added_up, forbidden, identifier, terms_of
from kiwi.dataset.manifest import build_manifest
from kiwi.dataset.rows import conform
from kiwi.dataset.split import all_train
from kiwi.dataset.statistics import histogram


@pytest.fixture
def card(tmp_path: Path, curated: Callable[..., pl.DataFrame]) -> str:
    rows = curated(tmp_path / "curation", 24)
    write_dataset(tmp_path / "d", rows, tmp_path / "curation", parameters={}, split=all_train)
    return (tmp_path / "d" / "README.md").read_text()


def test_the_card_shows_the_funnel_with_its_reasons(card: str) -> None:
    assert "| ingest | 24 | 22 | 2 | `source_missing` 2 (failed) |" in card
    assert "| deduplicate | 17 | 15 | 2 | `duplicate_reference` 2 |" in card


def test_the_card_counts_tasks_sizes_and_time(card: str) -> None:
    assert re.search(r"\| `background_change` \| 12 \| 12 \| 0 \| 0 \|", card)
    assert re.search(r"\| `local_change` \| 12 \| 3 \| 7 \| 2 \|", card)
    assert "| 16 × 16 | 22 |" in card
    assert "8.2 seconds of source video" in card


def test_the_card_adds_licences_up_to_the_strictest(card: str) -> None:
    assert "license: other" in card
    assert "**Non-commercial.** CC BY-NC-SA 4.0" in card
    assert "**Share alike.**" in card
    assert "**Attribution.** Name the sources under CC BY 4.0, CC BY-NC-SA 4.0." in card


def test_every_table_of_the_card_is_well_formed(card: str) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_the_card_names_every_column(card: str, tmp_path: Path) -> None:
    from kiwi.dataset.reader import read_rows

    columns = card[card.index("## Columns") :]
    assert all(f"`{name}`" in columns for name in read_rows(tmp_path / "d").columns)


def test_the_card_says_what_may_not_be_done_and_under_whose_terms(card: str) -> None:
    assert "| CC BY-NC-SA 4.0 | invented | 16 |" in card
    assert "non-commercial, share alike, attribution" in card
    denied = card[card.index("one may not:") : card.index("not legal advice")]
    assert "for commercial ends" in denied
    assert "under other terms than its own" in denied
    assert "before the unknown licences are cleared" not in denied
    assert any("unknown licences" in what for what in forbidden({"unspecified": 1, "MIT": 1}))
    assert forbidden({"CC0-1.0": 5}) == []
    assert any("derivatives" in what for what in forbidden({"CC BY-ND 4.0": 5}))


def test_the_front_matter_is_yaml_that_the_hub_reads(card: str) -> None:
    import yaml

    said = yaml.safe_load(card.split("---")[1])
    assert said["license"] == "other"
    assert said["license_name"] == "CC BY 4.0 and CC BY-NC-SA 4.0"
    assert said["size_categories"] == ["n<1K"]
    assert said["configs"][0]["data_files"] == "rows/*.parquet"


def test_the_card_names_curators_models_and_thresholds(tmp_path: Path, curated: Callable[..., pl.DataFrame]) -> None:
    settings = CurationSettings(scorer="vlm", min_reference_score=8.0).model_dump(mode="json")
    rows = curated(tmp_path / "curation", 24)
    made = {"curation": settings}
    write_dataset(tmp_path / "d", rows, tmp_path / "curation", parameters=made, split=all_train)
    card = (tmp_path / "d" / "README.md").read_text()
    assert "| score | `classical_score-1` | `EditScore-Qwen3-VL-8B-Instruct` | passes 1, temperature 0.7" in card
    assert "| ground | `classical_ground-1` | none: an algorithm |" in card
    assert "| `curation.min_reference_score` | 8.0 | for reference data, where it is stricter |" in card
    assert "device" not in card


def test_what_people_wrote_stays_text(tmp_path: Path, curated: Callable[..., pl.DataFrame]) -> None:
    told = "<script>alert(1)</script> | `x`\nnext"
    written = [pl.lit(told).alias(name) for name in ("prompt", "edit_type", "license", "source_dataset")]
    rows = curated(tmp_path / "curation", 24).with_columns(written)
    write_dataset(tmp_path / "d", rows, tmp_path / "curation", parameters={}, split=all_train)
    card = (tmp_path / "d" / "README.md").read_text()
    outside_code = re.sub(r"`[^`\n]*`", "", card[card.index("# Reference") :])
    assert "<script>" not in outside_code
    for block in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_a_column_of_many_values_is_cut_and_the_rest_counted(
    tmp_path: Path, curated: Callable[..., pl.DataFrame]
) -> None:
    rows = curated(tmp_path / "curation", 60)
    rows = rows.with_columns(pl.format("kind {}", pl.col("position")).alias("edit_type"))
    write_dataset(tmp_path / "d", rows, tmp_path / "curation", parameters={}, split=all_train)
    assert "| 20 others | 20 |" in (tmp_path / "d" / "README.md").read_text()


def test_a_scan_is_counted_like_a_table(tmp_path: Path, curated: Callable[..., pl.DataFrame]) -> None:
    rows = conform(curated(tmp_path / "curation", 24)).with_columns(pl.lit("train").alias("split"))
    rows.write_parquet(tmp_path / "rows.parquet")
    bare = rows.drop("ref_image_bytes")
    scanned = build_manifest(pl.scan_parquet(tmp_path / "rows.parquet").drop("ref_image_bytes"), [], [], {})
    assert scanned == build_manifest(bare, [], [], {})
    assert scanned["pairs"] == 24
    assert histogram(bare, "score_overall", 0, 10, 10) == [0, 0, 0, 0, 0, 9, 9, 4, 0, 0]


def test_unknown_licences_promise_nothing() -> None:
    assert not terms_of("unspecified").known
    assert "Not cleared" in added_up({"unspecified": 3, "MIT": 2})[0]
    assert identifier({"MIT": 2}) == "mit"
    assert identifier({"MIT": 2, "unspecified": 1}) == "other"
    assert added_up({"CC0-1.0": 5}) == ["**Free.** All rows are in the public domain or the like."]
    assert terms_of("cc-by-nc-4.0").commercial is False
    assert terms_of("CC BY 4.0").commercial is True


def test_the_card_owns_up_to_its_curators_limits(card: str) -> None:
    assert "cannot tell whether the instruction was followed" in card


def test_a_pipe_in_an_instruction_does_not_break_the_table(card: str) -> None:
    assert "Make number 0 red \\| and round." in card
