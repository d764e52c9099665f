"""Exporting a version: a folder that loads without a registry, checked, and whole or not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError
from kiwi.hashing import contents_digest
from kiwi.registry import ModelVersion, RegistryError, export, export_model, promote
from kiwi.registry.export import check_export
from kiwi.tracking import TrackingUnavailable
from kiwi.tracking.server import connect
from tests.unit.registry.registering import NAME, bare_versions, registered


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "served" / "model"


def left_over(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir()] if out.parent.exists() else []


def test_an_export_is_the_model_folder_with_all_that_the_registry_knows_of_it(
    configuration: RunConfiguration, out: Path
) -> None:
    version = registered(configuration)
    promote(configuration.tracking_uri, NAME, "1", why="first")
    done = export_model(configuration.tracking_uri, NAME, "champion", out=out)
    assert (done.version, done.missing) == ("1", ())
    assert done.files == len([path for path in out.rglob("*") if path.is_file()]) == check_export(out)
    facts = out / "registry"
    assert json.loads((facts / "scores.json").read_text())["per_kind"] == {"recolour": {"samples": 40}}
    assert RunConfiguration.parse((facts / "configuration.json").read_text()) == configuration
    provenance = json.loads((facts / "provenance.json").read_text())
    assert provenance["dataset"] == {"version": "refvie/v1", "revision": "c0ffee", "digest": "d1"}
    assert [entry["action"] for entry in provenance["history"]] == ["register", "promote"]
    assert provenance["model_digest"] == done.digest == version.tags["model.digest"]
    assert "c0ffee" in (facts / "card.md").read_text()
    assert (facts / "card.md").read_text().startswith("# A model\n")
    shutil.rmtree(facts)
    assert contents_digest(out) == done.digest
    assert left_over(out) == ["model"]


@pytest.mark.parametrize("harm", ["change", "remove", "add"])
def test_an_export_that_changed_is_found_out(configuration: RunConfiguration, out: Path, harm: str) -> None:
    registered(configuration)
    export_model(configuration.tracking_uri, NAME, "1", out=out)
    weights = out / "weights.safetensors"
    if harm == "change":
        weights.write_bytes(b"k2" * 100)
    elif harm == "remove":
        weights.unlink()
    else:
        (out / "extra.json").write_text("{}")
    with pytest.raises(RegistryError, match="extra.json is not listed" if harm == "add" else "weights.safetensors is"):
        check_export(out)


def test_what_is_there_already_is_not_touched(configuration: RunConfiguration, out: Path) -> None:
    registered(configuration)
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="is not empty"):
        export_model(configuration.tracking_uri, NAME, "1", out=out)
    with pytest.raises(UsageError, match="is a file"):
        export_model(configuration.tracking_uri, NAME, "1", out=out / "mine.txt")
    (out / "mine.txt").unlink()
    assert export_model(configuration.tracking_uri, NAME, "1", out=out).files


def test_an_export_that_breaks_off_leaves_nothing(
    configuration: RunConfiguration, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(configuration)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("_records", "_check", "_put"):
        with monkeypatch.context() as patch:
            patch.setattr(f"kiwi.registry.export.{step}", crash)
            with pytest.raises(KeyboardInterrupt):
                export_model(configuration.tracking_uri, NAME, "1", out=out)
        assert left_over(out) == []


def test_files_that_changed_are_gone_or_pickled_are_not_exported(configuration: RunConfiguration, out: Path) -> None:
    uri, source = configuration.tracking_uri, Path(registered(configuration).source)
    (source / "more.pt").write_bytes(b"pickle")
    with pytest.raises(RegistryError, match="not those that were registered"):
        export_model(uri, NAME, "1", out=out)
    connect(uri).set_model_version_tag(NAME, "1", "model.digest", contents_digest(source))
    with pytest.raises(RegistryError, match=r"holds the pickle more\.pt"):
        export_model(uri, NAME, "1", out=out)
    shutil.rmtree(source)
    with pytest.raises(RegistryError, match="are gone"):
        export_model(uri, NAME, "1", out=out)
    assert left_over(out) == []


def test_a_version_without_a_digest_or_a_registry_that_is_away_exports_nothing(
    configuration: RunConfiguration, out: Path
) -> None:
    bare_versions(configuration, 1)
    with pytest.raises(RegistryError, match="without a digest"):
        export_model(configuration.tracking_uri, NAME, "1", out=out)
    with pytest.raises(TrackingUnavailable):
        export_model("http://127.0.0.1:9", NAME, "1", out=out)
    assert left_over(out) == []


def test_a_copy_that_is_not_what_was_registered_is_not_put_in_place(
    configuration: RunConfiguration, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(configuration)
    real = export._records

    def spoil(uri: str, version: ModelVersion, facts: Path) -> tuple[str, ...]:
        """Stands for a disk that gives back other bytes than were written."""
        (facts.parent / "weights.safetensors").write_bytes(b"k2" * 100)
        return real(uri, version, facts)

    monkeypatch.setattr(export, "_records", spoil)
    with pytest.raises(RegistryError, match="is not what was registered"):
        export_model(configuration.tracking_uri, NAME, "1", out=out)
    assert left_over(out) == []
