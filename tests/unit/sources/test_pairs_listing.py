"""The user's own pairs: what a CSV may look like, and how each bad one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiwi.configuration import SourceSettings
from kiwi.dataset.schema import Reason, Task
from kiwi.errors import UsageError
from kiwi.sources.listing import SourceError, SourceFailure, list_pairs, open_pair
from kiwi.sources.pairs import guess_task, task_of


def settings(location: Path | str) -> SourceSettings:
    return SourceSettings(kind="pairs", pairs=str(location))


def folder_with(root: Path, text: str, *files: str, encoding: str = "utf-8") -> SourceSettings:
    root.mkdir(parents=True, exist_ok=True)
    (root / "pairs.csv").write_bytes(text.encode(encoding))
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"media")
    return settings(root)


def failure_of(source: SourceSettings, position: int = 0) -> SourceFailure:
    with pytest.raises(SourceFailure) as caught:
        open_pair(source, list_pairs(source)[position])
    return caught.value


def test_a_folder_and_its_csv_list_the_same_pairs(tmp_path: Path) -> None:
    source = folder_with(tmp_path, "src_video,tgt_video,prompt\na.mp4,b.mp4,Remove the cat.\n")
    assert list_pairs(source) == list_pairs(settings(tmp_path / "pairs.csv"))
    (pair,) = list_pairs(source)
    assert (pair.position, pair.src_video, pair.tgt_video, pair.prompt) == (0, "a.mp4", "b.mp4", "Remove the cat.")
    assert (pair.license, pair.media, pair.ref_image) == ("unspecified", "video", "")


def test_optional_columns_are_taken_over_in_any_order_and_case(tmp_path: Path) -> None:
    text = "Prompt,ID,tgt_video,ref_image,SRC_VIDEO,edit_type,license,source_dataset,extra\n"
    text += '"Make it, well, red.",x7,t/b.mp4,r.png,s/a.mp4,local_change,MIT,mine,ignored\n'
    (pair,) = list_pairs(folder_with(tmp_path, text))
    assert (pair.pair_id, pair.prompt, pair.edit_type, pair.task) == (
        "x7",
        "Make it, well, red.",
        "local_change",
        Task.LOCAL_CHANGE,
    )
    assert (pair.license, pair.source_dataset, pair.ref_image) == ("MIT", "mine", "r.png")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_and_a_byte_order_mark_make_no_difference(tmp_path: Path, delimiter: str) -> None:
    text = delimiter.join(["src_video", "tgt_video", "prompt"]) + "\r\n"
    text += delimiter.join(["a.mp4", "b.mp4", '"Füge, hier; etwas hinzu"']) + "\r\n\r\n"
    (pair,) = list_pairs(folder_with(tmp_path, text, encoding="utf-8-sig"))
    assert pair.prompt == "Füge, hier; etwas hinzu"


def test_positions_follow_the_csv_and_short_rows_are_listed_to_be_quarantined(tmp_path: Path) -> None:
    source = folder_with(tmp_path, "src_video,tgt_video,prompt\na.mp4,b.mp4,one\na.mp4\na.mp4,b.mp4,three\n", "a.mp4")
    pairs = list_pairs(source)
    assert [pair.position for pair in pairs] == [0, 1, 2]
    assert failure_of(source, 1).reason is Reason.TARGET_MISSING


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("  \n\n", "is empty"),
        ("src_video,tgt_video,prompt\n", "no rows"),
        ("src_video,tgt_video,prompt\n\n,,\n", "no rows"),
        ("src_video,prompt\na.mp4,x\n", "no column tgt_video"),
        ("video;vace_video;prompt\na;b;c\n", "no column src_video, tgt_video"),
    ],
)
def test_a_csv_without_pairs_is_wrong_use(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        list_pairs(folder_with(tmp_path, text))
    assert isinstance(caught.value, UsageError)
    assert str(tmp_path) in caught.value.message
    assert caught.value.remedy


def test_a_file_that_is_no_text_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes(bytes(range(128, 256)) * 10)
    with pytest.raises(SourceError, match="UTF-8"):
        list_pairs(settings(tmp_path))


def test_a_field_without_end_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="line"):
        list_pairs(folder_with(tmp_path, 'src_video,tgt_video,prompt\na,b,"' + "x" * 200_000))


def test_a_missing_folder_or_csv_is_wrong_use(tmp_path: Path) -> None:
    for location in (tmp_path / "absent", tmp_path / "absent.csv"):
        with pytest.raises(SourceError, match="absent"):
            list_pairs(settings(location))
    with pytest.raises(SourceError, match=r"holds no pairs\.csv"):
        list_pairs(settings(tmp_path))
    with pytest.raises(SourceError, match="no pairs given"):
        list_pairs(SourceSettings(kind="pairs"))


def test_media_are_found_beside_the_csv(tmp_path: Path) -> None:
    text = "src_video,tgt_video,prompt,ref_image\nv/a.MOV,v/b.mp4,x,r.png\n"
    source = folder_with(tmp_path, text, "v/a.MOV", "v/b.mp4", "r.png")
    media = open_pair(source, list_pairs(source)[0])
    assert isinstance(media.source, Path)
    assert media.source.read_bytes() == b"media"
    assert (media.extension, media.target_extension) == (".mov", ".mp4")
    assert media.reference == tmp_path.resolve() / "r.png"


def test_missing_files_are_told_apart(tmp_path: Path) -> None:
    text = "src_video,tgt_video,prompt,ref_image\nno.mp4,b.mp4,x,\na.mp4,no.mp4,x,\na.mp4,b.mp4,x,no.png\n"
    text += ",b.mp4,x,\nv,b.mp4,x,\n"
    source = folder_with(tmp_path, text, "a.mp4", "b.mp4", "v/inside.mp4")
    expected = [Reason.SOURCE_MISSING, Reason.TARGET_MISSING, Reason.REFERENCE_MISSING]
    expected += [Reason.SOURCE_MISSING, Reason.SOURCE_MISSING]
    assert [failure_of(source, position).reason for position in range(5)] == expected


def test_no_row_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside.mp4").write_bytes(b"media")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    text = "src_video,tgt_video,prompt\n"
    for listed in ("../outside.mp4", str(tmp_path / "outside.mp4"), "x/../../outside.mp4", "link.mp4", "/etc/passwd"):
        text += f"{listed},b.mp4,x\n"
    source = folder_with(tmp_path / "in", text, "b.mp4")
    assert {failure_of(source, position).reason for position in range(5)} == {Reason.PATH_ESCAPES}


def test_stills_are_image_pairs(tmp_path: Path) -> None:
    source = folder_with(tmp_path, "src_video,tgt_video,prompt\na.png,b.JPG,x\na.png,b.mp4,x\n")
    assert [pair.media for pair in list_pairs(source)] == ["image", "video"]


def test_known_edit_types_are_mapped_and_others_kept(tmp_path: Path) -> None:
    expected = {
        "global_style": Task.GLOBAL_STYLE,
        "background_reference": Task.BACKGROUND_CHANGE,
        "Background Change": Task.BACKGROUND_CHANGE,
        "subject-reference": Task.LOCAL_CHANGE,
        "local_remove": Task.LOCAL_REMOVE,
        "local_add": Task.LOCAL_ADD,
        "creative_edit": Task.OTHER,
    }
    assert {name: task_of(name) for name in expected} == expected
    (pair,) = list_pairs(folder_with(tmp_path, "src_video,tgt_video,prompt,edit_type\na,b,x,creative_edit\n"))
    assert (pair.edit_type, pair.task) == ("creative_edit", Task.OTHER)


def test_a_guessed_task_is_called_a_guess(tmp_path: Path) -> None:
    (pair,) = list_pairs(folder_with(tmp_path, "src_video,tgt_video,prompt\na.mp4,b.mp4,Erase the dog\n"))
    assert pair.task is Task.LOCAL_REMOVE
    assert pair.edit_type == "keyword_heuristic:local_remove"
    assert guess_task("Replace the background with snow") is Task.BACKGROUND_CHANGE
    assert guess_task("Zoom out slowly") is Task.OTHER


def test_an_instruction_that_points_at_its_reference_needs_it(tmp_path: Path) -> None:
    text = "src_video,tgt_video,prompt,ref_image\n"
    text += "a,b,Replace the sofa with the one in the reference image,r.png\n"
    text += "a,b,Replace the sofa with a red armchair,r.png\n"
    text += "a,b,Replace the sofa with the one in the reference image,\n"
    assert [pair.needs_reference for pair in list_pairs(folder_with(tmp_path, text))] == [True, False, False]


def test_procedural_pairs_come_through_the_same_door() -> None:
    source = SourceSettings(clips=6, images=4)
    pairs = list_pairs(source)
    assert len(pairs) == 10
    assert [pair.position for pair in pairs] == list(range(10))
    with pytest.raises(SourceError, match="render"):
        open_pair(source, pairs[0])


def test_the_real_pairs_are_listed_with_their_tasks(real_pairs: Path) -> None:
    source = settings(real_pairs)
    pairs = list_pairs(source)
    assert len(pairs) == 18
    assert sum(pair.task is Task.GLOBAL_STYLE for pair in pairs) == 4
    assert sum(bool(pair.ref_image) for pair in pairs) == 4
    agree = sum(guess_task(pair.prompt) is pair.task for pair in pairs)
    assert agree >= 16
    for pair in pairs:
        media = open_pair(source, pair)
        assert (media.reference is not None) == bool(pair.ref_image)
