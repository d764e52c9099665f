"""Editors with random weights that do something: a new editor's zero-initialised layers would ignore the source."""

from __future__ import annotations

import pytest
import torch

from kiwi.configuration import ModelSettings
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.model.editor import KiwiEditModel
from kiwi.training.start import initial_model


def awakened(model: KiwiEditModel) -> KiwiEditModel:
    """Random values in place of the layers that start at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def random_model() -> KiwiEditModel:
    return awakened(initial_model(ModelSettings()))


@pytest.fixture
def pipeline(random_model: KiwiEditModel) -> KiwiEditPipeline:
    return KiwiEditPipeline(random_model)
