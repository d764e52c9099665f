"""Dataset versions with real git and DVC: published once, whole or not at all, and had again from the remote alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError
from kiwi.lineage import LineageError, describe, list_versions, process, publish_dataset, pull
from kiwi.lineage.repository import open_repository
from kiwi.tracking import read_records, silent, task_run
from kiwi.workspace import Workspace, read_json

Make = Callable[..., RunConfiguration]


def _dataset(folder: Path, text: str = "first") -> Path:
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    (folder / "media").mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(f'{{"text": "{text}"}}')
    (folder / "rows" / "part-00000.parquet").write_bytes(text.encode() * 1000)
    (folder / "media" / "media-00000.tar").write_bytes(bytes(range(256)) * 4000)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfiguration, Path, list[dict[str, object]]]:
    """A workspace with two versions, made once; tests that change it copy it."""
    from kiwi.configuration import StageSettings

    root = tmp_path_factory.mktemp("published")
    stage = StageSettings(name="s", steps=1, mix={"image": 1.0}, learning_rate=1e-3, mllm_learning_rate=1e-3)
    configuration = RunConfiguration(
        preset="tiny", workspace=str(root / "demo"), tracking_uri=f"sqlite:///{root}/mlflow.db", stages=(stage,)
    )
    folder = _dataset(root / "dataset")
    with task_run(configuration, "publish") as task:
        first = publish_dataset(configuration, folder, task)
    again = publish_dataset(configuration, folder, silent())
    second = publish_dataset(configuration, _dataset(root / "dataset", "second"), silent())
    return configuration, root, [first, again, second]


Published = tuple[RunConfiguration, Path, list[dict[str, object]]]


@pytest.fixture
def copied(published: Published, tmp_path: Path) -> tuple[RunConfiguration, Path]:
    """The same workspace in another place, to be spoilt."""
    configuration, root, _ = published
    shutil.copytree(root, tmp_path / "moved")
    return configuration.model_copy(update={"workspace": str(tmp_path / "moved" / "demo")}), tmp_path / "moved"


def test_a_published_dataset_is_a_tagged_commit_and_the_task_says_so(published: Published) -> None:
    configuration, root, (first, _, _) = published
    assert first["version"] == "refvie/v1"
    assert len(str(first["revision"])) == 40
    assert first["files"] == 3
    (record,) = read_records(configuration.workdir, "manual")
    assert record.tags["dataset.revision"] == first["revision"]
    assert Path(str(first["path"])) == root / "demo" / "data" / "dataset"


@pytest.mark.usefixtures("real_processes")
def test_a_new_repository_has_the_files_of_one_that_dvc_makes(tmp_path: Path) -> None:
    for place in (tmp_path / "ours", tmp_path / "dvcs"):
        place.mkdir()
    open_repository(tmp_path / "ours", tmp_path / "remote")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "dvcs", check=True)
    process.dvc(tmp_path / "dvcs", "init", "--quiet")
    for name in (".dvc/.gitignore", ".dvcignore"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "dvcs" / name).read_text()
    listed = subprocess.run(["git", "ls-files"], cwd=tmp_path / "dvcs", capture_output=True, text=True, check=True)
    assert listed.stdout.split() == [".dvc/.gitignore", ".dvc/config", ".dvcignore"], "and it makes no other"


def test_the_same_bytes_are_the_same_version_and_others_the_next(published: Published) -> None:
    configuration, _, (first, again, second) = published
    assert again == first
    assert second["version"] == "refvie/v2"
    assert second["revision"] != first["revision"]
    known = list_versions(Workspace.of(configuration).repository)
    assert [version["version"] for version in known] == ["refvie/v1", "refvie/v2"]
    assert [version["revision"] for version in known] == [first["revision"], second["revision"]]
    assert read_json(configuration.workdir / "dataset.json") == second


@pytest.mark.parametrize("name", ["refvie/v1", "v1", "1"])
def test_an_old_version_is_had_again_in_an_empty_folder(published: Published, tmp_path: Path, name: str) -> None:
    configuration, _, (first, _, _) = published
    said = pull(Workspace.of(configuration).repository, name, tmp_path / "out")
    assert said["digest"] == first["digest"] == describe(tmp_path / "out")["digest"]
    assert (tmp_path / "out" / "manifest.json").read_text() == '{"text": "first"}'
    assert os.access(tmp_path / "out" / "manifest.json", os.W_OK)
    assert os.listdir(tmp_path) == ["out"]


def test_dvc_pull_works_in_a_fresh_clone_beside_the_remote_after_a_move(copied: tuple[RunConfiguration, Path]) -> None:
    _, root = copied
    shutil.rmtree(root / "demo" / "data" / ".dvc" / "cache")
    clone = root / "demo" / "clone"
    subprocess.run(["git", "clone", "-q", str(root / "demo" / "data"), str(clone)], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "pull", "-q"], cwd=clone, check=True)
    assert describe(clone / "dataset")["digest"] == list_versions(clone)[-1]["digest"]


@pytest.mark.usefixtures("real_processes")
def test_what_the_remote_lacks_is_an_error_and_leaves_no_folder(copied: tuple[RunConfiguration, Path]) -> None:
    configuration, root = copied
    for path in (root / "demo" / "dvc-remote").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(LineageError, match="dvc pull: the remote lacks data"):
        pull(Workspace.of(configuration).repository, "latest", root / "out")
    assert not (root / "out").exists()


def test_a_remote_whose_bytes_were_changed_is_found_out(copied: tuple[RunConfiguration, Path]) -> None:
    configuration, root = copied
    largest = max((root / "demo" / "dvc-remote").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    largest.chmod(0o644)
    largest.write_bytes(b"x" * largest.stat().st_size)
    with pytest.raises(LineageError):
        pull(Workspace.of(configuration).repository, "latest", root / "out")
    assert not (root / "out").exists()


def test_a_folder_in_use_and_an_unknown_version_are_refused(published: Published, tmp_path: Path) -> None:
    repository = Workspace.of(published[0]).repository
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        pull(repository, "v1", tmp_path)
    with pytest.raises(UsageError, match="no dataset version 'v9'") as raised:
        pull(repository, "v9", tmp_path / "out")
    assert "refvie/v1, refvie/v2" in raised.value.remedy
    assert list_versions(tmp_path) == []


def test_a_publication_killed_at_any_step_leaves_no_half_version_and_is_completed_by_the_next(
    copied: tuple[RunConfiguration, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration, root = copied
    repository = Workspace.of(configuration).repository
    folder = _dataset(root / "dataset", "third")
    real = process.run

    class Killed(BaseException):
        pass

    for step in ("push", "tag"):

        def killing(command: list[str], place: Path | None, called: str, step: str = step) -> str:
            if step in command:
                raise Killed
            return real(command, place, called)

        monkeypatch.setattr(process, "run", killing)
        with pytest.raises(Killed):
            publish_dataset(configuration, folder, silent())
        monkeypatch.setattr(process, "run", real)
        assert [version["number"] for version in list_versions(repository)] == [1, 2]
    (repository / ".git" / "index.lock").write_text("")
    said = publish_dataset(configuration, folder, silent())
    assert said["version"] == "refvie/v3"
    assert pull(repository, "latest", root / "out")["digest"] == said["digest"] == describe(folder)["digest"]


def test_a_killed_process_leaves_no_half_version(copied: tuple[RunConfiguration, Path]) -> None:
    configuration, root = copied
    folder = _dataset(root / "dataset", "fourth")
    body = (
        "import sys; from pathlib import Path; from kiwi.configuration import RunConfiguration\n"
        "from kiwi.lineage import publish_dataset; from kiwi.tracking import silent\n"
        "publish_dataset(RunConfiguration.parse(sys.argv[1]), Path(sys.argv[2]), silent())"
    )
    process = subprocess.Popen([sys.executable, "-c", body, configuration.canonical(), str(folder)])
    time.sleep(1.5)
    process.kill()
    process.wait()
    known = list_versions(Workspace.of(configuration).repository)
    assert len(known) in (2, 3)
    said = publish_dataset(configuration, folder, silent())
    assert (said["version"], said["digest"]) == ("refvie/v3", describe(folder)["digest"])


@pytest.mark.usefixtures("real_processes")
def test_publishing_heeds_neither_git_variables_nor_user_configuration_and_leaves_the_checkout_alone(
    make_configuration: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    (checkout / ".gitignore").write_text("runs/\n")
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[commit]\n\tgpgsign = true\n[core]\n\thooksPath = /nowhere\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(checkout))
    monkeypatch.chdir(checkout)
    configuration = make_configuration().model_copy(update={"workspace": "runs/demo"})  # a relative path, too
    said = publish_dataset(configuration, _dataset(tmp_path / "dataset"), silent())
    assert said["version"] == "refvie/v1"
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_WORK_TREE")
    seen = subprocess.run(["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True)
    assert seen.stdout == "?? .gitignore\n"
    assert sorted(os.listdir(checkout)) == [".git", ".gitignore", "runs"]
    assert pull(Path("runs/demo/data"), "v1", Path("out"))["digest"] == said["digest"]


def test_a_missing_dataset_is_said_at_once(make_configuration: Make, tmp_path: Path) -> None:
    with pytest.raises(LineageError, match="no dataset in"):
        publish_dataset(make_configuration(), tmp_path / "nothing", silent())
