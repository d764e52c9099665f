"""The card of a trained model says what it started from, and under what terms its data stand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.training.card import model_card, origin_of

RESULT = {"name": "stage3", "steps": 10, "start": "stage2", "loss_first": 1.0, "loss_last": 0.5}
NAMED = {"backbone": "/models/Wan2.2-TI2V-5B-Diffusers", "language_model": "/models/Qwen2.5-VL-3B-Instruct"}


@pytest.fixture
def card(workspace: Path, configured: Callable[..., RunConfiguration]) -> Callable[..., str]:
    return lambda **model: model_card(configured(workspace, **model), RESULT)


def test_a_model_without_released_weights_says_that_its_weights_were_random(card: Callable[..., str]) -> None:
    assert "Its weights were random" in card()
    assert "a fixed transform" in card()
    assert "an autoencoder with random weights" in card(preset="middle")


def test_a_released_size_names_its_foundation_and_not_where_that_lies(
    card: Callable[..., str], configured: Callable[..., RunConfiguration], tmp_path: Path
) -> None:
    said = card(preset="wan2.2-5b", **NAMED)
    assert "`Wan2.2-TI2V-5B-Diffusers`" in said
    assert "`Qwen2.5-VL-3B-Instruct`" in said
    assert "random" not in said
    assert "/models" not in said
    assert origin_of(configured(tmp_path, preset="wan2.2-5b", **NAMED).model) == "foundation weights"


def test_an_ablation_is_named_and_the_papers_choice_is_not(card: Callable[..., str]) -> None:
    assert "`source_scaling`" in card(source_scaling="none")
    assert '"none" for "sigma"' in card(source_scaling="none")
    assert "not the paper's choice" not in card()


def test_the_licences_of_the_data_are_told_where_the_manifest_is_at_hand(
    card: Callable[..., str], workspace: Path, tmp_path: Path, configured: Callable[..., RunConfiguration]
) -> None:
    assert "CC0-1.0 (" in card()
    assert "**Free.**" in card()
    shutil.copy(workspace / "dataset.json", tmp_path / "dataset.json")
    (tmp_path / "dataset.json").write_text(
        (workspace / "dataset.json").read_text().replace(str(workspace), str(tmp_path))
    )
    assert "Not known" in model_card(configured(tmp_path), RESULT)
