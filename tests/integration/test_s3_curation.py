"""Curation whose parts lie in S3: the same dataset as in a folder, through a frozen gateway and after a kill."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kiwi import storage
from kiwi.configuration import CurationSettings, RunConfiguration, SourceSettings
from kiwi.curation.build import build_dataset
from kiwi.curation.finished import dataset_folder

pytestmark = pytest.mark.services


def configured(workspace: Path, store: str | None) -> RunConfiguration:
    return RunConfiguration(
        preset="tiny",
        workspace=str(workspace),
        store=store,
        tracking_uri="",
        stages=(),
        source=SourceSettings(clips=14, images=2, frames=5),
        curation=CurationSettings(shards=2, chunk_rows=4, min_training_pairs=1, unique_crops=True),
    )


def contents(configuration: RunConfiguration) -> dict[str, str]:
    folder = dataset_folder(configuration)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    configuration = configured(tmp_path_factory.mktemp("folder"), None)
    build_dataset(configuration)
    return contents(configuration)


def building(configuration: RunConfiguration) -> subprocess.Popen[bytes]:
    program = (
        "import sys; from kiwi.configuration import RunConfiguration; from kiwi.curation.build import build_dataset\n"
        "build_dataset(RunConfiguration.parse(sys.argv[1]))\n"
    )
    return subprocess.Popen([sys.executable, "-c", program, configuration.canonical()])


def test_parts_in_s3_give_the_dataset_that_parts_in_a_folder_give(
    bucket: str, tmp_path: Path, expected: dict[str, str]
) -> None:
    configuration = configured(tmp_path, f"{bucket}/curation")
    build_dataset(configuration)
    assert contents(configuration) == expected
    assert any(name.endswith(".tar") for name in storage.list_files(f"{bucket}/curation"))
    assert not list((tmp_path / "curation").glob("stages"))


def test_a_gateway_frozen_for_a_while_only_delays_a_build(
    s3: Any, bucket: str, tmp_path: Path, expected: dict[str, str]
) -> None:
    configuration = configured(tmp_path, f"{bucket}/curation")
    builder = building(configuration)
    while not storage.list_files(f"{bucket}/curation"):
        time.sleep(0.1)
    s3.pause()
    time.sleep(15)
    assert builder.poll() is None, "the build ended while its store was frozen"
    s3.resume()
    assert builder.wait(120) == 0
    assert contents(configuration) == expected


def test_builds_killed_over_s3_go_on_to_the_same_bytes(bucket: str, tmp_path: Path, expected: dict[str, str]) -> None:
    configuration = configured(tmp_path, f"{bucket}/curation")
    for seconds in (2.0, 3.0, 4.0):
        builder = building(configuration)
        time.sleep(seconds)
        builder.kill()
        builder.wait()
    build_dataset(configuration)
    assert contents(configuration) == expected
