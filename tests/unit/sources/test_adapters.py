"""The adapters against small collections in the published layouts with their quirks, here and in a remote store."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiwi.dataset.licences import terms_of
from kiwi.dataset.schema import REFERENCE_TASKS, EditPair, Reason, Task
from kiwi.sources import refvie
from kiwi.sources.adapter import SourceError, SourceFailure
from kiwi.sources.registry import adapter_named, adapter_names

Written = Callable[[dict[str, Any]], str]
TarOf = Callable[[Iterable[tuple[str, bytes]]], bytes]


def bytes_of(media: bytes | Path | None) -> bytes:
    assert media is not None
    return media if isinstance(media, bytes) else media.read_bytes()


def listed(name: str, root: str) -> list[EditPair]:
    adapter = adapter_named(name)
    adapter.check(root)
    pairs = list(adapter.entries(root))
    assert [pair.position for pair in pairs] == list(range(len(pairs)))
    assert list(adapter.entries(root)) == pairs, "the same order each time"
    return pairs


def opened(name: str, root: str, pair: EditPair) -> tuple[bytes, bytes]:
    media = adapter_named(name).open(root, pair)
    return bytes_of(media.source), bytes_of(media.target)


def failure(name: str, root: str, pair: EditPair) -> Reason:
    with pytest.raises(SourceFailure) as caught:
        adapter_named(name).open(root, pair)
    return caught.value.reason


def test_every_adapter_has_its_one_line_texts_and_licences_that_the_card_knows() -> None:
    for name in adapter_names():
        adapter = adapter_named(name)
        assert adapter.name == name
        for text in (adapter.title, adapter.license, adapter.layout):
            assert text
            assert "\n" not in text
    published = ("ditto-1m", "ditto-1m-csv", "reco", "openve-3m", "gpt-image-edit-1.5m", "nhr-edit")
    assert all(terms_of(adapter_named(name).license).known for name in published)
    with pytest.raises(SourceError, match="openve-3m"):
        adapter_named("openve")


DITTO_MEDIA = {
    "videos/source/a.mp4": b"source a",
    "videos/local/a.mp4": b"local a",
    "videos/global_style1/a.mp4": b"style a",
    "videos/global_freeform2/a.mp4": b"freeform a",
}


def test_ditto_is_listed_from_its_json_with_and_without_the_videos_prefix(written: Written) -> None:
    style = {"source_path": "source/a.mp4", "edited_path": "global_style1/a.mp4", "instruction": "Make it a sketch."}
    local = {
        "source_path": "videos/source/a.mp4",
        "edited_path": "videos/local/a.mp4",
        "instruction": "Remove the dog.",
        "source_caption": "a dog",
    }
    free = {"source_path": "source/a.mp4", "edited_path": "global_freeform2/a.mp4", "instruction": "Make it snow."}
    gone = {"source_path": "source/a.mp4", "edited_path": "local/gone.mp4", "instruction": "Turn the car red."}
    root = written(
        {"training_metadata/b.json": [local, gone], "training_metadata/a.json": [style, free], **DITTO_MEDIA}
    )
    pairs = listed("ditto-1m", root)
    assert [pair.task for pair in pairs] == [Task.GLOBAL_STYLE, Task.OTHER, Task.LOCAL_REMOVE, Task.LOCAL_CHANGE]
    assert [pair.edit_type for pair in pairs] == [
        "global_style",
        "global_freeform",
        "keyword_heuristic:local_remove",
        "keyword_heuristic:local_change",
    ]
    assert {(pair.license, pair.source_dataset, pair.media) for pair in pairs} == {
        ("CC-BY-NC-SA-4.0", "Ditto-1M", "video")
    }
    assert opened("ditto-1m", root, pairs[0]) == (b"source a", b"style a")
    assert opened("ditto-1m", root, pairs[2]) == (b"source a", b"local a")
    assert failure("ditto-1m", root, pairs[3]) is Reason.TARGET_MISSING


def test_the_columns_of_dittos_csvs_are_target_and_source_in_this_order(written: Written) -> None:
    text = 'video,vace_video,prompt\nlocal/a.mp4,source/a.mp4,"Add a hat, please."\n'
    root = written({"csvs_for_DiffSynth/local.csv": text, **DITTO_MEDIA})
    (pair,) = listed("ditto-1m-csv", root)
    assert (pair.prompt, pair.task) == ("Add a hat, please.", Task.LOCAL_ADD)
    assert opened("ditto-1m-csv", root, pair) == (b"source a", b"local a")
    with pytest.raises(SourceError, match=r"training_metadata: holds no \.json"):
        adapter_named("ditto-1m").check(root)


def reco_entry(task: str, name: str, instruction: str) -> dict[str, str]:
    return {
        "src_video": f"{task}/src_videos/{name}.mp4",
        "tar_video": f"{task}/tar_videos/{name}.mp4",
        "instruction_final_refine": instruction,
    }


def test_reco_is_listed_task_by_task_and_read_from_loose_files_or_the_tars_beside_them(
    written: Written, tar_of: TarOf
) -> None:
    without_task = {"src_video": "src_videos/1.mp4", "tar_video": "tar_videos/1.mp4", "instruction_final_refine": "x"}
    root = written(
        {
            "replace/replace_data_configs.json": [reco_entry("replace", "1", "Replace the cup."), without_task],
            "replace/replace_val_configs.json": [reco_entry("replace", "9", "not of the training list")],
            "replace/src_videos/1.mp4": b"loose",
            "replace/tar_videos/replace_tar_video_00.tar": tar_of([("./1.mp4", b"packed"), ("2.mp4", b"other")]),
            "add/add_data_configs.json": [reco_entry("add", "2", "Add a cat."), reco_entry("add", "3", "Add a bee.")],
            "add/src_videos/add_src_video_00.tar": tar_of([("2.mp4", b"source 2")]),
            "add/src_videos/add_src_video_01.tar": tar_of([("3.mp4", b"source 3")]),
            "add/tar_videos/add_tar_video_00.tar": tar_of([("add/tar_videos/2.mp4", b"elsewhere"), ("2.mp4", b"two")]),
            "style/style_data_configs.json": [reco_entry("style", "1", "Van Gogh")],
            "remove/remove_data_configs.json": [reco_entry("remove", "1", "Remove it")],
            "video_masks/add/2.mp4": b"a mask",
        }
    )
    pairs = listed("reco", root)
    tasks = [Task.LOCAL_ADD, Task.LOCAL_ADD, Task.LOCAL_REMOVE, Task.LOCAL_CHANGE, Task.LOCAL_CHANGE, Task.GLOBAL_STYLE]
    assert [pair.task for pair in pairs] == tasks
    assert {(pair.license, pair.source_dataset) for pair in pairs} == {("CC-BY-NC-SA-4.0", "ReCo-Data")}
    assert opened("reco", root, pairs[0]) == (b"source 2", b"two")
    assert failure("reco", root, pairs[1]) is Reason.TARGET_MISSING
    assert opened("reco", root, pairs[3]) == opened("reco", root, pairs[4]) == (b"loose", b"packed")


def test_openve_takes_the_task_from_the_lists_name_and_finds_out_the_delimiter(written: Written) -> None:
    root = written(
        {
            "csv_files/local_add.csv": "original_video;video;prompt\no/1.mp4;local_add/1.mp4;Add a hat, please\n",
            "csv_files/background_change.csv": "original_video,video,prompt\no/1.mp4,background_change/1.mp4,Snow\n",
            "subtitles_edit.csv": "video,prompt,original_video\nsubtitles_edit/1.mp4,Say hello,o/1.mp4\n",
            "local_change_part2.csv": "original_video;video;prompt\n"
            "/far/off/videos/o/1.mp4;/far/off/local_change/1.mp4;x\n",
            "videos/o/1.mp4": b"original",
            "videos/local_add/1.mp4": b"added",
            "background_change/1.mp4": b"changed",
            "local_change/1.mp4": b"of another machine",
        }
    )
    pairs = listed("openve-3m", root)
    found = [(pair.edit_type, pair.task) for pair in pairs]
    assert found == [
        ("local_change", Task.LOCAL_CHANGE),
        ("subtitles_edit", Task.OTHER),
        ("background_change", Task.BACKGROUND_CHANGE),
        ("local_add", Task.LOCAL_ADD),
    ]
    assert pairs[3].prompt == "Add a hat, please"
    assert sum(pair.task in REFERENCE_TASKS for pair in pairs) == 3
    assert opened("openve-3m", root, pairs[0]) == (b"original", b"of another machine")
    assert opened("openve-3m", root, pairs[2]) == (b"original", b"changed")
    assert opened("openve-3m", root, pairs[3]) == (b"original", b"added")
    assert failure("openve-3m", root, pairs[1]) is Reason.TARGET_MISSING


def gpt_entry(number: str, task: str, instruction: str, **more: object) -> dict[str, object]:
    return {
        "id": f"ultraedit_{task}_{number}",
        "dataset_source": "ultraedit",
        "task": task,
        "input": f"input/{number}.png",
        "output": f"output/{number}.png",
        "instruction": instruction,
        "instruction_type": "original",
        "input_description": "a picture",
        **more,
    }


def subset(name: str, tasks: dict[str, list[Any]]) -> list[tuple[str, bytes]]:
    members = []
    for task, entries in tasks.items():
        members.append((f"{name}/{task}/metadata/{name}_{task}.json", json.dumps(entries).encode()))
        for entry in entries:
            for side in ("input", "output"):
                members.append((f"{name}/{task}/{entry[side]}", f"{name} {task} {entry[side]}".encode() * 40))
    return members


def in_parts(name: str, data: bytes, size: int) -> dict[str, bytes]:
    return {name.format(number + 1): data[at : at + size] for number, at in enumerate(range(0, len(data), size))}


@pytest.mark.parametrize("packing", ["gzip", "plain", "letters"])
def test_gpt_image_edit_is_read_from_its_split_archives_without_unpacking(
    written: Written, tar_of: TarOf, packing: str
) -> None:
    ultra = subset("ultraedit", {"add": [gpt_entry("1", "add", "Add a bird")], "turn": [gpt_entry("2", "turn", "x")]})
    omni = {"swap": [gpt_entry("3", "swap", "Swap the background"), gpt_entry("4", "swap", "Swap the cup")]}
    data = tar_of(ultra)
    if packing == "gzip":
        parts = in_parts("gpt-edit/ultraedit.tar.gz.part{:03d}", gzip.compress(data, mtime=0), 150)
    elif packing == "plain":
        parts = in_parts("gpt-edit/ultraedit.tar.{:02d}", data, 700)
    else:
        cut = len(data) // 2
        parts = {"gpt-edit/ultraedit.tar.part-aa": data[:cut], "gpt-edit/ultraedit.tar.part-ab": data[cut:]}
    unpacked = {f"gpt-edit/{name}": content for name, content in subset("omniedit", omni)}
    root = written({**parts, **unpacked})
    pairs = listed("gpt-image-edit-1.5m", root)
    assert [pair.pair_id for pair in pairs] == [f"ultraedit_{name}" for name in ("swap_3", "swap_4", "add_1", "turn_2")]
    tasks = [Task.BACKGROUND_CHANGE, Task.LOCAL_CHANGE, Task.LOCAL_ADD, Task.OTHER]
    assert [pair.task for pair in pairs] == tasks
    assert [pair.edit_type.startswith("keyword_heuristic") for pair in pairs] == [True, True, False, False]
    assert {(pair.license, pair.media) for pair in pairs} == {("CC-BY-4.0", "image")}
    for pair in pairs:
        source, target = opened("gpt-image-edit-1.5m", root, pair)
        assert source.decode().startswith(pair.src_video.removeprefix("gpt-edit/").replace("/", " ", 2))
        assert target.decode().startswith(pair.tgt_video.removeprefix("gpt-edit/").replace("/", " ", 2))


def test_a_reworded_instruction_beside_the_original_of_the_same_images_is_no_repeated_id(written_here: Written) -> None:
    entries = [gpt_entry("1", "add", "Add a bird"), gpt_entry("1", "add", "Add a robin", instruction_type="rewrite")]
    root = written_here({"gpt-edit/ultraedit/add/metadata/ultraedit_add.json": entries})
    pairs = listed("gpt-image-edit-1.5m", root)
    assert [pair.pair_id for pair in pairs] == ["ultraedit_add_1", "ultraedit_add_1-rewrite"]


def test_an_image_missing_from_an_unpacked_subset_is_not_looked_for_in_the_archives_left_beside_it(
    written_here: Written,
    tar_of: TarOf,
) -> None:
    tasks = {"edit": [gpt_entry("1", "edit", "Make it red"), gpt_entry("2", "edit", "Make it blue")]}
    members = subset("hqedit", tasks)
    files = {f"gpt-edit/{name}": data for name, data in members if not name.endswith("output/2.png")}
    root = written_here({**files, "gpt-edit/hqedit.tar.gz.part001": gzip.compress(tar_of(members))})
    pairs = listed("gpt-image-edit-1.5m", root)
    assert {pair.edit_type for pair in pairs} == {"keyword_heuristic:local_change"}
    assert failure("gpt-image-edit-1.5m", root, pairs[1]) is Reason.TARGET_MISSING


def test_nhr_edit_is_one_pair_a_line_with_its_own_words_for_the_edit(written: Written, tar_of: TarOf) -> None:
    lines = [
        '{"sample_id": "s1", "source_file_name": "images/1.png", "edited_file_name": "images/2.png", '
        '"edit_instruction": "Remove the cup", "augmented_instructions": ["Away"], "category": "Remove object"}',
        "{broken",
        '{"sample_id": 7, "source_file_name": "3.png", "edited_file_name": "4.png", "edit_instruction": "x", '
        '"category": "Change time"}',
        '{"sample_id": "s3", "source_file_name": "3.png", "edited_file_name": "4.png", "edit_instruction": "y", '
        '"category": NaN}',
    ]
    packed = tar_of([("3.png", b"three"), ("4.png", b"four")])
    files = {"train/images/1.png": b"one", "train/images/2.png": b"two", "train/part-00.tar": packed}
    root = written({"train/metadata.jsonl": "\n".join(lines) + "\n", **files})
    pairs = listed("nhr-edit", root)
    assert [pair.pair_id for pair in pairs] == ["s1", "train-0000001", "7", "s3"]
    assert [pair.task for pair in pairs] == [Task.LOCAL_REMOVE, Task.OTHER, Task.OTHER, Task.OTHER]
    assert [pair.edit_type for pair in pairs[::2]] == ["Remove object", "Change time"]
    assert (pairs[1].problem, pairs[1].problem_detail.split(":")[0]) == (Reason.LISTING_MALFORMED, "line 2")
    assert opened("nhr-edit", root, pairs[0]) == (b"one", b"two")
    assert opened("nhr-edit", root, pairs[2]) == (b"three", b"four")


REFVIE_ROWS = [
    ("i0", "Replace the sofa with the one in the reference image", "Ditto-1M/source/1.mp4", "Ditto-1M/local/1.mp4"),
    ("i1", "Change the background to a beach", "openve3m/o/1.mp4", "openve3m/background_change/1.mp4"),
    ("i2", "Swap the cup", "reco_data/source/replace/1.mp4", "reco_data/target/replace/1.mp4"),
    ("i3", "Add a hat", "somewhere/1.mp4", "somewhere/2.mp4"),
]


def chunk(rows: list[tuple[str, str, str, str]], references: list[bytes | None], group: int = 2) -> bytes:
    columns = {
        "iid": [row[0] for row in rows],
        "prompt": [row[1] for row in rows],
        "src_video": [f"video/{row[2]}" for row in rows],
        "tgt_video": [f"video/{row[3]}" for row in rows],
        "ref_image_bytes": references,
    }
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=group)
    return file.getvalue()


def test_refvie_rows_bring_their_references_and_the_licences_of_their_sources(written: Written) -> None:
    references = [f"jpeg {number}".encode() for number in range(4)]
    videos = {f"video/{path}": path.encode() for row in REFVIE_ROWS for path in row[2:]}
    root = written(
        {
            "refvie_477k/chunk_10.parquet": chunk(REFVIE_ROWS[3:], references[3:]),
            "refvie_477k/chunk_2.parquet": chunk(REFVIE_ROWS[:3], references[:3]),
            **videos,
        }
    )
    pairs = listed("refvie", root)
    assert [pair.pair_id for pair in pairs] == ["i0", "i1", "i2", "i3"], "chunk 2 comes before chunk 10"
    assert [pair.ref_image for pair in pairs][2:] == [
        "refvie_477k/chunk_2.parquet::2",
        "refvie_477k/chunk_10.parquet::0",
    ]
    assert [pair.needs_reference for pair in pairs] == [True, False, False, False]
    assert [(pair.source_dataset, pair.license) for pair in pairs] == [
        ("RefVIE/Ditto-1M", "CC-BY-NC-SA-4.0"),
        ("RefVIE/OpenVE-3M", "CC-BY-NC-4.0"),
        ("RefVIE/ReCo-Data", "CC-BY-NC-SA-4.0"),
        ("RefVIE", "unspecified"),
    ]
    tasks = [Task.LOCAL_CHANGE, Task.BACKGROUND_CHANGE, Task.LOCAL_CHANGE, Task.LOCAL_ADD]
    assert [pair.task for pair in pairs] == tasks
    for order in ((0, 1, 2, 3), (2, 0, 1, 1, 3, 0)):
        for number in order:
            media = adapter_named("refvie").open(root, pairs[number])
            assert media.reference == references[number]
            assert bytes_of(media.target) == pairs[number].tgt_video.removeprefix("video/").encode()


def test_references_are_read_forward_in_small_pieces_and_a_step_back_finds_its_row(
    written_here: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refvie, "_REFERENCES", 2)
    rows = [(f"i{number}", "Swap it", "s.mp4", "t.mp4") for number in range(11)]
    data = chunk(rows, [bytes([number]) for number in range(11)], group=7)
    root = written_here({"refvie_477k/chunk_0.parquet": data, "video/s.mp4": b"s", "video/t.mp4": b"t"})
    pairs = listed("refvie", root)
    adapter = adapter_named("refvie")
    for number in (0, 1, 5, 3, 0, 10, 6, 7, 9, 2):
        assert adapter.open(root, pairs[number]).reference == bytes([number])


def test_a_refvie_row_without_a_usable_reference_fails_alone(written_here: Written) -> None:
    videos = {f"video/{path}": b"clip" for row in REFVIE_ROWS for path in row[2:]}
    data = chunk(REFVIE_ROWS, [b"jpeg", None, b"", b"jpeg"])
    root = written_here({"refvie_477k/chunk_0.parquet": data, **videos})
    pairs = listed("refvie", root)
    assert failure("refvie", root, pairs[1]) is failure("refvie", root, pairs[2]) is Reason.REFERENCE_MISSING
    assert adapter_named("refvie").open(root, pairs[3]).reference == b"jpeg"
    for name, reason in (
        ("refvie_477k/chunk_0.parquet::99", Reason.REFERENCE_MISSING),
        ("refvie_477k/chunk_7.parquet::0", Reason.REFERENCE_UNREADABLE),
        ("../chunk_0.parquet::0", Reason.PATH_ESCAPES),
        ("refvie_477k/chunk_0.parquet", Reason.REFERENCE_MISSING),
    ):
        other = EditPair(**{**pairs[0].__dict__, "ref_image": name})
        assert failure("refvie", root, other) is reason


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def test_refvie_columns_of_other_types_fail_their_rows_or_the_file_by_name(written_here: Written) -> None:
    good = {"iid": ["a"], "prompt": ["x"], "src_video": ["s.mp4"], "tgt_video": ["t.mp4"], "ref_image_bytes": [b"j"]}
    typed = parquet(**{**good, "iid": [7], "prompt": pa.array([b"\xff"], pa.binary()), "src_video": [3]})
    coded = parquet(**{**good, "prompt": pa.array(["x"]).dictionary_encode()})
    picture = parquet(**{**good, "ref_image_bytes": [{"bytes": b"in a struct", "path": "r.jpg"}]})
    files = {"chunk_0.parquet": typed, "chunk_1.parquet": coded, "chunk_2.parquet": picture, "s.mp4": b"", "t.mp4": b""}
    root = written_here(files)
    pairs = listed("refvie", root)
    assert pairs[0].problem is Reason.LISTING_MALFORMED
    assert pairs[0].problem_detail == "source is a number, instruction is bytes: not text"
    assert [pair.problem for pair in pairs[1:]] == [None, None]
    assert adapter_named("refvie").open(root, pairs[2]).reference == b"in a struct"
    written_here({"chunk_3.parquet": parquet(iid=["a"], prompt=["x"])})
    with pytest.raises(SourceError, match=r"chunk_3\.parquet: no column src_video, tgt_video, ref_image_bytes"):
        adapter_named("refvie").check(root)
    written_here({"chunk_3.parquet": b"PAR1 is not enough PAR1"})
    with pytest.raises(SourceError, match=r"chunk_3\.parquet: cannot be read as Parquet"):
        list(adapter_named("refvie").entries(root))


def test_the_authors_training_lists_tell_source_and_licence_by_path(written: Written) -> None:
    reference = "src_video,tgt_video,ref_image,prompt\nvideo/Ditto-1M/source/1.mp4,video/Ditto-1M/local/1.mp4,"
    root = written(
        {
            "image_edit_metadata/gpt.csv": "src_video,tgt_video,prompt\n"
            "/home/them/image/gpt-edit/omniedit/removal/input/1.png,"
            "/home/them/image/gpt-edit/omniedit/removal/output/1.png,Remove the monkey.\n",
            "video_edit_metadata/mine.csv": "src_video,tgt_video,prompt\nvideo/a.mp4,video/b.mp4,Make it red.\n",
            "refvie_dataset.csv": reference + "ref_images/1.jpg,Put this picture on the wall\n",
            "image/gpt-edit/omniedit/removal/input/1.png": b"in",
            "image/gpt-edit/omniedit/removal/output/1.png": b"out",
            "video/a.mp4": b"a",
            "video/b.mp4": b"b",
            "video/Ditto-1M/source/1.mp4": b"s",
            "video/Ditto-1M/local/1.mp4": b"t",
            "ref_images/1.jpg": b"r",
        }
    )
    pairs = listed("training-csvs", root)
    assert [(pair.source_dataset, pair.license, pair.task, pair.media) for pair in pairs] == [
        ("Ditto-1M", "CC-BY-NC-SA-4.0", Task.LOCAL_ADD, "video"),
        ("GPT-Image-Edit-1.5M", "CC-BY-4.0", Task.LOCAL_REMOVE, "image"),
        ("training-csvs", "unspecified", Task.LOCAL_CHANGE, "video"),
    ]
    media = adapter_named("training-csvs").open(root, pairs[0])
    assert (bytes_of(media.reference), pairs[0].needs_reference) == (b"r", True)
    assert opened("training-csvs", root, pairs[1]) == (b"in", b"out")
    alone = f"{root}/video_edit_metadata/mine.csv"
    (pair,) = listed("training-csvs", alone)
    assert opened("training-csvs", alone, pair) == (b"a", b"b")


@pytest.mark.parametrize("name", ["ditto-1m", "ditto-1m-csv", "reco", "openve-3m", "nhr-edit", "refvie"])
def test_an_absent_or_an_empty_folder_is_told_before_anything_is_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        adapter_named(name).check(str(tmp_path / "absent"))
    with pytest.raises(SourceError, match="holds no") as caught:
        adapter_named(name).check(str(tmp_path))
    assert str(tmp_path) in caught.value.message
    assert caught.value.remedy
    with pytest.raises(SourceError):
        list(adapter_named(name).entries(str(tmp_path)))


def test_an_archive_subset_without_metadata_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no subset"):
        adapter_named("gpt-image-edit-1.5m").check(str(tmp_path))
