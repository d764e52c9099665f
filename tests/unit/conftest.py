"""What several layers' tests share: a configuration in a temporary workspace, and MLflow databases made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kiwi.configuration import RunConfiguration, StageSettings
from tests.conftest import MadeOnce


@pytest.fixture(scope="session")
def mlflow_template(made_once: MadeOnce) -> Path:
    """An empty MLflow database; its migration takes seconds, so tests copy it."""
    from kiwi.tracking.server import connect

    def migrated(folder: Path) -> None:
        connect(f"sqlite:///{folder}/mlflow.db")

    return made_once("mlflow", migrated) / "mlflow.db"


@pytest.fixture
def make_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfiguration]:
    """Configurations whose workspaces lie in `<tmp_path>/<name>` and share one tracking folder beside them."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "KIWI_RUN_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("KIWI_ARTIFACT_ROOT", "KIWI_HISTORY", "KIWI_REGISTRY_URL", "KIWI_DVC_REMOTE"):
        monkeypatch.delenv(name, raising=False)

    def make(name: str = "demo", **changes: object) -> RunConfiguration:
        stage = StageSettings(name="stage1", steps=1, mix={"image": 1.0}, learning_rate=1e-3, mllm_learning_rate=1e-3)
        (tmp_path / name).mkdir(exist_ok=True)
        settings = {
            "preset": "tiny",
            "workspace": str(tmp_path / name),
            "tracking_uri": f"sqlite:///{tmp_path}/tracking/mlflow.db",
            "stages": (stage,),
            **changes,
        }
        return RunConfiguration(**settings)  # type: ignore[arg-type]

    return make


@pytest.fixture
def configuration(
    make_configuration: Callable[..., RunConfiguration], mlflow_template: Path, tmp_path: Path
) -> RunConfiguration:
    """A configuration with an MLflow database that is there already."""
    (tmp_path / "tracking").mkdir()
    shutil.copy(mlflow_template, tmp_path / "tracking" / "mlflow.db")
    return make_configuration()
