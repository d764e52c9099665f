"""RefVIE-Bench and OpenVE-Bench in their published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kiwi.dataset.schema import Reason
from kiwi.sources.adapter import SourceError, SourceFailure
from kiwi.sources.benchmarks import open_entry, read_openve_bench, read_refvie_bench

Written = Callable[[dict[str, Any]], str]
REFVIE = """
- src_video: source_videos/a.mp4
  instruction: "Replace the cup: with the one shown"
  ref_img: ref_images/subjects/cup.png
  edit_type: subject
- src_video: source_videos/b.mp4
  instruction: Change the background
  ref_img: ref_images/background/sea.jpg
  edit_type: background
"""
OPENVE = """edited_type,prompt,original_video
local_add,"Add a hat, please",OpenVE-Bench/videos/0001_a.mp4
camera_edit,Zoom in,OpenVE-Bench/videos/0002_b.mp4
global_style,Sketch,videos/0003_c.mp4
"""


def read(media: bytes | Path | None) -> bytes | None:
    return media.read_bytes() if isinstance(media, Path) else media


def test_refvie_bench_gives_subjects_and_backgrounds_in_the_papers_words(written: Written) -> None:
    root = written(
        {
            "refvie_bench.yaml": REFVIE,
            "source_videos/a.mp4": b"a",
            "ref_images/subjects/cup.png": b"cup",
            "ref_images/background/sea.jpg": b"sea",
        }
    )
    subject, background = read_refvie_bench(root)
    assert (subject.id, subject.category) == ("0000_a", "Subject Reference")
    assert (background.id, background.category) == ("0001_b", "Background Replacement")
    assert subject.instruction == "Replace the cup: with the one shown"
    assert [read(media) for media in open_entry(root, subject)] == [b"a", b"cup"]
    with pytest.raises(SourceFailure) as caught:
        open_entry(root, background)
    assert caught.value.reason is Reason.SOURCE_MISSING


def test_openve_bench_leaves_out_what_the_paper_leaves_out(written: Written) -> None:
    root = written(
        {
            "benchmark_videos.csv": OPENVE,
            "videos/0001_a.mp4": b"a",
            "videos/0002_b.mp4": b"b",
            "videos/0003_c.mp4": b"c",
        }
    )
    entries = read_openve_bench(root)
    assert [entry.category for entry in entries] == ["Local Add", "Global Style"]
    assert [entry.id for entry in entries] == ["0000_0001_a", "0002_0003_c"]
    assert [read(open_entry(root, entry)[0]) for entry in entries] == [b"a", b"c"]
    assert open_entry(root, entries[0])[1] is None
    every = read_openve_bench(root, every_type=True)
    assert [(entry.edit_type, entry.category) for entry in every][1] == ("camera_edit", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {src_video: a.mp4, instruction: x, ref_img: r.png}", "entry 1: no key edit_type"),
        ("- {src_video: a.mp4, instruction: 7, ref_img: r.png, edit_type: subject}", "entry 1: instruction: no text"),
        (
            "- {src_video: a.mp4, instruction: x, ref_img: r.png, edit_type: background_swap}\n"
            "- {src_video: a.mp4, instruction: x, ref_img: r.png, edit_type: teleport}",
            "entry 2: unknown edit_type 'teleport'",
        ),
        ("- {src_video: ../a.mp4, instruction: x, ref_img: r.png, edit_type: subject}", "leads out"),
        ("- [1, 2]", "entry 1: is no object"),
        ("a: b", "is no list"),
        ("", "is no list"),
        ("- {a: b", "line 2: broken YAML"),
        ("- !!python/object/apply:os.system ['true']", "broken YAML"),
    ],
)
def test_a_broken_benchmark_list_is_told_by_entry(written_here: Written, text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        read_refvie_bench(written_here({"refvie_bench.yaml": text}))
    assert caught.value.remedy


def test_an_unknown_type_is_refused_and_the_known_ones_are_named(written_here: Written) -> None:
    root = written_here({"benchmark_videos.csv": "edited_type,prompt,original_video\nteleport,Go,a.mp4\n"})
    with pytest.raises(SourceError, match="line 2: unknown edited_type 'teleport'") as caught:
        read_openve_bench(root)
    assert "local_add" in caught.value.remedy
    assert "camera_edit" in caught.value.remedy


def test_an_absent_benchmark_is_told(tmp_path: Path) -> None:
    for reader in (read_refvie_bench, read_openve_bench):
        with pytest.raises(SourceError, match="no such folder"):
            reader(str(tmp_path / "absent"))
        with pytest.raises(SourceError, match="not found"):
            reader(str(tmp_path))
