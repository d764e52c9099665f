"""A tiny editor with random weights, built once."""

from __future__ import annotations

import pytest

from kiwi.configuration import ModelSettings
from kiwi.model.editor import KiwiEditModel
from kiwi.training.start import initial_model


@pytest.fixture(scope="session")
def tiny_model() -> KiwiEditModel:
    return initial_model(ModelSettings())
