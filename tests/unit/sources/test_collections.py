"""Several collections as one source: order and positions, limits, early checks; and no path that leads out of any."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from kiwi import storage
from kiwi.configuration import CollectionSettings, SourceSettings
from kiwi.dataset.schema import EditPair, Reason
from kiwi.sources.adapter import SourceError, SourceFailure
from kiwi.sources.listing import check_source, iterate_pairs, list_pairs, open_pair
from kiwi.sources.media_files import find_file
from kiwi.sources.registry import adapter_named

Written = Callable[[dict[str, Any]], str]
DITTO = {"source_path": "source/a.mp4", "edited_path": "local/a.mp4", "instruction": "Make it red."}


def source(*collections: tuple[str, str] | tuple[str, str, int]) -> SourceSettings:
    return SourceSettings(
        kind="collections",
        collections=tuple(
            CollectionSettings(adapter=one[0], location=one[1], limit=one[2] if len(one) > 2 else None)
            for one in collections
        ),
    )


@pytest.fixture
def two(written_here: Written) -> tuple[str, str]:
    root = written_here(
        {
            "ditto/training_metadata/a.json": [DITTO, {"instruction": 3}, DITTO],
            "ditto/videos/source/a.mp4": b"ditto source",
            "ditto/videos/local/a.mp4": b"ditto target",
            "ve/local_add.csv": "original_video;video;prompt\na.mp4;b.mp4;Add one\na.mp4;b.mp4;Add two\n",
            "ve/a.mp4": b"openve source",
            "ve/b.mp4": b"openve target",
        }
    )
    return f"{root}/ditto", f"{root}/ve"


def test_positions_count_on_through_all_collections(two: tuple[str, str]) -> None:
    settings = source(("openve-3m", two[1]), ("ditto-1m", two[0]), ("openve-3m", two[1]))
    pairs = list_pairs(settings)
    assert [pair.position for pair in pairs] == list(range(7))
    assert [pair.collection for pair in pairs] == [0, 0, 1, 1, 1, 2, 2]
    assert [pair.problem for pair in pairs] == [None] * 3 + [Reason.LISTING_MALFORMED] + [None] * 3
    sources = [open_pair(settings, pairs[position]).source for position in (0, 2, 5)]
    assert [Path(str(path)).read_bytes() for path in sources] == [b"openve source", b"ditto source", b"openve source"]


def test_a_limit_takes_the_first_so_many_of_its_collection(two: tuple[str, str]) -> None:
    pairs = list_pairs(source(("ditto-1m", two[0], 1), ("openve-3m", two[1], 9)))
    assert [(pair.collection, pair.prompt) for pair in pairs] == [(0, "Make it red."), (1, "Add one"), (1, "Add two")]


def test_pairs_are_yielded_before_the_listing_is_read_to_its_end(written_here: Written) -> None:
    text = "[" + ",".join([json.dumps(DITTO)] * 20_000) + ", {broken"
    pairs = iterate_pairs(source(("ditto-1m", written_here({"training_metadata/a.json": text}))))
    assert next(pairs).position == 0
    with pytest.raises(SourceError, match="broken JSON"):
        list(pairs)


def test_an_entry_with_a_problem_is_not_opened(two: tuple[str, str]) -> None:
    settings = source(("ditto-1m", two[0]))
    with pytest.raises(SourceFailure) as caught:
        open_pair(settings, list_pairs(settings)[1])
    assert caught.value.reason is Reason.LISTING_MALFORMED
    assert "no key source_path" in caught.value.detail


def test_a_pair_of_other_settings_is_told_apart(two: tuple[str, str]) -> None:
    pair = list_pairs(source(("openve-3m", two[1]), ("ditto-1m", two[0])))[-1]
    with pytest.raises(SourceError, match="collection 1"):
        open_pair(source(("openve-3m", two[1])), pair)


def test_a_source_is_checked_before_a_run_starts(two: tuple[str, str], tmp_path: Path) -> None:
    check_source(SourceSettings())
    check_source(source(("ditto-1m", two[0]), ("openve-3m", two[1])))
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "local_add.csv").write_text("video;prompt\na;b\n")
    wrong = {
        "names none": source(),
        "no source adapter 'ditto'": source(("ditto", two[0])),
        "no such folder": source(("openve-3m", two[1]), ("ditto-1m", str(tmp_path / "absent"))),
        "local_add.csv: no column original_video": source(("openve-3m", str(tmp_path / "wrong"))),
        "no pairs given": SourceSettings(kind="pairs"),
        "holds no pairs.csv": SourceSettings(kind="pairs", pairs=str(tmp_path)),
    }
    for said, settings in wrong.items():
        with pytest.raises(SourceError, match=said) as caught:
            check_source(settings)
        assert caught.value.remedy


def test_the_users_own_pairs_may_stand_among_the_collections(two: tuple[str, str], written_here: Written) -> None:
    own = written_here({"pairs.csv": "src_video,tgt_video,prompt\na.mp4,b.mp4,Add a hat\n", "a.mp4": b"", "b.mp4": b""})
    settings = source(("ditto-1m", two[0], 1), ("pairs", own))
    pairs = list_pairs(settings)
    assert [pair.collection for pair in pairs] == [0, 1]
    assert open_pair(settings, pairs[1]).extension == ".mp4"


@pytest.mark.parametrize("name", ["refvie-bench", "openve-bench"])
def test_a_benchmark_cannot_be_curated_and_says_what_it_is_for(name: str, tmp_path: Path) -> None:
    reader = "read_" + name.replace("-", "_")
    for use in (check_source, list_pairs):
        with pytest.raises(SourceError, match="no edited clips") as caught:
            use(source((name, str(tmp_path))))
        assert reader in caught.value.remedy


ESCAPES = ["../secret.mp4", "x/../../secret.mp4", "/etc/passwd", "s3://other/secret.mp4", "a\0.mp4", "..", "./"]


@pytest.mark.parametrize("listed", ESCAPES)
@pytest.mark.parametrize("tails", [False, True])
def test_no_listed_path_leads_out_of_a_collection(written: Written, listed: str, tails: bool) -> None:
    root = written({"in/a.mp4": b"inside", "secret.mp4": b"secret", "in/passwd": b"inside"}) + "/in"
    with pytest.raises(SourceFailure) as caught:
        find_file(root, listed, Reason.SOURCE_MISSING, prefixes=("", "videos"), shelves=("",), tails=tails)
    assert caught.value.reason is Reason.PATH_ESCAPES


def test_links_that_lead_out_are_refused_and_those_within_are_followed(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (tmp_path / "in" / "a.mp4").write_bytes(b"inside")
    (tmp_path / "in" / "deep" / "near.mp4").symlink_to("../a.mp4")
    (tmp_path / "in" / "deep" / "far.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "loop").symlink_to("loop")
    root = str(tmp_path / "in")
    near = find_file(root, "deep/near.mp4", Reason.SOURCE_MISSING)
    assert isinstance(near, Path)
    assert near.read_bytes() == b"inside"
    for listed in ("deep/far.mp4", "up/secret.mp4", "up/in/../secret.mp4"):
        with pytest.raises(SourceFailure) as caught:
            find_file(root, listed, Reason.SOURCE_MISSING)
        assert caught.value.reason is Reason.PATH_ESCAPES
    with pytest.raises(SourceFailure) as caught:
        find_file(root, "loop", Reason.SOURCE_MISSING)
    assert caught.value.reason is Reason.SOURCE_MISSING


def test_an_absolute_path_under_the_root_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"inside")
    monkeypatch.chdir(tmp_path)
    for root in (str(tmp_path / "in"), "in"):
        for tails in (False, True):
            assert (
                find_file(root, f"{tmp_path}/in/a.mp4", Reason.SOURCE_MISSING, tails=tails) == tmp_path / "in" / "a.mp4"
            )
            with pytest.raises(SourceFailure) as caught:
                find_file(root, f"{tmp_path}/in/gone.mp4", Reason.SOURCE_MISSING, tails=tails)
            assert caught.value.reason is Reason.SOURCE_MISSING


def test_an_absolute_path_is_found_by_its_end_only_with_a_folder_of_it(written: Written) -> None:
    root = written({"video/set/a.mp4": b"right", "a.mp4": b"another of that name"})
    media = find_file(root, "/home/them/data/video/set/a.mp4", Reason.SOURCE_MISSING, tails=True)
    assert (media if isinstance(media, bytes) else media.read_bytes()) == b"right"
    with pytest.raises(SourceFailure) as caught:
        find_file(root, "/home/them/elsewhere/a.mp4", Reason.SOURCE_MISSING, tails=True)
    assert caught.value.reason is Reason.PATH_ESCAPES


def test_a_store_that_cannot_be_asked_is_no_fault_of_the_row() -> None:
    away = storage.StorageError("s3://b/a.mp4: the store is away")
    with (
        patch.object(storage, "size", side_effect=away),
        patch.object(storage, "exists", side_effect=away),
        pytest.raises(storage.StorageError),
    ):
        find_file("s3://b", "a.mp4", Reason.SOURCE_MISSING)


class _Endless:
    """A fake adapter that lists without end: a caller that held the listing in memory would never come back."""

    def entries(self, root: str) -> Iterator[EditPair]:
        pair = next(adapter_named("pairs").entries(root))
        while True:
            yield replace(pair)


def test_a_limit_ends_a_listing_without_end(written_here: Written) -> None:
    own = written_here({"pairs.csv": "src_video,tgt_video,prompt\na.mp4,b.mp4,Add a hat\n"})
    with patch("kiwi.sources.listing.adapter_named", lambda name: _Endless()):
        assert len(list_pairs(source(("endless", own, 1000)))) == 1000
