"""`kiwi model` from the terminal: a version is approved, promoted, exported and loaded by its numbers and names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kiwi.cli.model import app
from kiwi.configuration import GateSettings, RunConfiguration
from kiwi.errors import UsageError
from kiwi.registry import NotApproved
from kiwi.registry.export import check_export
from tests.unit.registry.registering import registered


def test_a_version_is_approved_promoted_and_exported(
    configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KIWI_USER", "trainer")
    configuration = configuration.model_copy(update={"gate": GateSettings(approvals=1)})
    (configuration.workdir / "configuration.json").write_text(configuration.canonical())
    registered(configuration)

    def kiwi_model(*arguments: str) -> str:
        done = CliRunner().invoke(app, [*arguments, "--workdir", str(configuration.workdir)])
        if done.exception is not None:
            raise done.exception
        return done.stdout

    with pytest.raises(NotApproved):
        kiwi_model("promote")
    assert "1 of 1 approvals (Ada)" in kiwi_model("approve", "challenger", "--as", "Ada", "--reason", "looked")
    assert "champion is version 1" in kiwi_model("promote", "1")
    told = json.loads(kiwi_model("history", "--json"))
    assert [(row["action"], row["who"]) for row in told][1:] == [("approve", "Ada"), ("promote", "trainer")]
    out = tmp_path / "served"
    said = json.loads(kiwi_model("export", "champion", "--out", str(out), "--json"))
    assert (said["version"], said["folder"], said["files"]) == ("1", str(out), check_export(out))
    for wrong in ("latest", "", "no-such-alias"):
        with pytest.raises(UsageError):
            kiwi_model("export", wrong, "--out", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_an_address_without_a_registry_is_said_and_no_database_is_made(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "mlflow.db"
    done = CliRunner().invoke(app, ["promote", "2", "--tracking-uri", f"sqlite:///{missing}", "--model", "m"])
    assert isinstance(done.exception, UsageError)
    assert str(missing) in str(done.exception)
    assert not missing.parent.exists()
