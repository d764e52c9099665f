"""Compiled blocks and the compiled optimiser compute what uncompiled ones do. torch's own compiler, on the CPU."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import nn

from kiwi.configuration import ModelSettings, StageSettings, TrainerSettings
from kiwi.model.editor import KiwiEditModel
from kiwi.training.optimizers import Optimizers
from kiwi.training.parallelize import parallelize
from kiwi.training.ranks import Ranks
from kiwi.training.start import initial_model

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch compiles for the CPU with g++, which is not installed"
)
CPU = torch.device("cpu")
STAGE = StageSettings(
    name="stage", steps=1, mix={}, learning_rate=1e-3, mllm_learning_rate=1e-3, moments="bfloat16"
)  # fmt: skip


@pytest.fixture(scope="module")
def first() -> KiwiEditModel:
    """One block, for each is compiled alike."""
    model = initial_model(ModelSettings())
    model.transformer.blocks = nn.ModuleList(model.transformer.blocks[:1])
    for name, parameter in model.named_parameters():
        if "patch_embedding" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def test_compiled_training_in_bfloat16_takes_the_steps_of_uncompiled_training(first: KiwiEditModel) -> None:
    """Compiling for the CPU takes a minute, so that one precision stands for both."""
    generator = torch.Generator().manual_seed(1)
    noisy, source = (torch.randn(1, 48, 3, 4, 4, generator=generator) for _ in range(2))
    context = torch.randn(1, 6, 96, generator=generator)
    trained: list[dict[str, Any]] = []
    for compiled in (False, True):
        model = copy.deepcopy(first)
        trainer = TrainerSettings(compile=compiled, recompute="attention", precision="bfloat16")
        parallelize(model, trainer, CPU, Ranks())
        optimizers = Optimizers(model, STAGE, trainer)
        for step in range(3):
            model(noisy, torch.tensor([0.6]), context, source).square().mean().backward()
            optimizers.clip(1.0)
            optimizers.step(1 / (1 + step))
        optimizers.settle()
        trained.append({name: parameter.detach() for name, parameter in model.transformer.named_parameters()})
    before = {name: parameter.detach() for name, parameter in first.transformer.named_parameters()}
    plain, made = trained
    moved = [(plain[name] - before[name]).flatten() for name in before]
    apart = [(made[name] - plain[name]).flatten() for name in before]
    assert float(torch.cat(moved).norm()) > 0
    assert float(torch.cat(apart).norm() / torch.cat(moved).norm()) < 0.1
