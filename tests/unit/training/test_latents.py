"""The latent cache: which samples a dataset gives, in which buckets, computed once."""

from __future__ import annotations

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
from kiwi.training.errors import TrainingError
from kiwi.workspace import read_json

Configured = Callable[..., RunConfiguration]
Publish = Callable[..., dict[str, Any]]


def buckets(cache: Path) -> dict[str, dict[str, Any]]:
    return {bucket["file"]: bucket for bucket in read_json(cache / "cache.json")["buckets"]}


def test_a_dataset_gives_samples_of_every_kind_in_buckets_of_one_shape(cache: Path) -> None:
    found = buckets(cache)
    assert {name: bucket["samples"] for name, bucket in found.items()} == {
        "image-1x32x32.safetensors": 5,
        "video-5x24x48.safetensors": 2,
        "video-5x32x32.safetensors": 2 + 4 + 1 + 3,  # two, a long one's windows, quadruplets that need no reference
        "reference-5x32x32.safetensors": 3 + 3,  # three, and three windows of one
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
    name = "image-1x32x32.safetensors"
    tensors = load_file(cache / name)
    for place, (iid, prompt) in enumerate(buckets(cache)[name]["rows"]):
        assert prompt == rows[iid]["prompt"]
        for key, column in (("source", "src_video"), ("target", "tgt_video")):
            clip = decode(open_media(dataset, rows[iid][column])).frames
            expected = TransformCodec().encode(frames_to_tensor(clip[None]))[0]
            assert torch.allclose(tensors[key][place].float(), expected, atol=0.01, rtol=0.01)


def test_windows_of_a_long_clip_are_different_parts_of_it(workspace: Path, cache: Path) -> None:
    name = "video-5x32x32.safetensors"
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
    iids = [iid for name in ("image-1x32x32", "image-1x24x48") for iid, _ in found[f"{name}.safetensors"]["rows"]]
    rows = read_rows(tmp_path / "dataset").filter(~pl.col("needs_reference"))
    assert sorted(iids) == sorted(rows["iid"])
    place = [iid for iid, _ in found["image-1x32x32.safetensors"]["rows"]].index(rows["iid"][0])
    clip = decode(open_media(tmp_path / "dataset", rows["tgt_video"][0])).frames[:1]
    cached = load_file(Path(result["path"]) / "image-1x32x32.safetensors")["target"][place].float()
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


def test_a_cache_that_was_cut_short_is_computed_again(
    tmp_path: Path, configured: Configured, publish: Publish, recorded: Any
) -> None:
    publish(tmp_path, "images")
    first = cache_latents(configured(tmp_path), silent())
    before = load_file(Path(first["path"]) / "image-1x32x32.safetensors")
    (Path(first["path"]) / "cache.json").unlink()  # it is written last
    assert cache_latents(configured(tmp_path), recorded) == first
    assert "reused" not in recorded.notes
    after = load_file(Path(first["path"]) / "image-1x32x32.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_dataset_with_nothing_to_train_on_is_one_clear_line(
    tmp_path: Path, configured: Configured, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, "images")
    monkeypatch.setattr(latents, "read_split", lambda *_: read_split(tmp_path / "dataset", "benchmark"))
    with pytest.raises(TrainingError, match="no rows to train on") as error:
        cache_latents(configured(tmp_path), silent())
    assert error.value.remedy
