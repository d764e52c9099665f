"""One door to local files and addresses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kiwi import storage
from kiwi.errors import UsageError
from kiwi.storage import remote


def test_bytes_go_in_whole_and_leave_no_temporary_file(tmp_path: Path) -> None:
    path = storage.join(tmp_path, "a", "b.bin")
    storage.write_bytes(path, b"one")
    storage.write_bytes(path, b"two")
    assert storage.read_bytes(path) == b"two"
    assert os.listdir(tmp_path / "a") == ["b.bin"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(tmp_path / "x", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(storage.StorageError, match="No space left"):
        storage.write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_files_are_listed_sorted_and_relative(tmp_path: Path) -> None:
    for name in ("b/2", "a/1", "c"):
        storage.write_bytes(storage.join(tmp_path, name), b"")
    assert storage.list_files(tmp_path) == ["a/1", "b/2", "c"]
    assert storage.list_files(tmp_path / "absent") == []


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(storage.StorageError, match="absent"):
        storage.read_bytes(tmp_path / "absent")
    with pytest.raises(storage.StorageError, match="nosuch://"):
        storage.read_bytes("nosuch://bucket/key")


def test_addresses_work_as_paths_do() -> None:
    root = "memory://storage-test/data"
    storage.write_bytes(storage.join(root, "x", "1.bin"), b"abc")
    assert storage.read_bytes(f"{root}/x/1.bin") == b"abc"
    assert storage.exists(f"{root}/x/1.bin")
    assert not storage.exists(f"{root}/x/2.bin")
    assert storage.is_folder(f"{root}/x")
    assert storage.list_files(root) == ["x/1.bin"]
    assert storage.parent(f"{root}/x/1.bin") == f"{root}/x"
    with pytest.raises(storage.StorageError):
        storage.read_bytes(f"{root}/absent")


def test_a_store_that_cannot_be_reached_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        def cat_file(self, path: str) -> bytes:
            raise RuntimeError(f"could not connect to the endpoint of {path}")

    monkeypatch.setattr(storage, "filesystem", lambda path: Away())
    with pytest.raises(storage.StorageError, match="could not connect") as caught:
        storage.read_bytes("s3://bucket/key")
    assert caught.value.remedy


@pytest.mark.parametrize("root", ["memory://storage-ranges", ""])
def test_parts_of_a_file_are_read_without_the_rest(root: str, tmp_path: Path) -> None:
    path = storage.join(root or tmp_path, "x.bin")
    storage.write_bytes(path, bytes(range(100)))
    assert storage.size(path) == 100
    assert storage.read_range(path, 10, 20) == bytes(range(10, 20))
    assert storage.read_range(path, 95, 1000) == bytes(range(95, 100))
    assert storage.read_range(path, 5, 5) == b""
    with storage.open_read(path, ahead=7) as file:
        file.seek(-30, os.SEEK_END)
        assert file.read(10) == bytes(range(70, 80))
        assert file.read() == bytes(range(80, 100))
        file.seek(3)
        assert file.read(1) == b"\x03"
        file.seek(0)
        assert b"".join(iter(lambda: file.read(9), b"")) == bytes(range(100))
    with pytest.raises(ValueError, match="no range"):
        storage.read_range(path, 20, 10)


@pytest.mark.parametrize("root", ["memory://storage-copies", ""])
def test_files_go_out_and_come_back_whole(root: str, tmp_path: Path) -> None:
    data = os.urandom(20 * 2**20 + 3)  # several ranges
    (tmp_path / "here").write_bytes(data)
    path = storage.join(root or tmp_path / "there", "a", "b")
    storage.upload(tmp_path / "here", path)
    assert storage.read_bytes(path) == data
    storage.download(path, tmp_path / "back" / "c")
    assert (tmp_path / "back" / "c").read_bytes() == data
    assert os.listdir(tmp_path / "back") == ["c"]


@pytest.mark.parametrize("root", ["memory://storage-deletes", ""])
def test_deleting_takes_what_is_named_and_minds_nothing_that_is_gone(root: str, tmp_path: Path) -> None:
    root = root or str(tmp_path)
    for name in ("a/1", "a/2", "ab/3"):
        storage.write_bytes(storage.join(root, name), b"x")
    storage.delete(storage.join(root, "a", "1"))
    storage.delete(storage.join(root, "a", "1"))
    assert storage.list_files(root) == ["a/2", "ab/3"]
    storage.delete_folder(storage.join(root, "a"))
    storage.delete_folder(storage.join(root, "a"))
    assert storage.list_files(root) == ["ab/3"]


def test_a_whole_disk_home_or_bucket_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "kept").write_text("")
    monkeypatch.setattr("shutil.rmtree", lambda folder: pytest.fail(f"{folder} would be gone"))
    for path in ("/", "", ".", tmp_path, "s3://bucket", "s3://bucket/", "file:///"):
        with pytest.raises(storage.StorageError, match="refusing"):
            storage.delete_folder(path)


@pytest.mark.parametrize("root", ["memory://storage-absent", ""])
def test_what_is_absent_or_a_folder_is_told_by_every_reader(root: str, tmp_path: Path) -> None:
    root = root or str(tmp_path)
    storage.write_bytes(storage.join(root, "folder", "x"), b"")
    for read in (storage.size, storage.open_read, lambda path: storage.download(path, tmp_path / "out")):
        with pytest.raises(storage.StorageError, match=r"absent.*not found"):
            read(storage.join(root, "absent"))
    with pytest.raises(storage.StorageError, match="folder"):
        storage.size(storage.join(root, "folder"))
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_in_the_systems_words_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "source").write_bytes(b"x")
    for write in (
        lambda path: storage.write_bytes(path, b"x"),
        lambda path: storage.upload(tmp_path / "source", path),
        lambda path: storage.download(tmp_path / "source", path),
    ):
        with pytest.raises(storage.StorageError, match=r"to/x: No space left on device") as caught:
            write(tmp_path / "to" / "x")
        assert "free space" in caught.value.remedy
        assert os.listdir(tmp_path / "to") == []


def test_a_folder_that_cannot_be_made_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(storage.StorageError, match=r"file/x: (Not a directory|File exists)"):
        storage.write_bytes(tmp_path / "file" / "x", b"")


def test_two_hosts_with_one_process_number_do_not_share_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    replace = os.replace
    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(os, "replace", lambda source, to: (names.append(str(source)), replace(source, to))[1])
    storage.write_bytes(tmp_path / "x", b"1")
    storage.write_bytes(tmp_path / "x", b"2")
    assert len(set(names)) == 2


class _AnswerError(Exception):
    """A fake of botocore's ClientError, as s3fs hands it on: what the service answered, without a service."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which are not slept."""
    slept: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", slept.append)
    return slept


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (429, "429"), (408, "x")])
def test_a_store_that_is_busy_is_asked_again(
    sleeps: list[float], caplog: pytest.LogCaptureFixture, status: int, code: str
) -> None:
    answers = iter([_AnswerError(status, code), TimeoutError(), ConnectionResetError(), None])

    def question() -> str:
        answer = next(answers)
        if answer is not None:
            raise answer
        return "done"

    assert remote.ask("s3://bucket/key", question) == "done"
    assert len(sleeps) == 3
    assert caplog.text.count("trying again for up to 120 s") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (_AnswerError(403, "403"), "access refused"),
        (PermissionError("Forbidden"), "access refused"),
        (_AnswerError(404, "NoSuchBucket"), "no bucket 'bucket'"),
        (FileNotFoundError("x"), "not found"),
        (_AnswerError(501, "NotImplemented"), "NotImplemented"),
    ],
)
def test_what_will_not_change_is_told_at_once(sleeps: list[float], error: Exception, said: str) -> None:
    def question() -> None:
        raise error

    with pytest.raises(storage.StorageError, match=said) as caught:
        remote.ask("s3://bucket/key", question)
    assert sleeps == []
    assert caught.value.remedy


def test_patience_is_bounded_and_said_in_seconds(sleeps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def question() -> None:
        raise TimeoutError("no answer")

    monkeypatch.setenv("KIWI_STORAGE_PATIENCE", "0")
    with pytest.raises(storage.StorageError, match="the store is away: no answer"):
        remote.ask("s3://bucket/key", question)
    assert sleeps == []
    for wrong in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv("KIWI_STORAGE_PATIENCE", wrong)
        with pytest.raises(UsageError, match=f"KIWI_STORAGE_PATIENCE={wrong}"):
            remote.ask("s3://bucket/key", question)


def test_an_endpoint_is_shown_without_the_password_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://me:hush@store:9000")

    def question() -> None:
        raise FileNotFoundError("x")

    with pytest.raises(storage.StorageError, match="at http://store:9000: not found"):
        remote.ask("s3://bucket/key", question)
