"""Files are hashed once and copied never, where that is safe; and where they go is checked before anything is done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError
from kiwi.lineage import LineageError, contents, describe, list_versions, publish_dataset, publishing, pull
from kiwi.lineage.repository import remote_url
from kiwi.tracking import silent
from kiwi.workspace import Workspace


def _settle(*paths: Path) -> None:
    """As if last written an hour ago."""
    for path in paths:
        os.utime(path, (time.time() - 3600,) * 2)


def _read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are hashed from now on."""
    names: list[str] = []
    real = contents.hashlib.file_digest

    def counting(file: Any, kind: str) -> Any:
        names.append(Path(file.name).name)
        return real(file, kind)

    monkeypatch.setattr(contents.hashlib, "file_digest", counting)
    return names


def test_a_file_is_hashed_again_only_when_it_was_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, known = tmp_path / "folder", tmp_path / "known.json"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text("old")
    _settle(folder / "a", folder / "b")
    first = describe(folder, known)
    read = _read(monkeypatch)
    assert describe(folder, known) == first
    assert read == []
    os.link(folder / "a", folder / "c")  # the same file by another name
    (folder / "b").write_text("new")  # as long as before
    second = describe(folder, known)
    assert read == ["b"]
    assert second == describe(folder)
    assert second["digest"] != first["digest"]


def test_a_file_just_written_is_not_remembered(tmp_path: Path) -> None:
    folder, known = tmp_path / "folder", tmp_path / "known.json"
    folder.mkdir()
    (folder / "a").write_text("old")
    stamp = (folder / "a").stat().st_mtime_ns
    first = describe(folder, known)
    (folder / "a").write_text("new")
    os.utime(folder / "a", ns=(stamp, stamp))  # within one tick of the file system's clock
    assert describe(folder, known)["digest"] != first["digest"]


def test_a_broken_file_of_hashes_only_costs_time(tmp_path: Path) -> None:
    folder, known = tmp_path / "folder", tmp_path / "known.json"
    folder.mkdir()
    (folder / "a").write_text("a")
    for broken in ("", "[]", "{", "\x00"):
        known.write_text(broken)
        assert describe(folder, known) == describe(folder)


def test_what_the_run_assembled_is_linked_and_what_is_the_users_is_copied(
    make_configuration: Callable[..., RunConfiguration], tmp_path: Path
) -> None:
    configuration = make_configuration()
    workspace = Workspace.of(configuration)
    for folder, links in ((tmp_path / "mine", False), (workspace.root / "curation" / "dataset", True)):
        folder.mkdir(parents=True)
        (folder / "media.tar").write_bytes(str(folder).encode() * 100)
        _settle(folder / "media.tar")
        said = publish_dataset(configuration, folder, silent())
        published = Path(said["path"]) / "media.tar"
        assert published.read_bytes() == (folder / "media.tar").read_bytes()
        assert published.samefile(folder / "media.tar") is links
    (tmp_path / "mine" / "media.tar").write_bytes(b"written into, in place")
    assert pull(workspace.repository, "v1", tmp_path / "out")["files"] == 1


def test_a_dataset_that_changes_while_it_is_published_is_no_version(
    make_configuration: Callable[..., RunConfiguration], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = make_configuration()
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "a").write_text("one")
    real = publishing.copy_in

    def changing(source: Path, place: Path, may_link: bool) -> None:
        (source / "a").write_text("two")
        real(source, place, may_link)

    monkeypatch.setattr(publishing, "copy_in", changing)
    with pytest.raises(LineageError, match=r"changed while it was published: a"):
        publish_dataset(configuration, folder, silent())
    assert list_versions(Workspace.of(configuration).repository) == []


def test_a_pull_that_was_cut_off_goes_on_with_what_it_has(
    make_configuration: Callable[..., RunConfiguration], tmp_path: Path
) -> None:
    configuration = make_configuration()
    folder = tmp_path / "dataset"
    folder.mkdir()
    for name in ("first", "second"):
        (folder / name).write_text(name * 100)
    publish_dataset(configuration, folder, silent())
    repository, remote = Workspace.of(configuration).repository, Workspace.of(configuration).dvc_remote
    first, second = (
        next(path for path in remote.rglob("*") if path.is_file() and path.read_text() == name * 100)
        for name in ("first", "second")
    )
    second.rename(tmp_path / "kept")
    with pytest.raises(LineageError, match="dvc pull: the remote lacks data"):
        pull(repository, "v1", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "kept").rename(second)
    first.unlink()  # it was fetched: it need not be there any more
    assert pull(repository, "v1", tmp_path / "out")["digest"] == describe(folder)["digest"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


@pytest.mark.parametrize(
    "said", ["s3://", "relative/folder", "s3://b/x\nurl = elsewhere", "s3://b/a#b", " s3://b/x", "http//x"]
)
def test_what_is_no_remote_is_refused(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIWI_DVC_REMOTE", said)
    with pytest.raises(UsageError, match="is no DVC remote"):
        remote_url(tmp_path)


def test_credentials_in_the_remotes_address_are_refused_and_not_repeated(
    make_configuration: Callable[..., RunConfiguration], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = make_configuration()
    (tmp_path / "dataset").mkdir()
    monkeypatch.setenv("KIWI_DVC_REMOTE", "s3://someone:hushhush@bucket/path")
    with pytest.raises(UsageError, match="holds credentials") as caught:
        publish_dataset(configuration, tmp_path / "dataset", silent())
    assert "hushhush" not in str(caught.value)
    assert not Workspace.of(configuration).repository.exists()
