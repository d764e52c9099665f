"""kiwi.storage against a real S3 gateway: every function, odd names, many keys, outages, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kiwi import storage

pytestmark = pytest.mark.services

ODD = "ä ö/日本語/a b+c#d?e%20f&g=h'.bin"


def test_bytes_come_back_whatever_the_name(bucket: str) -> None:
    path = storage.join(bucket, ODD)
    storage.write_bytes(path, b"one")
    storage.write_bytes(path, b"hello world")
    assert storage.read_bytes(path) == b"hello world"
    assert storage.size(path) == 11
    assert storage.list_files(bucket) == [ODD]
    assert storage.list_files(f"{bucket}/ä ö") == [ODD.partition("/")[2]]
    assert storage.exists(path)
    assert storage.is_folder(f"{bucket}/ä ö/日本語")
    assert not storage.is_folder(path)
    assert not storage.exists(f"{bucket}/ä")
    storage.delete(path)
    storage.delete(path)
    assert not storage.exists(path)


def test_what_another_process_writes_is_seen_at_once(bucket: str) -> None:
    assert storage.list_files(f"{bucket}/x") == []
    assert not storage.exists(f"{bucket}/x/1")
    body = "import sys; from kiwi import storage; storage.write_bytes(sys.argv[1], b'1')"
    subprocess.run([sys.executable, "-c", body, f"{bucket}/x/1"], check=True)
    assert storage.exists(f"{bucket}/x/1")
    assert storage.list_files(f"{bucket}/x") == ["1"]


def test_ranges_end_with_the_file(bucket: str) -> None:
    path = f"{bucket}/r"
    storage.write_bytes(path, bytes(range(100)))
    assert storage.read_range(path, 10, 20) == bytes(range(10, 20))
    assert storage.read_range(path, 95, 1000) == bytes(range(95, 100))
    assert storage.read_range(path, 100, 1000) == b""
    assert storage.read_range(path, 5, 5) == b""


def test_large_files_go_in_parts_and_come_back_the_same(bucket: str, tmp_path: Path) -> None:
    data = os.urandom(20 * 2**20 + 7)
    (tmp_path / "big").write_bytes(data)
    path = f"{bucket}/big"
    storage.upload(tmp_path / "big", path)
    storage.download(path, tmp_path / "back" / "big")
    assert (tmp_path / "back" / "big").read_bytes() == data
    assert os.listdir(tmp_path / "back") == ["big"]
    storage.write_bytes(f"{bucket}/big2", data)
    assert storage.read_bytes(f"{bucket}/big2") == data
    with storage.open_read(path, ahead=1 << 20) as file:
        file.seek(-7, os.SEEK_END)
        assert file.read() == data[-7:]
        file.seek(1 << 20)
        assert file.read(10) == data[1 << 20 : (1 << 20) + 10]
        file.seek(0)
        assert file.read() == data
    assert _unfinished(bucket) == []


def test_an_upload_that_is_killed_leaves_no_object_and_the_old_one_whole(bucket: str, tmp_path: Path) -> None:
    path = f"{bucket}/big"
    storage.write_bytes(path, b"old")
    with open(tmp_path / "big", "wb") as file:
        file.truncate(400 * 2**20)
    body = (
        "import sys; from pathlib import Path; from kiwi import storage; storage.upload(Path(sys.argv[1]), sys.argv[2])"
    )
    process = subprocess.Popen([sys.executable, "-c", body, str(tmp_path / "big"), path])
    _until(lambda: _unfinished(bucket))  # it has begun
    process.kill()
    process.wait()
    assert storage.read_bytes(path) == b"old"


def test_ten_thousand_keys_are_listed_and_deleted_as_a_folder(bucket: str) -> None:
    import boto3

    client = boto3.client("s3")
    name = bucket.removeprefix("s3://")
    with ThreadPoolExecutor(16) as pool:
        done = pool.map(lambda n: client.put_object(Bucket=name, Key=f"many/{n % 7}/{n:05d}", Body=b""), range(10_000))
        assert len(list(done)) == 10_000
    storage.write_bytes(f"{bucket}/many2/kept", b"")
    found = storage.list_files(f"{bucket}/many")
    assert found == sorted(f"{n % 7}/{n:05d}" for n in range(10_000))
    storage.delete_folder(f"{bucket}/many")
    storage.delete_folder(f"{bucket}/many")
    assert storage.list_files(bucket) == ["many2/kept"]
    with pytest.raises(storage.StorageError, match="refusing to delete a whole bucket"):
        storage.delete_folder(bucket)


def test_a_gateway_frozen_for_twenty_seconds_in_the_middle_of_reading_only_costs_the_time(
    s3: Any, bucket: str, tmp_path: Path
) -> None:
    data = os.urandom(24 * 2**20)
    storage.write_bytes(f"{bucket}/big", data)
    with storage.open_read(f"{bucket}/big", ahead=1 << 20) as file:
        read = file.read(5 << 20)
        thaw = s3.pause_for(20.0)  # longer than one request's 15 s
        read += file.read()
        thaw.join()
    assert read == data
    thaw = s3.pause_for(5.0)
    storage.download(f"{bucket}/big", tmp_path / "big")
    thaw.join()
    assert (tmp_path / "big").read_bytes() == data


def test_a_gateway_frozen_while_writing_ends_with_the_whole_object(s3: Any, bucket: str) -> None:
    data = os.urandom(24 * 2**20)
    threading.Timer(0.05, s3.pause).start()
    thaw = threading.Timer(18.0, s3.resume)
    thaw.start()
    storage.write_bytes(f"{bucket}/big", data)
    thaw.join()
    assert storage.read_bytes(f"{bucket}/big") == data


def test_patience_ends_when_it_is_said_to(s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{bucket}/x", b"1")
    monkeypatch.setenv("KIWI_STORAGE_PATIENCE", "1")
    s3.pause()
    with pytest.raises(storage.StorageError, match="the store is away") as caught:
        storage.read_bytes(f"{bucket}/x")
    assert s3.endpoint in str(caught.value)
    assert "KIWI_STORAGE_PATIENCE (1 s)" in caught.value.remedy


@pytest.mark.timeout(60)  # half of what it takes where all of patience is spent
def test_a_service_that_was_never_there_is_told_long_before_patience_ends(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(storage.StorageError, match=r"at http://127\.0\.0\.1:9: the store is away") as caught:
        storage.read_bytes(f"{bucket}/x")
    assert "AWS_ENDPOINT_URL" in caught.value.remedy
    assert "trying again for up to 10 s" in caplog.text  # meanwhile it says what it waits for


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_refused_at_once_and_not_repeated(
    bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    body = (
        "import sys; from kiwi import storage; from kiwi.storage import remote\n"
        "remote.tenacity.nap.time.sleep = lambda seconds: sys.exit('waited')\n"
        "for ask in (storage.check, storage.exists, storage.list_files, storage.read_bytes):\n"
        "    try: ask(sys.argv[1])\n"
        "    except storage.StorageError as error: print(error)\n"
        "    else: sys.exit(f'{ask} raised nothing')"
    )
    environment = {**os.environ, variable: "some-other-value"}
    done = subprocess.run(
        [sys.executable, "-c", body, f"{bucket}/x"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("access refused") == 4
    assert "AWS_SECRET_ACCESS_KEY" in done.stdout
    assert "some-other-value" not in done.stdout + done.stderr


def test_a_missing_bucket_is_named(s3: Any) -> None:
    for ask in (storage.check, storage.list_files, storage.read_bytes):
        with pytest.raises(storage.StorageError, match="no bucket 'nosuch-bucket'"):
            ask("s3://nosuch-bucket/x")
    with pytest.raises(storage.StorageError, match="no bucket 'nosuch-bucket'"):
        storage.write_bytes("s3://nosuch-bucket/x", b"")


def _unfinished(bucket: str) -> list[Any]:
    import boto3

    found = boto3.client("s3").list_multipart_uploads(Bucket=bucket.removeprefix("s3://"))
    return list(found.get("Uploads", []))


def _until(asked: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not asked():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
