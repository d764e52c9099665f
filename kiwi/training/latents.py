"""The latent cache: everything frozen is computed once per dataset version, so that training only trains.

Target, source and reference latents of the codec, and the merged tokens of the frozen vision tower, in one
safetensors file per bucket (kind, frames, size). The key is the hash of the dataset's content and of the model's
settings: another dataset or another model has another cache.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiwi.configuration import MediaKind, RunConfiguration
from kiwi.dataset.reader import open_media, read_split
from kiwi.media.images import decode_image
from kiwi.media.reading import decode
from kiwi.media.resizing import resize_frames
from kiwi.model.context import patches
from kiwi.model.editor import KiwiEditModel
from kiwi.model.inputs import Frames, fit_size, frames_to_tensor, latent_reference, vision_frames, vision_reference
from kiwi.tracking import TaskRun
from kiwi.training.errors import TrainingError
from kiwi.training.results import CACHE_VERSION, WINDOWS, cache_folder, finished_cache
from kiwi.training.start import initial_model
from kiwi.workspace import published, write_json

BATCH = 64
COLUMNS = ("iid", "media", "prompt", "src_video", "tgt_video", "trains_as", "needs_reference", "ref_image_bytes")


@dataclass(frozen=True)
class _Sample:
    iid: str
    prompt: str
    kind: MediaKind
    source: Frames
    target: Frames
    reference: Frames | None

    @property
    def bucket(self) -> tuple[str, int, int, int]:
        frames, height, width, _ = self.source.shape
        return (self.kind, frames, height, width)


def compute_cache(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """Computes the cache of the published dataset.

    Returns:
        {"key", "path", "samples": {kind: n}, "bytes"}.

    Raises:
        TrainingError: the dataset has nothing to train on.
    """
    torch.set_num_threads(configuration.threads)
    dataset, folder = published(configuration), cache_folder(configuration)
    folder.mkdir(parents=True, exist_ok=True)
    model = initial_model(configuration.model)
    pending: dict[tuple[str, int, int, int], list[_Sample]] = defaultdict(list)
    encoded: dict[tuple[str, int, int, int], list[dict[str, Tensor]]] = defaultdict(list)
    listed: dict[tuple[str, int, int, int], list[list[str]]] = defaultdict(list)

    def flush(bucket: tuple[str, int, int, int]) -> None:
        samples = pending.pop(bucket)
        encoded[bucket].append(_encode(model, samples))
        listed[bucket] += [[sample.iid, sample.prompt] for sample in samples]

    for sample in _samples(configuration, Path(dataset["path"]), task):
        pending[sample.bucket].append(sample)
        if len(pending[sample.bucket]) >= BATCH:
            flush(sample.bucket)
    for bucket in list(pending):
        flush(bucket)
    if not encoded:
        raise TrainingError("the dataset has no rows to train on", "`kiwi data funnel` shows why rows were rejected")
    buckets = [_write(folder, bucket, encoded[bucket], listed[bucket]) for bucket in sorted(encoded)]
    write_json(
        folder / "cache.json",
        {"version": CACHE_VERSION, "key": folder.name, "dataset": dataset["digest"], "buckets": buckets},
    )
    result = finished_cache(configuration)
    assert result is not None
    task.metrics({f"samples_{kind}": count for kind, count in result["samples"].items()} | {"bytes": result["bytes"]})
    return result


def _samples(configuration: RunConfiguration, dataset: Path, task: TaskRun) -> Iterator[_Sample]:
    """Every training sample in the dataset's order, decoded by a few threads."""
    rows = read_split(dataset, "train", COLUMNS).to_dicts()
    has_images = any(row["media"] == "image" for row in rows)
    needed = configuration.model.reference_rows == "needed"

    def load(row: dict[str, Any]) -> list[_Sample]:
        with_reference = row["trains_as"] == "quadruplet" and (row["needs_reference"] or not needed)
        return list(_of_row(configuration, dataset, row, with_reference, first_frames=not has_images))

    with ThreadPoolExecutor(configuration.threads) as pool:
        for done, samples in enumerate(pool.map(load, rows), 1):
            yield from samples
            task.progress(done, len(rows))


def _of_row(
    configuration: RunConfiguration, dataset: Path, row: dict[str, Any], with_reference: bool, first_frames: bool
) -> Iterator[_Sample]:
    """A row's windows: with its reference, by its instruction alone where that says enough, and as images where the
    dataset has no image pairs.
    """
    model = configuration.model
    limit = model.frames * WINDOWS * 4
    source = decode(open_media(dataset, row["src_video"]), max_frames=limit).frames
    target = decode(open_media(dataset, row["tgt_video"]), max_frames=limit).frames
    length = min(len(source), len(target))
    size = fit_size(target.shape[1], target.shape[2], model.size, 8)
    source, target = resize_frames(source[:length], *size), resize_frames(target[:length], *size)
    whole = min(model.frames, 1 + 4 * ((length - 1) // 4))
    count = max(1, min(WINDOWS, length // whole))
    reference = decode_image(row["ref_image_bytes"]) if with_reference else None
    for start in np.linspace(0, length - whole, count).round().astype(int):
        window = slice(start, start + whole)
        clips = (source[window], target[window])
        if reference is not None:
            yield _Sample(row["iid"], row["prompt"], "reference", *clips, reference)
        if not row["needs_reference"]:
            yield _Sample(row["iid"], row["prompt"], "image" if whole == 1 else "video", *clips, None)
    if first_frames and not row["needs_reference"] and whole > 1:
        yield _Sample(row["iid"], row["prompt"], "image", source[:1], target[:1], None)


@torch.inference_mode()
def _encode(model: KiwiEditModel, samples: list[_Sample]) -> dict[str, Tensor]:
    """Latents and vision tokens of a batch of one bucket, as float16."""
    kind, _, height, width = samples[0].bucket
    vision, encoder = model.vision, model.context_encoder
    sources = np.stack([sample.source for sample in samples])
    targets = np.stack([sample.target for sample in samples])
    seen = np.stack([vision_frames(clip, vision.frames, vision.side) for clip in sources])
    pixels, grid = patches(torch.from_numpy(seen))
    out = {
        "source": model.codec.encode(frames_to_tensor(sources)),
        "target": model.codec.encode(frames_to_tensor(targets)),
        "vision": encoder.vision_tokens(pixels, grid, "image" if kind == "image" else "video"),
    }
    if kind == "reference":
        references = [sample.reference for sample in samples if sample.reference is not None]
        canvases = np.stack([latent_reference(image, height, width) for image in references])
        out["reference"] = model.codec.encode(frames_to_tensor(canvases[:, None]))
        images = np.stack([vision_reference(image, vision.side) for image in references])
        pixels, reference_grid = patches(torch.from_numpy(images[:, None]))
        out["reference_vision"] = encoder.vision_tokens(pixels, reference_grid, "image")
    return {name: tensor.half() for name, tensor in out.items()}


def _write(
    folder: Path, bucket: tuple[str, int, int, int], parts: list[dict[str, Tensor]], listed: list[list[str]]
) -> dict[str, Any]:
    from safetensors.torch import save_file

    kind, frames, height, width = bucket
    name = f"{kind}-{frames}x{height}x{width}.safetensors"
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    save_file({key: torch.cat([part[key] for part in parts]).contiguous() for key in parts[0]}, temporary)
    os.replace(temporary, folder / name)
    return {
        "file": name, "kind": kind, "frames": frames, "height": height, "width": width, "samples": len(listed),
        "bytes": (folder / name).stat().st_size, "rows": listed,
    }  # fmt: skip
