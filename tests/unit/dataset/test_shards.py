"""Media in tar shards."""

from __future__ import annotations

import hashlib
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiwi.dataset.shards import (
    ShardError,
    ShardReader,
    ShardSet,
    member_address,
    pack_shards,
    split_address,
    write_shard,
)


def test_the_same_members_give_the_same_bytes_at_any_time(tmp_path: Path) -> None:
    members = [("a.mp4", b"one"), ("b.mp4", b"x" * 1000)]
    first = write_shard(tmp_path / "1.tar", members)
    time.sleep(0.01)
    second = write_shard(tmp_path / "2.tar", members)
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert first.sha256 == second.sha256 == hashlib.sha256((tmp_path / "1.tar").read_bytes()).hexdigest()
    assert (first.members, first.bytes) == (2, (tmp_path / "1.tar").stat().st_size)


def test_any_tar_program_can_read_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [("a.mp4", b"one"), ("é" * 80 + ".mp4", b""), ("b.mp4", b"y" * 513)])
    with tarfile.open(tmp_path / "s.tar") as archive:
        assert [(member.name, member.size, member.mtime) for member in archive] == [
            ("a.mp4", 3, 0),
            ("é" * 80 + ".mp4", 0, 0),
            ("b.mp4", 513, 0),
        ]


def test_a_name_cannot_come_twice(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="twice"):
        write_shard(tmp_path / "s.tar", [("a", b"1"), ("a", b"2")])
    assert not (tmp_path / "s.tar").exists()
    with pytest.raises(ShardError, match="twice"):
        pack_shards(tmp_path, "m", [("a", b"1" * 2000), ("a", b"2" * 2000)], 1000)


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 3000), max_size=20), capacity=st.integers(1, 9000))
def test_packing_keeps_every_member_in_order_within_the_capacity(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], capacity: int
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    members = [(f"{number}.mp4", bytes([number]) * size) for number, size in enumerate(sizes)]
    books, places = pack_shards(folder, "media", iter(members), capacity)
    assert sum(book.members for book in books) == len(members) == len(places)
    order = []
    for book in books:
        with ShardReader(folder / book.name) as reader:
            assert book.members == 1 or book.bytes - 1024 <= capacity
            order += reader.names
            assert all(places[name] == book.name for name in reader.names)
            assert all(reader.read(name) == dict(members)[name] for name in reader.names)
    assert order == [name for name, _ in members]


def test_members_are_read_by_their_address(tmp_path: Path) -> None:
    write_shard(tmp_path / "media" / "media-00000.tar", [("a.mp4", b"one")])
    address = member_address("media/media-00000.tar", "a.mp4")
    assert split_address(address) == ("media/media-00000.tar", "a.mp4")
    with ShardSet(tmp_path) as shards:
        assert shards.read(address) == b"one"
        with pytest.raises(ShardError, match="no member b"):
            shards.read("media/media-00000.tar::b")
        with pytest.raises(ShardError, match="media-00009"):
            shards.read("media/media-00009.tar::b")
        with pytest.raises(ShardError, match="no member address"):
            shards.read("a.mp4")


def test_a_shard_that_is_cut_short_is_told(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.tar", [("a", b"1" * 5000), ("b", b"2" * 5000)])
    whole = (tmp_path / "s.tar").read_bytes()
    for kept in (200, 3000, 7000):
        (tmp_path / "cut.tar").write_bytes(whole[:kept])
        with pytest.raises(ShardError), ShardReader(tmp_path / "cut.tar") as reader:
            reader.read("b")
