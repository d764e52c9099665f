"""Editors with random weights, and the authors' file formats, built once."""

from __future__ import annotations

import pytest

from kiwi.configuration import ModelSettings
from kiwi.model.editor import KiwiEditModel
from kiwi.model.start import new_editor
from kiwi.training.start import initial_model
from tests.unit.model.released_files import Released, made_in


@pytest.fixture(scope="session")
def tiny_model() -> KiwiEditModel:
    return initial_model(ModelSettings())


@pytest.fixture(scope="session")
def middle_model() -> KiwiEditModel:
    """The released structure in a few million parameters: the stock autoencoder and Qwen2.5-VL, random weights."""
    return new_editor(ModelSettings(preset="middle"), ["Remove the dog.", "Use the one shown."])


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return made_in(tmp_path_factory.mktemp("released"))
