"""The card says what is in a dataset and what may be done with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from kiwi.dataset.assemble import write_dataset
from kiwi.dataset.licences import added_up, identifier, terms_of
from kiwi.dataset.split import all_train


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
