"""Tar archives read by random access: split, gzipped, hostile, cut short."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from kiwi.dataset.schema import Reason
from kiwi.sources import archives, inflating
from kiwi.sources.adapter import SourceError, SourceFailure
from kiwi.sources.inflating import Inflated

Written = Callable[[dict[str, Any]], str]
TarOf = Callable[[Iterable[tuple[str, bytes]]], bytes]
MISSING = Reason.TARGET_MISSING


def test_names_of_parts_are_told_from_other_files() -> None:
    expected = {
        "x.tar": ("x.tar", ""),
        "x.tar.00": ("x.tar", "00"),
        "x.tar.part-ab": ("x.tar", "ab"),
        "x.tar.gz.part001": ("x.tar.gz", "001"),
        "x.tar.gz.aa": ("x.tar.gz", "aa"),
        "x.tar.gz": ("x.tar.gz", ""),
        "x.tar_part12": ("x.tar", "12"),
        "a.b.TAR": ("a.b.TAR", ""),
        "x.tar.xz": None,
        "x.tar.extracted": None,
        "x.tar.md5": None,
        "x.json": None,
        "tar": None,
    }
    assert {name: archives.split_name(name) for name in expected} == expected


def test_parts_are_joined_by_number_not_by_name(written: Written, tar_of: TarOf) -> None:
    data = tar_of([(f"{number}.png", bytes([number]) * 900) for number in range(9)])
    size = -(-len(data) // 11)
    root = written({f"s/x.tar.{number}": data[number * size : (number + 1) * size] for number in range(11)})
    (archive,) = archives.archives_in(root, "s")
    assert [part.rpartition(".")[2] for part in archive.parts] == [str(number) for number in range(11)]
    for number in (8, 0, 4):
        assert archives.read_member(root, "s", f"s/{number}.png", MISSING) == bytes([number]) * 900
    assert archives.read_member(root, "s", "s/9.png", MISSING) is None


@pytest.mark.parametrize(
    ("parts", "absent"), [(("00", "02"), "1"), (("02", "03"), "1"), (("aa", "ac"), "1"), (("001", "002", "004"), "3")]
)
def test_a_missing_part_is_told_by_number(written_here: Written, parts: tuple[str, ...], absent: str) -> None:
    root = written_here({f"x.tar.{part}": b"data" for part in parts})
    with pytest.raises(SourceError, match=rf"x\.tar: part {absent} of \d is missing"):
        archives.archives_in(root, "")


def test_an_archive_whose_last_part_is_missing_is_told(written_here: Written, tar_of: TarOf) -> None:
    data = tar_of([("a.png", b"a" * 5000), ("b.png", b"b" * 5000)])
    for name, content in (("plain.tar.00", data[:7000]), ("zipped.tar.gz.00", gzip.compress(data)[:60])):
        root = written_here({f"{name}-folder/{name}": content})
        with pytest.raises(SourceError, match="cannot be read as a tar archive"):
            archives.read_member(root, f"{name}-folder", f"{name}-folder/b.png", MISSING)
    root = written_here({"no/x.tar": b"this is no tar" * 100})
    with pytest.raises(SourceError, match="cannot be read as a tar archive"):
        archives.read_member(root, "no", "no/b.png", MISSING)


def hostile() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(data)
            tar.addfile(info, io.BytesIO(data))

        add("link.png", tarfile.SYMTYPE, "/etc/passwd")
        add("hard.png", tarfile.LNKTYPE, "../outside.png")
        add("device.png", tarfile.CHRTYPE)
        add("pipe.png", tarfile.FIFOTYPE)
        add("../outside.png", data=b"outside")
        add("/etc/absolute.png", data=b"absolute")
        add("in/../../outside2.png", data=b"outside")
        add("d" * 200 + "/long.png", data=b"long")
        add("./plain.png", data=b"plain")
    return file.getvalue()


def test_links_devices_and_members_that_lead_out_are_refused(written_here: Written) -> None:
    root = written_here({"s/x.tar": hostile()})
    for name in ("link.png", "hard.png", "device.png", "pipe.png"):
        with pytest.raises(SourceFailure, match="is a link or a device") as caught:
            archives.read_member(root, "s", f"s/{name}", MISSING)
        assert caught.value.reason is Reason.PATH_ESCAPES
    assert archives.read_member(root, "s", "s/plain.png", MISSING) == b"plain"
    assert archives.read_member(root, "s", f"s/{'d' * 200}/long.png", MISSING) == b"long"
    for name in ("outside.png", "s/outside.png", "outside2.png", "etc/absolute.png", "s/etc/absolute.png"):
        assert archives.read_member(root, "s", name, MISSING) is None


def test_a_member_larger_than_a_clip_may_be_is_refused_before_it_is_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge.png")
    info.size = 3 << 30
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(info.tobuf())
        file.truncate(info.size + 2048)  # a hole: it takes no room on the disk
    with pytest.raises(SourceFailure) as caught:
        archives.read_member(str(tmp_path), "", "huge.png", MISSING)
    assert caught.value.reason is Reason.OVER_LIMITS


@pytest.mark.parametrize("pieces", [1, 3])
def test_any_range_of_a_gzip_stream_is_what_inflating_all_of_it_gives(
    monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    monkeypatch.setattr(inflating, "SPAN", 40_000)
    monkeypatch.setattr(inflating, "_STEP", 700)
    chance = random.Random(1)
    whole = b"".join(bytes([chance.randrange(8)]) * chance.randrange(1, 90) for _ in range(9000))
    cut = -(-len(whole) // pieces)
    data = b"".join(gzip.compress(whole[at : at + cut]) for at in range(0, len(whole), cut)) + b"\0" * 512
    stream = Inflated(lambda start, stop: data[start:stop], len(data), "x")
    assert stream.read(0, len(whole) + 5) == whole
    for _ in range(60):
        start = chance.randrange(len(whole))
        stop = start + chance.randrange(1, 30_000)
        assert stream.read(start, stop) == whole[start:stop]
    assert len(stream._states) > 5, "states were kept along the way, so a read does not begin at the front"


def test_a_read_far_inside_a_gzip_stream_does_not_begin_at_its_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflating, "SPAN", 50_000)
    monkeypatch.setattr(inflating, "_STEP", 1000)
    whole = random.Random(2).randbytes(400_000)
    data = gzip.compress(whole, 1)
    taken: list[int] = []

    def read(start: int, stop: int) -> bytes:
        taken.append(stop - start)
        return data[start:stop]

    stream = Inflated(read, len(data), "x")
    assert stream.read(399_000, 400_000) == whole[-1000:]
    taken.clear()
    assert stream.read(200_000, 200_100) == whole[200_000:200_100]
    assert sum(taken) <= 55_000


def test_headers_are_read_once_in_a_process(
    written_here: Written, tar_of: TarOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = written_here({"s/x.tar": tar_of([("a.png", b"a"), ("b.png", b"b")])})
    indexed: list[str] = []
    original = archives.OpenArchive._indexed

    def counted(self: archives.OpenArchive) -> dict[str, archives.Member]:
        indexed.append(self.archive.name)
        return original(self)

    monkeypatch.setattr(archives.OpenArchive, "_indexed", counted)
    for name in ("a", "b", "a", "gone"):
        archives.read_member(root, "s", f"s/{name}.png", MISSING)
    assert indexed == ["x.tar"]
