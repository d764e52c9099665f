"""The commands `kiwi data funnel`, `card` and `verify`: what they print, where, and how they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kiwi.cli.data import app
from kiwi.configuration import RunConfiguration, SourceSettings
from kiwi.curation.build import build_dataset
from kiwi.errors import KiwiError, UsageError

Make = Callable[..., RunConfiguration]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def built(make_configuration: Make) -> tuple[Path, Path]:
    """A work folder of six rendered pairs, built and not published, and its dataset."""
    source = SourceSettings(kind="procedural", clips=5, images=1, frames=3, size=32)
    configuration = make_configuration("built", source=source)
    dataset = Path(build_dataset(configuration)["path"])
    workdir = Path(configuration.workspace)
    (workdir / "configuration.json").write_text(configuration.canonical())
    return workdir, dataset


def test_the_funnel_of_a_dataset_that_was_not_published(built: tuple[Path, Path]) -> None:
    workdir, dataset = built
    plain = json.loads(run("funnel", "--workdir", workdir, "--json").stdout)
    assert plain == json.loads((dataset / "manifest.json").read_text())["funnel"]
    asked = ("--set", "score.overall=10", "--set", "score.sharpness>=0.99", "--by", "task", "--json")
    cut = json.loads(run("funnel", "--dataset", dataset, *asked).stdout)
    assert cut["settings"] == {"curation.min_reference_score": 10.0}
    assert cut["without_setting"] == ["score.sharpness>=0.99"]
    assert cut["before"][-1]["kept"] >= cut["after"][-1]["kept"]
    assert sum(part["after"][0]["rows_in"] for part in cut["by"]["parts"].values()) == 6


def test_the_human_table_goes_to_standard_error(built: tuple[Path, Path]) -> None:
    found = run("funnel", "--workdir", built[0], "--set", "ground.smallest=0.9")
    assert found.stdout == ""
    assert "region_too_small" in found.stderr
    assert "→" in found.stderr
    assert "command that built it: --set curation.min_region=0.9" in found.stderr


def test_wrong_use_is_a_usage_error(tmp_path: Path) -> None:
    for arguments in (("funnel", "--workdir", tmp_path), ("card", "--workdir", tmp_path), ("verify", tmp_path / "no")):
        assert isinstance(run(*arguments).exception, UsageError), arguments


def test_the_card_is_markdown_or_a_page(built: tuple[Path, Path], tmp_path: Path) -> None:
    workdir, dataset = built
    assert run("card", "--workdir", workdir).stdout == (dataset / "README.md").read_text()
    page = tmp_path / "pages" / "card.html"
    assert run("card", "--workdir", workdir, "--html", page).stdout.strip() == str(page)
    assert "The way to a quadruplet" in page.read_text()


def test_open_shows_the_page_and_says_where_it_is_if_nothing_can(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser is a fake: a test must open none."""
    opened: list[str] = []
    monkeypatch.setattr("kiwi.cli.data.webbrowser.open", lambda address: bool(opened.append(address)) or True)
    page = tmp_path / "card.html"
    assert run("card", "--workdir", built[0], "--html", page, "--open").exit_code == 0
    assert opened == [page.as_uri()]
    monkeypatch.setattr("kiwi.cli.data.webbrowser.open", lambda address: False)
    failed = run("card", "--workdir", built[0], "--html", page, "--open").exception
    assert isinstance(failed, KiwiError)
    assert str(page) in failed.message


def test_verification_ends_with_1_and_the_list_where_something_is_wrong(built: tuple[Path, Path]) -> None:
    dataset = built[1]
    whole = run("verify", dataset, "--json")
    assert whole.exit_code == 0
    said = json.loads(whole.stdout)
    assert said["passed"]
    assert said["checked"]["compared"] == said["checked"]["references"] > 0
    assert said["unchecked"] == []
    (dataset / "README.md").unlink()
    broken = run("verify", dataset, "--json")
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["problems"] == ["README.md: missing"]
    failed = run("verify", dataset, "--quick").exception
    assert isinstance(failed, KiwiError)
    assert (failed.exit_code, "README.md: missing" in failed.message) == (1, True)
