"""A list of pairs in which nearly everything is wrong: each row has its typed reason, and the books balance."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kiwi.configuration import CurationSettings, RunConfiguration, SourceSettings
from kiwi.curation.build import build_dataset
from kiwi.curation.finished import dataset_folder
from kiwi.curation.funnel import add_books
from kiwi.curation.stages import books_so_far
from kiwi.dataset.reader import read_rows
from kiwi.dataset.verify import verify_dataset
from kiwi.media import encode_video, png_bytes
from kiwi.sources.procedural import draw
from kiwi.storage import StorageError

WRONG = {
    "missing": ("failed", "target_missing"),
    "empty": ("failed", "target_unreadable"),
    "text": ("failed", "target_unreadable"),
    "noise": ("failed", "target_unreadable"),
    "cut": ("failed", "target_unreadable"),
    "header": ("failed", "target_unreadable"),
    "sound": ("failed", "target_unreadable"),
    "folder": ("failed", "target_missing"),
    "up": ("failed", "path_escapes"),
    "absolute": ("failed", "path_escapes"),
    "link": ("failed", "path_escapes"),
    "huge": ("failed", "over_limits"),
    "larger": ("rejected", "size_mismatch"),
    "shorter": ("rejected", "length_mismatch"),
    "slower": ("rejected", "length_mismatch"),
    "still": ("rejected", "length_mismatch"),
    "pixel": ("rejected", "size_mismatch"),
    "same": ("rejected", "no_visible_edit"),
    "silent": ("failed", "instruction_empty"),
    "endless": ("failed", "instruction_too_long"),
    "bad_reference": ("failed", "reference_unreadable"),
    "good": ("kept", ""),
}


def sound() -> bytes:
    """Half a second of a tone and no picture."""
    command = "ffmpeg -v error -f lavfi -i sine=duration=0.5 -f mp4 -movflags frag_keyframe+empty_moov pipe:1"
    return subprocess.run(command.split(), capture_output=True, check=True).stdout


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    sample = draw(SourceSettings(), 0, "recolour", 9)
    target = encode_video(None, sample.target, 8, lossless=True)
    encode_video(folder / "source.mp4", sample.source, 8, lossless=True)
    (tmp_path / "outside.mp4").write_bytes(target)
    files: dict[str, bytes] = {
        "good": target,
        "empty": b"",
        "text": b"<html>not found</html>",
        "noise": np.random.default_rng(0).bytes(20_000),
        "cut": target[: len(target) * 3 // 5],
        "header": b"\0" * 64 + target[64:],
        "huge": png_bytes(np.zeros((8200, 64, 3), np.uint8)),
        "larger": encode_video(None, np.repeat(np.repeat(sample.target, 2, 1), 2, 2), 8),
        "shorter": encode_video(None, sample.target[:5], 8),
        "slower": encode_video(None, sample.target, 4),
        "still": png_bytes(sample.target[0]),
        "pixel": png_bytes(np.zeros((1, 1, 3), np.uint8)),
        "same": (folder / "source.mp4").read_bytes(),
    }
    for name, data in files.items():
        (folder / f"{name}.mp4").write_bytes(data)
    (folder / "folder.mp4").mkdir()
    (folder / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    rows: list[dict[str, str]] = []
    for name in WRONG:
        row = {"id": name, "src_video": "source.mp4", "tgt_video": f"{name}.mp4", "prompt": f"Make it {name}"}
        rows.append(row | {"edit_type": "local_change", "ref_image": ""})
    named = {row["id"]: row for row in rows}
    named["up"]["tgt_video"] = "../outside.mp4"
    named["absolute"]["tgt_video"] = str(tmp_path / "outside.mp4")
    named["silent"] |= {"prompt": "  ", "tgt_video": "good.mp4"}
    named["endless"] |= {"prompt": "very " * 20_000, "tgt_video": "good.mp4"}
    named["bad_reference"] |= {"ref_image": "broken.png", "tgt_video": "good.mp4"}
    with open(folder / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def configured(workspace: Path, pairs: Path, **more: Any) -> RunConfiguration:
    return RunConfiguration(
        preset="tiny",
        workspace=str(workspace),
        tracking_uri="",
        stages=(),
        source=SourceSettings(kind="pairs", pairs=str(pairs)),
        curation=CurationSettings(shards=3, chunk_rows=4, min_training_pairs=1),
        **more,
    )


def test_every_hostile_row_has_its_reason_and_the_books_balance(tmp_path: Path, hostile: Path) -> None:
    try:
        (hostile / "sound.mp4").write_bytes(sound())
    except FileNotFoundError:
        (hostile / "sound.mp4").write_bytes(b"OggS and nothing else")  # without ffmpeg: a stump of a sound file
    configuration = configured(tmp_path / "work", hostile)
    result = build_dataset(configuration)
    rows = read_rows(dataset_folder(configuration))
    found = {row["pair_id"]: (row["status"], row["reason"]) for row in rows.iter_rows(named=True)}
    assert found == WRONG
    assert result["pairs"] == len(WRONG)
    left = sum(sum(result[kind].values()) for kind in ("rejected", "failed"))
    assert left + result["quadruplets"] == len(WRONG)
    assert add_books(books_so_far(configuration))[-1]["kept"] == 1
    assert verify_dataset(dataset_folder(configuration)).passed


def test_a_full_disk_is_one_clear_error_and_the_build_goes_on_when_there_is_room(tmp_path: Path, hostile: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small file system here")
    try:
        (hostile / "sound.mp4").write_bytes(b"")
        configuration = configured(tmp_path / "work", hostile, store=str(disk / "store"))
        with pytest.raises(StorageError, match="No space left") as caught:
            build_dataset(configuration)
        assert str(disk) in caught.value.message
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert build_dataset(configuration)["quadruplets"] == 1
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.skipif(os.name != "posix", reason="needs /proc")
def test_an_output_that_cannot_be_written_is_one_clear_error(tmp_path: Path, hostile: Path) -> None:
    (hostile / "sound.mp4").write_bytes(b"")
    with pytest.raises(StorageError, match="/proc/kiwi"):
        build_dataset(configured(tmp_path / "work", hostile, store="/proc/kiwi"))
