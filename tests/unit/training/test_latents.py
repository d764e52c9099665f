"""The latent cache: which samples a dataset gives, in which buckets, computed once."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from kiwi.configuration import RunConfiguration
from kiwi.dataset.reader import open_media, read_rows, read_split
from kiwi.media.reading import decode
from kiwi.model.codec import TransformCodec
from kiwi.model.inputs import frames_to_tensor
from kiwi.tracking import silent
from kiwi.training import cache_latents, latents
from kiwi.training.buckets import read_buckets
from kiwi.training.errors import TrainingError
from kiwi.workspace import read_json, write_json

Configured = Callable[..., RunConfiguration]
Publish = Callable[..., dict[str, Any]]


def buckets(cache: Path) -> dict[str, dict[str, Any]]:
    """By file, for a dataset of one chunk: what the chunk's record says of it."""
    return {part["file"]: part for part in read_json(cache / "chunks" / "00000.json")["parts"]}


def named(kind: str, size: str, chunk: int = 0) -> str:
    return f"{kind}-{size}.{chunk:05d}.safetensors"


def test_a_dataset_gives_samples_of_every_kind_in_buckets_of_one_shape(cache: Path) -> None:
    found = buckets(cache)
    assert {name: bucket["samples"] for name, bucket in found.items()} == {
        named("image", "1x32x32"): 5,
        named("video", "5x24x48"): 2,
        named("video", "5x32x32"): 2 + 4 + 1 + 3,  # two, a long one's windows, quadruplets that need no reference
        named("reference", "5x32x32-56x56"): 3 + 3,  # three, and three windows of one
    }
    assert all(len(bucket["rows"]) == bucket["samples"] for bucket in found.values())


def test_a_bucket_holds_the_tensors_that_its_kind_trains_on(cache: Path) -> None:
    for name, bucket in buckets(cache).items():
        tensors = load_file(cache / name)
        count, rows, columns = bucket["samples"], bucket["height"] // 8, bucket["width"] // 8
        shape = (count, 48, 1 + bucket["frames"] // 4, rows, columns)
        expected = {"source": shape, "target": shape, "vision": (count, 4, 64)}
        if bucket["kind"] == "reference":
            expected |= {"reference": (count, 48, 1, rows, columns), "reference_vision": (count, 4, 64)}
        assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == expected
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_latents_are_those_of_the_rows_own_clips(workspace: Path, cache: Path) -> None:
    dataset = workspace / "dataset"
    rows = {row["iid"]: row for row in read_rows(dataset).to_dicts()}
    name = named("image", "1x32x32")
    tensors = load_file(cache / name)
    for place, (iid, prompt) in enumerate(buckets(cache)[name]["rows"]):
        assert prompt == rows[iid]["prompt"]
        for key, column in (("source", "src_video"), ("target", "tgt_video")):
            clip = decode(open_media(dataset, rows[iid][column])).frames
            expected = TransformCodec().encode(frames_to_tensor(clip[None]))[0]
            assert torch.allclose(tensors[key][place].float(), expected, atol=0.01, rtol=0.01)


def test_windows_of_a_long_clip_are_different_parts_of_it(workspace: Path, cache: Path) -> None:
    name = named("video", "5x32x32")
    iids = [iid for iid, _ in buckets(cache)[name]["rows"]]
    (longest, count), *_ = Counter(iids).most_common(1)
    row = read_rows(workspace / "dataset").filter(pl.col("iid") == longest).to_dicts()[0]
    clip = decode(open_media(workspace / "dataset", row["src_video"])).frames
    assert (len(clip), count) == (55, 4)
    windows = load_file(cache / name)["source"][[place for place, iid in enumerate(iids) if iid == longest]].float()
    ends = [TransformCodec().encode(frames_to_tensor(np.stack([clip[:5], clip[-5:]])))]
    assert torch.allclose(windows[[0, -1]], ends[0], atol=0.01, rtol=0.01)


def test_only_needed_references_are_trained_where_that_is_asked_for(
    tmp_path: Path, configured: Configured, publish: Publish
) -> None:
    publish(tmp_path, "images", "quadruplets")
    every = cache_latents(configured(tmp_path), silent())
    needed = cache_latents(configured(tmp_path, reference_rows="needed"), silent())
    assert every["samples"] == {"image": 5, "video": 4, "reference": 6}
    assert needed["samples"] == {"image": 5, "video": 4, "reference": 2}
    assert every["path"] != needed["path"]


def test_first_frames_serve_as_images_where_the_dataset_has_none(
    tmp_path: Path, configured: Configured, publish: Publish
) -> None:
    publish(tmp_path, "videos", "quadruplets")
    result = cache_latents(configured(tmp_path), silent())
    assert result["samples"] == {"image": 5 + 2, "video": 12, "reference": 6}  # none of those that need a reference
    found = buckets(Path(result["path"]))
    iids = [iid for size in ("1x32x32", "1x24x48") for iid, _ in found[named("image", size)]["rows"]]
    rows = read_rows(tmp_path / "dataset").filter(~pl.col("needs_reference"))
    assert sorted(iids) == sorted(rows["iid"])
    place = [iid for iid, _ in found[named("image", "1x32x32")]["rows"]].index(rows["iid"][0])
    clip = decode(open_media(tmp_path / "dataset", rows["tgt_video"][0])).frames[:1]
    cached = load_file(Path(result["path"]) / named("image", "1x32x32"))["target"][place].float()
    assert torch.allclose(cached, TransformCodec().encode(frames_to_tensor(clip[None]))[0], atol=0.01, rtol=0.01)


def test_a_finished_cache_is_found_again_and_another_dataset_has_another(
    workspace: Path, cache: Path, tmp_path: Path, configured: Configured, publish: Publish, recorded: Any
) -> None:
    written = (cache / "cache.json").stat().st_mtime_ns
    again = cache_latents(configured(workspace), recorded)
    assert recorded.notes == ["reused"]
    assert (cache / "cache.json").stat().st_mtime_ns == written
    assert again["bytes"] == sum(path.stat().st_size for path in cache.glob("*.safetensors"))
    publish(tmp_path, "images")
    assert cache_latents(configured(tmp_path), silent())["key"] != again["key"]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three rows, so that a small dataset has several."""
    monkeypatch.setattr(latents, "CHUNK_ROWS", (1, 3))


def contents(cache: Path) -> dict[str, Any]:
    """What a cache holds, however it was cut: (iid, tensors) of each sample by kind and shape."""
    found = {}
    for bucket in read_buckets(cache, {"image", "video", "reference"}):
        name = (bucket.kind, bucket.frames, bucket.height, bucket.width)
        found[name] = (bucket.rows, bucket.take(list(range(len(bucket.rows)))))
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        rows == other[name][0] and all(torch.equal(tensors[key], other[name][1][key]) for key in tensors)
        for name, (rows, tensors) in one.items()
    )


@pytest.mark.usefixtures("small_chunks")
def test_a_killed_cache_resumes_with_the_chunks_that_it_lacks(
    tmp_path: Path, workspace: Path, cache: Path, configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(workspace / "dataset", tmp_path / "dataset")
    shutil.copy(workspace / "dataset.json", tmp_path)
    original, written = latents._write_chunk, []

    def write(folder: Path, number: int, *rest: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        original(folder, number, *rest)

    monkeypatch.setattr(latents, "_write_chunk", write)
    with pytest.raises(KeyboardInterrupt):
        cache_latents(configured(tmp_path), silent())
    written.clear()
    monkeypatch.setattr(latents, "_write_chunk", lambda folder, number, *rest: (
        written.append(number), original(folder, number, *rest)))  # fmt: skip
    result = cache_latents(configured(tmp_path), silent())
    assert written == [2, 3, 4]
    assert same(contents(Path(result["path"])), contents(cache))


@pytest.mark.usefixtures("small_chunks")
def test_processes_that_share_the_chunks_make_the_cache_of_one(
    tmp_path: Path, workspace: Path, cache: Path, configured: Configured
) -> None:
    shutil.copytree(workspace / "dataset", tmp_path / "dataset")
    shutil.copy(workspace / "dataset.json", tmp_path)
    configuration = configured(tmp_path)
    assert latents.compute_cache(configuration, silent(), (1, 2)) is None
    result = latents.compute_cache(configuration, silent(), (0, 2))
    assert result is not None
    assert same(contents(Path(result["path"])), contents(cache))


@pytest.mark.usefixtures("small_chunks")
def test_a_chunk_of_another_encoder_or_with_a_lost_file_is_made_again(
    tmp_path: Path, configured: Configured, publish: Publish
) -> None:
    publish(tmp_path, "images", "quadruplets")
    folder = Path(cache_latents(configured(tmp_path), silent())["path"])
    whole = contents(folder)
    (folder / "cache.json").unlink()
    foreign = read_json(folder / "chunks" / "00000.json")
    write_json(folder / "chunks" / "00000.json", {**foreign, "encoder": "another"})
    lost = read_json(folder / "chunks" / "00001.json")["parts"][0]["file"]
    (folder / lost).unlink()
    assert same(contents(Path(cache_latents(configured(tmp_path), silent())["path"])), whole)


@pytest.mark.parametrize("what", ["dataset", "encoder"])
def test_a_cache_of_another_dataset_or_encoder_is_refused(cache: Path, what: str) -> None:
    with pytest.raises(TrainingError, match=f"made of another {what}") as error:
        read_buckets(cache, {"image"}, **{what: "0" * 64})
    assert str(cache) in error.value.message


def test_stages_of_other_sizes_have_caches_of_their_own(
    tmp_path: Path, configured: Configured, publish: Publish, staged: Callable[..., Any]
) -> None:
    publish(tmp_path, "images", "videos")
    stages = (
        staged("first", mix={"image": 1.0}, size=16, frames=1),
        staged("second", mix={"video": 1.0, "image": 0.0}, size=16),
        staged("third"),
    )
    result = cache_latents(configured(tmp_path, *stages), silent())
    alone = cache_latents(configured(tmp_path, stages[2]), silent())
    assert [set(view["samples"]) for view in result["views"]] == [{"image"}, {"video"}, {"image", "video"}]
    assert result["views"][2]["key"] == alone["key"]  # the model's own size is shared by all curricula
    shapes = [name for view in result["views"][:2] for name in contents(Path(view["path"]))]
    assert shapes == [("image", 1, 8, 24), ("image", 1, 16, 16), ("video", 5, 8, 24), ("video", 5, 16, 16)]


def test_a_dataset_with_nothing_to_train_on_is_one_clear_line(
    tmp_path: Path, configured: Configured, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, "images")
    monkeypatch.setattr(latents, "read_split", lambda *_: read_split(tmp_path / "dataset", "benchmark"))
    with pytest.raises(TrainingError, match="no rows to train on") as error:
        cache_latents(configured(tmp_path), silent())
    assert error.value.remedy
