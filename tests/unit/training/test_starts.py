"""Quick starts: what is put off while a stage starts, and that it is there for whoever asks later."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kiwi.configuration import RunConfiguration, StageSettings
from kiwi.model import imports

TRAINS = """
import sys
from kiwi.configuration import RunConfiguration
from kiwi.tracking import silent
from kiwi.training import train_stage

result = train_stage(RunConfiguration.parse(open({path!r}).read()), "stage1", silent())
assert result["steps"] == 2

from kiwi.model.imports import StandIn
import torch
assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
print([name for name in ("torch._dynamo", "scipy.stats", "scipy.optimize", "diffusers.models.transformers")
       if name in sys.modules])
print([name for name, module in sys.modules.items() if isinstance(module, StandIn)])

import numpy as np
import scipy.stats
import diffusers
from diffusers.models.transformers import WanTransformer3DModel
from diffusers.schedulers.scheduling_lms_discrete import integrate
from transformers.loss.loss_for_object_detection import linear_sum_assignment
print(scipy.stats.norm.cdf(0.0), integrate.quad(lambda x: x, 0, 1)[0], linear_sum_assignment(np.eye(2))[0].tolist())
print(diffusers.WanTransformer3DModel is WanTransformer3DModel)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(1)).item(), torch._dynamo.__file__ is not None)
"""


def test_a_stage_starts_without_what_it_never_uses_and_leaves_it_to_whoever_asks_later(
    workspace: Path, tmp_path: Path, run_apart: Callable[[str], str], configured: Callable[..., RunConfiguration],
    staged: Callable[..., StageSettings],
) -> None:  # fmt: skip
    shutil.copytree(workspace, tmp_path / "own", ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "run.json").write_text(configured(tmp_path / "own", staged(steps=2)).canonical())
    said = run_apart(TRAINS.format(path=str(tmp_path / "run.json"))).splitlines()
    assert said[-5:] == ["[]", "[]", "0.5 0.5 [0, 1]", "True", "1.0 True"]


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small package that stands for torch's compiler, which this process may have imported already."""
    package = tmp_path / "heavy"
    package.mkdir()
    (package / "__init__.py").write_text("from heavy import other\nnumber = 7\n")
    (package / "other.py").write_text("times = []\ntimes.append(1)\n")
    (package / "later.py").write_text("def called(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "COMPILER", "heavy")
    monkeypatch.setattr(imports, "CALLED_LATER", {"heavy.later": ("called",)})
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "heavy"]:
        del sys.modules[name]


@pytest.mark.usefixtures("heavy")
def test_a_stand_in_gives_way_to_the_real_module_when_more_is_asked_of_it() -> None:
    with imports.light_imports():
        stand_in = importlib.import_module("heavy")
        assert isinstance(stand_in, imports.StandIn)
        assert stand_in.disable(len) is len
        assert sys.modules["heavy"] is stand_in
        assert stand_in.number == 7
        assert not isinstance(sys.modules["heavy"], imports.StandIn)


@pytest.mark.usefixtures("heavy")
def test_a_submodule_of_a_stand_in_is_the_real_ones_and_runs_once() -> None:
    with imports.light_imports():
        other = importlib.import_module("heavy.other")
        assert other is sys.modules["heavy"].other
        assert other.times == [1]
        with pytest.raises(ModuleNotFoundError, match="there_is_none"):
            importlib.import_module("heavy.there_is_none")


@pytest.mark.usefixtures("heavy")
def test_a_function_that_was_imported_from_a_stand_in_works_after_it_is_gone() -> None:
    with imports.light_imports():
        called = importlib.import_module("heavy.later").called
    assert "heavy" not in sys.modules
    assert "heavy.later" not in sys.modules
    assert called(1) == 2
    assert not isinstance(sys.modules["heavy"], imports.StandIn)


@pytest.mark.usefixtures("heavy")
def test_nothing_is_put_off_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIWI_LIGHT_IMPORTS", "0")
    with imports.light_imports():
        assert not isinstance(importlib.import_module("heavy"), imports.StandIn)


@pytest.mark.usefixtures("heavy")
def test_where_something_is_compiled_the_compiler_is_not_put_off() -> None:
    with imports.light_imports(compiler=False):
        assert not isinstance(importlib.import_module("heavy"), imports.StandIn)
