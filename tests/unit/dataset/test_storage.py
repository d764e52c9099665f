"""One door to local files and addresses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kiwi import storage


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

    monkeypatch.setattr(storage, "_filesystem", lambda path: Away())
    with pytest.raises(storage.StorageError, match="could not connect") as caught:
        storage.read_bytes("s3://bucket/key")
    assert caught.value.remedy
