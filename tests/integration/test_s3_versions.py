"""Dataset versions in a remote on a real S3 gateway: round trip, outages, kills at any moment, and clear refusals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kiwi import storage
from kiwi.configuration import RunConfiguration, StageSettings
from kiwi.dataset.rows import conform, write_rows
from kiwi.errors import UsageError
from kiwi.lineage import LineageError, describe, diff_versions, dvc, git, list_versions, publish_dataset, pull
from kiwi.tracking import silent
from kiwi.workspace import Workspace

pytestmark = pytest.mark.services

PUBLISH = """
import sys
from pathlib import Path
from kiwi.configuration import RunConfiguration
from kiwi.lineage import publish_dataset
from kiwi.tracking import silent
publish_dataset(RunConfiguration.parse(sys.argv[1]), Path(sys.argv[2]), silent())
"""
PULL = """
import sys
from pathlib import Path
from kiwi.lineage import pull
pull(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
"""


@pytest.fixture
def configuration(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfiguration:
    """A new workspace whose remote is a prefix in a new bucket."""
    monkeypatch.setenv("KIWI_DVC_REMOTE", f"{bucket}/team ä/dvc")
    stage = StageSettings(name="s", steps=1, mix={"image": 1.0}, learning_rate=1e-3, mllm_learning_rate=1e-3)
    (tmp_path / "demo").mkdir()
    return RunConfiguration(
        preset="tiny", workspace=str(tmp_path / "demo"), tracking_uri=f"sqlite:///{tmp_path}/t.db", stages=(stage,)
    )


def _dataset(folder: Path, rows: int = 6, media: int = 3, size: int = 1_000_000) -> Path:
    """A dataset's files: rows that can be compared, and media that are random bytes."""
    kept = {"status": "kept", "reason": "", "trains_as": "quadruplet", "score_overall": 8.0}
    table = [{"position": n, "iid": f"iid{n}", "pair_id": f"pair{n}", "prompt": "x", **kept} for n in range(rows)]
    write_rows(conform(pl.DataFrame(table)), folder / "rows" / "part-00000.parquet")
    (folder / "media").mkdir(exist_ok=True)
    for number in range(media):
        (folder / "media" / f"media-{number:05d}.tar").write_bytes(os.urandom(size))
    (folder / "manifest.json").write_text("{}")
    return folder


def test_a_version_goes_out_is_listed_compared_and_comes_back(
    configuration: RunConfiguration, bucket: str, tmp_path: Path
) -> None:
    repository = Workspace.of(configuration).repository
    first = publish_dataset(configuration, _dataset(tmp_path / "dataset"), silent())
    digest = describe(tmp_path / "dataset")["digest"]
    second = publish_dataset(configuration, _dataset(tmp_path / "dataset", rows=8), silent())
    assert publish_dataset(configuration, tmp_path / "dataset", silent()) == second
    assert first["remote"] == f"{bucket}/team ä/dvc"
    assert [version["version"] for version in list_versions(repository)] == ["refvie/v1", "refvie/v2"]
    shutil.rmtree(repository / ".dvc" / "cache")
    for name in ("v1", str(first["revision"])):
        said = pull(repository, name, tmp_path / f"out-{name}")
        assert said["digest"] == first["digest"] == digest == describe(tmp_path / f"out-{name}")["digest"]
    assert diff_versions(repository, "v1", "v2")["rows"]["added"] == 2
    before = set(storage.list_files(bucket))
    pull(repository, "v2", tmp_path / "rows", rows_only=True)
    assert sorted(os.listdir(tmp_path / "rows")) == ["manifest.json", "rows"]
    assert set(storage.list_files(bucket)) == before


def test_neither_secrets_nor_the_endpoint_go_into_the_repository_or_what_is_printed(
    configuration: RunConfiguration, s3: Any, tmp_path: Path
) -> None:
    done = _publishing(configuration, _dataset(tmp_path / "dataset"), capture=True)
    said = b"".join(done.communicate())
    assert done.returncode == 0, said
    repository = Workspace.of(configuration).repository
    objects = subprocess.run(
        ["git", "cat-file", "--batch-all-objects", "--batch"], cwd=repository, capture_output=True, check=True
    ).stdout
    assert b"refvie/v1" in objects  # it is the history that was searched
    written = {path: path.read_bytes() for path in Workspace.of(configuration).root.rglob("*") if path.is_file()}
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert [path for path, data in written.items() if secret in data] == []
    for secret_or_place in (secret, s3.endpoint.encode()):
        assert secret_or_place not in objects
        assert secret_or_place not in said


def test_a_gateway_frozen_for_thirty_seconds_while_publishing_only_costs_the_time(
    configuration: RunConfiguration, s3: Any, bucket: str, tmp_path: Path
) -> None:
    process = _publishing(configuration, _dataset(tmp_path / "dataset", media=60))
    _until(lambda: len(storage.list_files(bucket)) > 2, process)
    thaw = s3.pause_for(30.0)
    assert process.poll() is None, "it was frozen too late to be in the middle"
    assert process.wait(timeout=200) == 0
    thaw.join()
    _assert_all_is_whole(configuration, tmp_path)
    assert [version["number"] for version in list_versions(Workspace.of(configuration).repository)] == [1]


def test_a_publication_killed_again_and_again_leaves_no_half_version_and_the_next_completes_it(
    configuration: RunConfiguration, bucket: str, tmp_path: Path
) -> None:
    repository = Workspace.of(configuration).repository
    publish_dataset(configuration, _dataset(tmp_path / "dataset"), silent())
    folder = _dataset(tmp_path / "dataset", rows=7, media=60)
    in_remote = len(storage.list_files(bucket))
    reached = []
    moments: list[tuple[str, Callable[[], Any]]] = [
        ("copied in", lambda: (repository / "dataset" / "media" / "media-00050.tar").exists()),
        ("some pushed", lambda: len(storage.list_files(bucket)) > in_remote + 2),
        ("all pushed", lambda: len(storage.list_files(bucket)) >= in_remote + 62),
        ("committed", lambda: git(repository, "log", "--format=%s", "-1") == "Publish refvie/v2"),
    ]
    for name, moment in moments:
        process = _publishing(configuration, folder)
        _until(lambda process=process, moment=moment: process.poll() is not None or moment(), None)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append((name, [version["number"] for version in list_versions(repository)]))
        _assert_all_is_whole(configuration, tmp_path)
    assert reached[0] == ("copied in", [1])
    assert reached[1] == ("some pushed", [1])
    said = publish_dataset(configuration, folder, silent())
    assert (said["version"], said["digest"]) == ("refvie/v2", describe(folder)["digest"])
    _assert_all_is_whole(configuration, tmp_path)
    assert len(list_versions(repository)) == 2


def test_a_killed_pull_goes_on_and_does_not_fetch_again_what_it_has(
    configuration: RunConfiguration, bucket: str, tmp_path: Path
) -> None:
    folder = _dataset(tmp_path / "dataset", media=60)
    publish_dataset(configuration, folder, silent())
    repository = Workspace.of(configuration).repository
    out, cache = tmp_path / "out", tmp_path / ".out.pulling" / "cache" / "files" / "md5"
    process = subprocess.Popen([sys.executable, "-c", PULL, str(repository), "v1", str(out)])
    _until(lambda: len(_fetched(cache)) > 5, process)
    process.kill()
    process.wait()
    assert not out.exists()
    fetched = _fetched(cache)
    for path in fetched:  # what it has need not even be there any more
        if not path.endswith(".dir"):
            storage.delete(f"{os.environ['KIWI_DVC_REMOTE']}/files/md5/{path}")
    assert pull(repository, "v1", out)["digest"] == describe(folder)["digest"] == describe(out)["digest"]
    assert not cache.exists()


def test_what_was_lost_in_the_remote_is_found_out_when_publishing_and_sent_again(
    configuration: RunConfiguration, bucket: str, tmp_path: Path
) -> None:
    folder = _dataset(tmp_path / "dataset")
    publish_dataset(configuration, folder, silent())
    for name in storage.list_files(bucket):
        if not name.endswith(".dir"):
            storage.delete(f"{bucket}/{name}")
    (folder / "manifest.json").write_text('{"changed": 1}')
    publish_dataset(configuration, folder, silent())
    assert pull(Workspace.of(configuration).repository, "v2", tmp_path / "out")["files"] == 5


@pytest.mark.timeout(100)  # a publication to nowhere must be told within seconds, not after DVC's own minutes
def test_a_gateway_that_is_away_is_one_clear_error(
    configuration: RunConfiguration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _dataset(tmp_path / "dataset")
    publish_dataset(configuration, folder, silent())
    repository = Workspace.of(configuration).repository
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(storage.StorageError, match=r"at http://127\.0\.0\.1:9: the store is away") as caught:
        pull(repository, "v1", tmp_path / "out")
    assert "AWS_ENDPOINT_URL" in caught.value.remedy
    (folder / "manifest.json").write_text('{"changed": 1}')
    with pytest.raises(storage.StorageError, match="the store is away"):
        publish_dataset(configuration, folder, silent())
    assert len(list_versions(repository)) == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_bucket_and_wrong_credentials_are_told_before_anything_is_done(
    configuration: RunConfiguration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _dataset(tmp_path / "dataset")
    remote = os.environ["KIWI_DVC_REMOTE"]
    monkeypatch.setenv("KIWI_DVC_REMOTE", "s3://nosuch-bucket/dvc")
    with pytest.raises(storage.StorageError, match="no bucket 'nosuch-bucket'"):
        publish_dataset(configuration, folder, silent())
    monkeypatch.setenv("KIWI_DVC_REMOTE", remote)
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "wrong-but-still-secret"}
    done = subprocess.run(
        [sys.executable, "-c", PUBLISH, configuration.canonical(), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "access refused" in done.stderr
    assert "wrong-but-still-secret" not in done.stdout + done.stderr
    assert not Workspace.of(configuration).repository.exists()


def test_data_missing_in_the_remote_are_named_and_nothing_appears(
    configuration: RunConfiguration, bucket: str, tmp_path: Path
) -> None:
    publish_dataset(configuration, _dataset(tmp_path / "dataset"), silent())
    repository = Workspace.of(configuration).repository
    for name in storage.list_files(bucket):
        storage.delete(f"{bucket}/{name}")
    with pytest.raises(LineageError, match="dvc pull: the remote lacks data"):
        pull(repository, "v1", tmp_path / "out")
    with pytest.raises(UsageError, match="v7"):
        pull(repository, "v7", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _publishing(configuration: RunConfiguration, folder: Path, capture: bool = False) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE if capture else None
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISH, configuration.canonical(), str(folder)], stdout=pipe, stderr=pipe
    )


def _assert_all_is_whole(configuration: RunConfiguration, scratch: Path) -> None:
    """Each tag and the head of main can be had from the remote alone."""
    repository = Workspace.of(configuration).repository
    for version in list_versions(repository):
        assert pull(repository, version["version"], scratch / "whole")["digest"] == version["digest"]
        shutil.rmtree(scratch / "whole")
    clone = scratch / "clone"
    git(None, "clone", "--quiet", str(repository), str(clone))
    dvc(clone, "pull", "--quiet")
    assert describe(clone / "dataset")["digest"] in (clone / "version.json").read_text()
    shutil.rmtree(clone)


def _fetched(cache: Path) -> list[str]:
    """The whole objects in a DVC cache, as their names in the remote."""
    found = (path.relative_to(cache).as_posix() for path in cache.glob("??/*"))
    return [name for name in found if len(name.partition("/")[2].removesuffix(".dir")) == 30]


def _until(asked: Callable[[], Any], process: subprocess.Popen[bytes] | None, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not asked():
        assert process is None or process.poll() is None, "it ended before that"
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)
