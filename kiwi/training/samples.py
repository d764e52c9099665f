"""A few held-out clips edited while a stage trains, so that one can see what it has learned so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kiwi.configuration import RunConfiguration
from kiwi.dataset.reader import open_media, read_split
from kiwi.media import encode_video
from kiwi.media.images import decode_image
from kiwi.media.reading import decode
from kiwi.media.resizing import resize_frames
from kiwi.model.editor import KiwiEditModel
from kiwi.tracking import TaskRun
from kiwi.training.ranks import Ranks
from kiwi.workspace import published

COLUMNS = ("iid", "prompt", "src_video", "tgt_video", "fps", "trains_as", "ref_image_bytes")


def sample_editor(
    configuration: RunConfiguration, model: KiwiEditModel, folder: Path, task: TaskRun, ranks: Ranks,
    device: torch.device,
) -> Callable[[int], None] | None:  # fmt: skip
    """What edits the samples at a step, on all ranks alike; None where none are asked for.

    Each edit becomes `samples/step-N/IID.mp4` beside the checkpoints: source, edit and target side by side.
    """
    trainer = configuration.trainer
    if not trainer.samples_every:
        return None
    dataset = Path(published(configuration)["path"])
    rows = read_split(dataset, "benchmark", COLUMNS).head(trainer.samples)
    if not len(rows):
        rows = read_split(dataset, "train", COLUMNS).head(trainer.samples)
        task.note("the dataset holds nothing out: the sample edits are of training clips")
    shown = [_loaded(dataset, row, configuration.model.frames) for row in rows.to_dicts()]

    def edit(step: int) -> None:
        from kiwi.editing.pipeline import KiwiEditPipeline
        from kiwi.editing.placement import Placement

        editor = KiwiEditPipeline(
            model, configuration.model.frames, configuration.model.size, Placement(device=str(device))
        ).edit_clips
        edited = editor(
            [each["source"] for each in shown], [each["prompt"] for each in shown],
            [each["reference"] for each in shown],
            num_inference_steps=configuration.benchmark.sampling_steps, seed=configuration.seed, batch_size=1,
        )  # fmt: skip
        if ranks.first:
            _write(folder / "samples" / f"step-{step:08d}", shown, edited)
            task.artifact(folder / "samples" / f"step-{step:08d}", "samples")

    return edit


def _loaded(dataset: Path, row: dict[str, Any], frames: int) -> dict[str, Any]:
    clips = {name: decode(open_media(dataset, row[column]), max_frames=frames).frames
             for name, column in (("source", "src_video"), ("target", "tgt_video"))}  # fmt: skip
    reference = decode_image(row["ref_image_bytes"]) if row["trains_as"] == "quadruplet" else None
    return {**clips, "iid": row["iid"], "prompt": row["prompt"], "fps": row["fps"], "reference": reference}


def _write(folder: Path, shown: list[dict[str, Any]], edited: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for each, clip in zip(shown, edited, strict=True):
        length, height, width = clip.shape[:3]
        target = resize_frames(each["target"], height, width)
        length = min(length, len(target))
        wide = np.concatenate([each["source"][:length], clip[:length], target[:length]], axis=2)
        encode_video(folder / f"{each['iid']}.mp4", wide, each["fps"])
