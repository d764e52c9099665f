"""`kiwi model` from the terminal: a version is approved, promoted, exported and loaded by its numbers and names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kiwi.cli.model import app
from kiwi.configuration import GateSettings, RunConfiguration
from kiwi.errors import UsageError
from kiwi.registry import NotApproved
from kiwi.registry.export import check_export
from tests.unit.registry.registering import bare_versions, registered


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


@pytest.fixture
def kiwi_model(configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`kiwi model` on a registry with two versions that the gate let through, as Ada."""
    from kiwi.operations import webhook

    monkeypatch.setattr(webhook, "LONGEST_PAUSE", 0.01)
    monkeypatch.setenv("KIWI_USER", "Ada")
    (configuration.workdir / "configuration.json").write_text(configuration.canonical())
    bare_versions(configuration, 2)
    return lambda *said: CliRunner().invoke(app, [*said, "--workdir", str(configuration.workdir)])


def test_a_promotion_and_a_rollback_by_hand_send_the_alert_that_a_run_sends(
    kiwi_model: Callable[..., Any], receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    assert kiwi_model("promote", "1").exit_code == 0
    assert kiwi_model("promote", "2", "--force", "--reason", "its colours").exit_code == 0
    assert kiwi_model("promote", "2").exit_code == 0, "it is the champion: nothing changes and nothing is told"
    assert kiwi_model("rollback", "--reason", "flicker").exit_code == 0
    first, second, third = receiver.bodies
    assert [body["event"] for body in receiver.bodies] == [
        "model.promoted", "model.promoted", "model.rolled_back"
    ]  # fmt: skip
    assert (first["model"]["version"], first["champion"], first["who"]) == ("1", None, "Ada")
    assert (second["champion"], second["reasons"]) == ({"version": "1"}, ["its colours"])
    assert "kiwi-edit-tiny version 1 is the champion again, before it version 2" in third["text"]
    assert "flicker" in third["text"]
    assert len({call["headers"]["Idempotency-Key"] for call in receiver.calls}) == 3
    pipelines = {"model", "champion", "reasons", "workspace", "preset", "status", "seconds", "report", "tracking_uri"}
    assert pipelines <= second.keys(), "what reads the pipeline's alert reads this one"


@pytest.mark.parametrize("answer", [404, None], ids=["refused", "no address"])
def test_a_promotion_does_not_depend_on_its_alert(
    kiwi_model: Callable[..., Any], receiver: Any, monkeypatch: pytest.MonkeyPatch, answer: int | None
) -> None:
    receiver.answers = [answer or 200]
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url if answer else "hook-secret-part")
    done = kiwi_model("promote", "1")
    assert done.exit_code == 0
    assert "champion is version 1" in done.stdout
    assert "the alert was not sent" in done.stderr
    assert "hook-secret-part" not in done.output
    assert json.loads(kiwi_model("history", "--json").stdout)[-1]["action"] == "promote"


def test_what_is_not_promoted_sends_no_alert(
    kiwi_model: Callable[..., Any], receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_ALERT_URL", receiver.url)
    assert kiwi_model("rollback").exception is not None
    assert receiver.calls == []


def test_an_address_without_a_registry_is_said_and_no_database_is_made(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "mlflow.db"
    done = CliRunner().invoke(app, ["promote", "2", "--tracking-uri", f"sqlite:///{missing}", "--model", "m"])
    assert isinstance(done.exception, UsageError)
    assert str(missing) in str(done.exception)
    assert not missing.parent.exists()
