"""The latent cache: everything frozen is computed once per dataset version, so that training only trains.

Target, source and reference latents of the codec, and the merged tokens of the frozen vision tower. The rows of the
dataset are worked through in chunks, in the dataset's order; a chunk leaves one safetensors file per bucket (kind,
frames, size) and then its record, so that a kill loses the chunk in hand and no more, and several processes may share
the chunks. The key is the hash of the dataset's content and of the model's settings; the cache also says which
encoder made it, and training refuses one that another encoder made.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
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
from kiwi.model.inputs import Frames, fit_size, frames_to_tensor
from kiwi.tracking import TaskRun
from kiwi.training.errors import TrainingError
from kiwi.training.results import CACHE_VERSION, WINDOWS, cache_folder, finished_cache
from kiwi.training.start import initial_model
from kiwi.training.views import View, views
from kiwi.workspace import published, read_json, write_json

BATCH = 64
BATCH_VOLUME = 1 << 22  # pixels times frames that are encoded at once
CHUNK_BYTES = 1 << 30
CHUNK_ROWS = (16, 4096)  # of a chunk, at least and at most
COLUMNS = ("iid", "media", "prompt", "src_video", "tgt_video", "trains_as", "needs_reference", "ref_image_bytes")
Share = tuple[int, int]  # (index, count) of the processes that share the chunks


@dataclass(frozen=True)
class _Sample:
    iid: str
    prompt: str
    kind: MediaKind
    source: Frames
    target: Frames
    reference: Frames | None
    seen_reference: Frames | None  # as the language model is shown it

    @property
    def bucket(self) -> tuple[Any, ...]:
        frames, height, width, _ = self.source.shape
        seen = () if self.seen_reference is None else self.seen_reference.shape[:2]
        return (self.kind, frames, height, width, *seen)


def compute_cache(configuration: RunConfiguration, task: TaskRun, share: Share = (0, 1)) -> dict[str, Any] | None:
    """Computes the caches of the published dataset, one for each size that the curriculum trains at.

    Args:
        share: which part of the chunks is this process's; the cache is complete when all shares are.

    Returns:
        `finished_cache`; None where other processes' chunks are missing still.

    Raises:
        TrainingError: the dataset has nothing to train on.
    """
    torch.set_num_threads(configuration.threads)
    model = initial_model(configuration.model)
    _place(model, configuration.trainer.device)
    maker = encoder_digest(model)
    for view in views(configuration):
        _compute(configuration, view, model, maker, task, share)
    result = finished_cache(configuration)
    if result is not None:
        counts = {f"samples_{kind}": count for kind, count in result["samples"].items()}
        task.metrics(counts | {"bytes": sum(view["bytes"] for view in result["views"])})
    return result


def encoder_digest(model: KiwiEditModel) -> str:
    """SHA-256 over what the cache is a function of: the codec, and the frozen vision tower."""
    seen = hashlib.sha256()
    codec = model.codec
    state = codec.vae.state_dict() if hasattr(codec, "vae") else {}
    seen.update(json.dumps(getattr(codec, "table", None), sort_keys=True).encode())
    for part in (state, model.context_encoder.mllm.model.visual.state_dict()):
        for name, tensor in sorted(part.items()):
            seen.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            seen.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return seen.hexdigest()


def _place(model: KiwiEditModel, device: str) -> None:
    """Moves what encodes to the device that is asked for, where the codec can be moved."""
    from kiwi.training.parallelize import chosen_device

    place = chosen_device(device)
    if place.type != "cpu" and hasattr(model.codec, "vae"):
        model.codec.to(place)
        model.context_encoder.mllm.model.visual.to(place)


def _compute(
    configuration: RunConfiguration, view: View, model: KiwiEditModel, maker: str, task: TaskRun, share: Share
) -> None:
    dataset, folder = published(configuration), cache_folder(configuration, view)
    if (folder / "cache.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_split(Path(dataset["path"]), "train", COLUMNS).to_dicts()
    size = chunk_rows(view, model)
    starts = list(range(0, len(rows), size))
    has_images = any(row["media"] == "image" for row in rows)
    for number, start in enumerate(starts):
        if number % share[1] == share[0] and not _recorded(folder, number, maker):
            chunk = rows[start : start + size]
            samples = _samples(configuration, view, model, Path(dataset["path"]), chunk, first_frames=not has_images)
            told = _told(samples, task, start, len(chunk), len(rows))
            _write_chunk(folder, number, maker, _encoded(model, view, told))
    if all(_recorded(folder, number, maker) for number in range(len(starts))):
        _finish(folder, dataset["digest"], maker, len(starts))


def chunk_rows(view: View, model: KiwiEditModel) -> int:
    """Rows of a chunk: about a gigabyte of latents."""
    codec = model.codec
    places = (view.size // codec.spatial_stride) ** 2 * (1 + (view.frames - 1) // codec.temporal_stride)
    least, most = CHUNK_ROWS
    return max(least, min(most, CHUNK_BYTES // (2 * 2 * places * codec.channels)))


def _recorded(folder: Path, number: int, maker: str) -> bool:
    """Whether a chunk is done, by this encoder, and its files are there in full."""
    record = _record(folder, number)
    if not record.is_file():
        return False
    said = read_json(record)
    files = [(folder / part["file"], part["bytes"]) for part in said["parts"]]
    return said["encoder"] == maker and all(path.is_file() and path.stat().st_size == size for path, size in files)


def _record(folder: Path, number: int) -> Path:
    return folder / "chunks" / f"{number:05d}.json"


def _told(samples: Iterator[list[_Sample]], task: TaskRun, start: int, count: int, rows: int) -> Iterator[_Sample]:
    for done, own in enumerate(samples, 1):
        yield from own
        task.progress(start + done, rows)


def _samples(
    configuration: RunConfiguration, view: View, model: KiwiEditModel, dataset: Path, rows: list[dict[str, Any]],
    first_frames: bool,
) -> Iterator[list[_Sample]]:  # fmt: skip
    """Every row's training samples in the dataset's order, decoded by a few threads."""
    needed = configuration.model.reference_rows == "needed"

    def load(row: dict[str, Any]) -> list[_Sample]:
        with_reference = row["trains_as"] == "quadruplet" and (row["needs_reference"] or not needed)
        samples = _of_row(model, view, dataset, row, with_reference, first_frames)
        return [sample for sample in samples if sample.kind in view.kinds]

    threads = configuration.threads
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rows), 8 * threads):  # in groups, so that decoded clips never pile up
            yield from pool.map(load, rows[start : start + 8 * threads])


def _of_row(
    model: KiwiEditModel, view: View, dataset: Path, row: dict[str, Any], with_reference: bool, first_frames: bool
) -> Iterator[_Sample]:
    """A row's windows: with its reference, by its instruction alone where that says enough, and as images where the
    dataset has no image pairs.
    """
    limit = view.frames * WINDOWS * 4
    source = decode(open_media(dataset, row["src_video"]), max_frames=limit).frames
    target = decode(open_media(dataset, row["tgt_video"]), max_frames=limit).frames
    length = min(len(source), len(target))
    size = fit_size(target.shape[1], target.shape[2], view.size, model.pixel_multiple)
    source, target = resize_frames(source[:length], *size), resize_frames(target[:length], *size)
    whole = min(view.frames, 1 + 4 * ((length - 1) // 4))
    count = max(1, min(WINDOWS, length // whole))
    reference = decode_image(row["ref_image_bytes"]) if with_reference else None
    seen = model.vision.reference(reference) if reference is not None else None
    for start in np.linspace(0, length - whole, count).round().astype(int):
        window = slice(start, start + whole)
        clips = (source[window], target[window])
        if reference is not None:
            yield _Sample(row["iid"], row["prompt"], "reference", *clips, reference, seen)
        if not row["needs_reference"]:
            yield _Sample(row["iid"], row["prompt"], "image" if whole == 1 else "video", *clips, None, None)
    if first_frames and not row["needs_reference"] and whole > 1:
        yield _Sample(row["iid"], row["prompt"], "image", source[:1], target[:1], None, None)


def _encoded(
    model: KiwiEditModel, view: View, samples: Iterator[_Sample]
) -> Iterator[tuple[tuple[Any, ...], list[_Sample], dict[str, Tensor], dict[str, Any]]]:
    """(bucket, samples, tensors, grids) of batches of one bucket, as they fill."""
    pending: dict[tuple[Any, ...], list[_Sample]] = defaultdict(list)
    for sample in samples:
        waiting = pending[sample.bucket]
        waiting.append(sample)
        if len(waiting) >= max(1, min(BATCH, BATCH_VOLUME // int(np.prod(sample.source.shape[:3])))):
            yield sample.bucket, waiting, *_encode(model, waiting, view.pixels)
            del pending[sample.bucket]
    for bucket, waiting in pending.items():
        yield bucket, waiting, *_encode(model, waiting, view.pixels)


def _encode(model: KiwiEditModel, samples: list[_Sample], pixels_too: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the cache keeps of a batch: `encode_live`, rounded to float16."""
    tensors, grids = encode_live(model, samples, pixels_too)
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, grids


@torch.inference_mode()
def encode_live(
    model: KiwiEditModel, samples: list[_Sample], pixels_too: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Latents and vision tokens of a batch of one bucket in float32, and the grids of its vision inputs."""
    kind, _, height, width, *_ = samples[0].bucket
    vision, encoder = model.vision, model.context_encoder
    place = next(encoder.mllm.model.visual.parameters())
    sources = np.stack([sample.source for sample in samples])
    targets = np.stack([sample.target for sample in samples])
    seen = np.stack([vision.clip(clip, samples[0].kind) for clip in sources])
    pixels, grid = patches(torch.from_numpy(seen))
    out = {
        "source": model.codec.encode(frames_to_tensor(sources)),
        "target": model.codec.encode(frames_to_tensor(targets)),
        "vision": encoder.vision_tokens(pixels.to(place), grid, "image" if kind == "image" else "video"),
    }
    grids = {"grid": [grid.frames, grid.height, grid.width]}
    if kind == "reference":
        references = [sample.reference for sample in samples if sample.reference is not None]
        canvases = np.stack([vision.canvas(image, height, width) for image in references])
        out["reference"] = model.codec.encode(frames_to_tensor(canvases[:, None]))
        images = np.stack([sample.seen_reference for sample in samples if sample.seen_reference is not None])
        pixels, grid = patches(torch.from_numpy(images[:, None]))
        out["reference_vision"] = encoder.vision_tokens(pixels.to(place), grid, "image")
        grids["reference_grid"] = [grid.frames, grid.height, grid.width]
    tensors = {name: tensor.float().cpu() for name, tensor in out.items()}
    if kind == "reference" and pixels_too:
        tensors["reference_pixels"] = torch.from_numpy(canvases)
    return tensors, grids


def _write_chunk(
    folder: Path, number: int, maker: str,
    batches: Iterator[tuple[tuple[Any, ...], list[_Sample], dict[str, Tensor], dict[str, Any]]],
) -> None:  # fmt: skip
    """Writes a chunk's files, one a bucket, and then the record that says they are whole."""
    encoded: dict[tuple[Any, ...], list[dict[str, Tensor]]] = defaultdict(list)
    listed: dict[tuple[Any, ...], list[list[str]]] = defaultdict(list)
    grids: dict[tuple[Any, ...], dict[str, Any]] = {}
    for bucket, samples, tensors, grids[bucket] in batches:
        encoded[bucket].append(tensors)
        listed[bucket] += [[sample.iid, sample.prompt] for sample in samples]
    parts = [
        {**_write_part(folder, number, bucket, encoded[bucket]), **grids[bucket], "rows": listed[bucket]}
        for bucket in sorted(encoded)
    ]
    write_json(_record(folder, number), {"encoder": maker, "parts": parts})


def _write_part(folder: Path, number: int, bucket: tuple[Any, ...], batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    from safetensors.torch import save_file

    kind, frames, height, width, *_ = bucket
    name = f"{bucket_name(bucket)}.{number:05d}.safetensors"
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    tensors = {key: torch.cat([batch[key] for batch in batches]).contiguous() for key in batches[0]}
    save_file(tensors, temporary)
    os.replace(temporary, folder / name)
    return {
        "file": name, "kind": kind, "frames": frames, "height": height, "width": width,
        "samples": len(tensors["source"]), "bytes": (folder / name).stat().st_size,
        "checksums": [checksum(tensors, place) for place in range(len(tensors["source"]))],
    }  # fmt: skip


def bucket_name(bucket: tuple[Any, ...]) -> str:
    """ "video-9x64x64"; the size at which references are seen stands behind where they have one."""
    kind, frames, height, width, *seen = bucket
    return f"{kind}-{frames}x{height}x{width}" + (f"-{seen[0]}x{seen[1]}" if seen else "")


def checksum(tensors: dict[str, Tensor], place: int) -> int:
    """CRC-32 of one sample's tensors."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name][place].contiguous().numpy().data, value)
    return value


def _finish(folder: Path, dataset: str, maker: str, chunks: int) -> None:
    """Writes cache.json, which makes the cache a finished one."""
    buckets: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number in range(chunks):
        for place, part in enumerate(read_json(_record(folder, number))["parts"]):
            shape = [part[key] for key in ("kind", "frames", "height", "width")]
            name = part["file"].split(".")[0]
            bucket = buckets.setdefault(
                name, dict(zip(("kind", "frames", "height", "width"), shape, strict=True))
                | {"name": name, "samples": 0, "bytes": 0, "parts": []},
            )  # fmt: skip
            bucket["samples"] += part["samples"]
            bucket["bytes"] += part["bytes"]
            bucket["parts"].append([number, place])
    if not buckets:
        raise TrainingError("the dataset has no rows to train on", "`kiwi data funnel` shows why rows were rejected")
    order = sorted(buckets.values(), key=lambda b: (b["kind"], b["frames"], b["height"], b["width"], b["name"]))
    said = {"version": CACHE_VERSION, "key": folder.name, "dataset": dataset, "encoder": maker, "buckets": order}
    write_json(folder / "cache.json", said)
