"""What `kiwi model` prints of versions and of their history: readable in 80 columns, whole in a pipe, never cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from kiwi.cli.model import app
from kiwi.configuration import RunConfiguration
from kiwi.registry import NotPromoted, RegistryError, delete_version, history, promote, rollback, show
from kiwi.tracking.server import connect
from tests.unit.registry.registering import NAME, bare_versions, registered

WHY = "Overall 3.000 leads copying the source (1.500) by 1.500; a lead of 0.02 was asked for. " * 3


@pytest.fixture
def kiwi_model(configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`kiwi model` on a registry where a registered version was promoted with a long reason."""
    monkeypatch.setenv("KIWI_USER", "Ada")
    monkeypatch.delenv("COLUMNS", raising=False)
    (configuration.workdir / "configuration.json").write_text(configuration.canonical())
    registered(configuration)
    promote(configuration.tracking_uri, NAME, "1", why=WHY.strip())
    return lambda *said: CliRunner().invoke(app, [*said, "--workdir", str(configuration.workdir)])


def test_the_history_has_whole_times_and_reasons_in_80_columns_and_one_line_each_in_a_pipe(
    kiwi_model: Callable[..., Any], configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = history(configuration.tracking_uri, NAME)[-1]
    when = entry.at.replace("T", " ")[:19]
    piped = kiwi_model("history").stdout.splitlines()
    assert piped[-2:] == [f"{when} UTC: promote version 1, champion none to 1, by Ada", f"    {WHY.strip()}"]
    monkeypatch.setenv("COLUMNS", "80")
    folded = kiwi_model("history").stdout
    assert max(map(len, folded.splitlines())) <= 80
    assert f"{when} UTC: promote version 1, champion none to 1, by Ada\n" in folded
    assert WHY.strip() in " ".join(folded.split())
    assert len(folded.splitlines()) < 12, "no tower"


def test_versions_are_whole_in_80_columns(
    kiwi_model: Callable[..., Any], configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = json.dumps([WHY.strip()])
    connect(configuration.tracking_uri).set_model_version_tag(NAME, "1", "kiwi.reasons", tags)
    for columns in ("80", "60"):
        monkeypatch.setenv("COLUMNS", columns)
        for command, whole in (("list", ["refvie/v1", "champion", "3.000"]), ("show", ["c0ffee", "measured", "Ada"])):
            shown = kiwi_model(command).stdout
            assert max(map(len, shown.splitlines())) <= int(columns)
            assert "…" not in shown
            assert all(word in shown for word in [NAME, *whole])
        assert WHY.strip() in " ".join(shown.split())
    monkeypatch.delenv("COLUMNS")
    assert WHY.strip() in kiwi_model("show").stdout
    assert json.loads(kiwi_model("show", "--json").stdout)["reasons"] == [WHY.strip()]


def test_what_others_entered_moves_no_cursor(kiwi_model: Callable[..., Any], configuration: RunConfiguration) -> None:
    client = connect(configuration.tracking_uri)
    client.create_model_version(NAME, source="nowhere", tags={"kiwi.decision": "promote"})
    promote(configuration.tracking_uri, NAME, "2", why="clean\x1b[2Jed [bold]")
    shown = kiwi_model("history").stdout
    assert "\x1b" not in shown
    assert "clean�[2Jed [bold]" in shown


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["history"], ["show"]])
def test_a_model_that_is_not_registered_is_said_with_those_that_are(
    kiwi_model: Callable[..., Any], command: list[str]
) -> None:
    done = kiwi_model(*command, "--model", "typo")
    assert isinstance(done.exception, RegistryError)
    assert done.exception.exit_code == 1
    assert "no model 'typo'" in done.exception.message
    assert NAME in done.exception.remedy


def test_a_run_that_registered_nothing_yet_is_no_error(configuration: RunConfiguration) -> None:
    (configuration.workdir / "configuration.json").write_text(configuration.canonical())
    done = CliRunner().invoke(app, ["list", "--workdir", str(configuration.workdir)])
    assert (done.exit_code, done.stdout) == (0, f"{NAME} has no version yet\n")


def test_an_alias_that_is_gone_is_told_with_what_became_of_its_version(configuration: RunConfiguration) -> None:
    uri = configuration.tracking_uri
    bare_versions(configuration, 3)

    def told(alias: str) -> str:
        with pytest.raises(RegistryError) as caught:
            show(uri, NAME, alias)
        return str(caught.value.message)

    assert told("previous") == f"{NAME} has no previous: none was promoted yet"
    promote(uri, NAME, "1")
    assert told("previous").endswith("version 1 was the first champion")
    promote(uri, NAME, "2", force=True, why="colours")
    connect(uri).delete_model_version(NAME, "1")
    assert told("previous").endswith("it was version 1, which was deleted outside kiwi")
    with pytest.raises(RegistryError, match="no previous champion to go back to: it was version 1, which was deleted"):
        rollback(uri, NAME)
    promote(uri, NAME, "3", force=True, why="edges")
    rollback(uri, NAME)
    assert "it was version 1" in told("previous")
    client = connect(uri)
    client.delete_registered_model_alias(NAME, "champion")
    assert told("champion").endswith("it was version 2, and the alias was removed outside kiwi")
    delete_version(uri, NAME, "2", who="Grace", why="licence")
    assert "it was version 2, which Grace deleted on 20" in told("champion")
    assert told("champion").endswith(": licence")


def test_the_gates_sentences_stand_one_after_the_other(configuration: RunConfiguration) -> None:
    bare_versions(configuration, 1, decision="hold")
    said = ["Overall 2.0 is behind.", "The chance is under 0.1%."]
    connect(configuration.tracking_uri).set_model_version_tag(NAME, "1", "kiwi.reasons", json.dumps(said))
    with pytest.raises(NotPromoted, match=r"not promoted: Overall 2\.0 is behind\. The chance is under 0\.1%\.\n"):
        promote(configuration.tracking_uri, NAME, "1")
