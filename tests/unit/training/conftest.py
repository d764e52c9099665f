"""A small published dataset and its latent cache, made once; editors to train on it."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import torch

from kiwi.configuration import ModelSettings, RunConfiguration, SourceSettings, StageSettings
from kiwi.dataset.assemble import write_dataset
from kiwi.dataset.rows import sample_id
from kiwi.dataset.shards import member_address, write_shard
from kiwi.dataset.split import all_train
from kiwi.media import encode_video, png_bytes
from kiwi.sources.procedural import TASKS, draw
from kiwi.tracking import TaskRun, silent
from kiwi.training import cache_latents
from kiwi.workspace import Workspace, write_json

if TYPE_CHECKING:
    from kiwi.model.editor import KiwiEditModel

SIDE, FRAMES = 32, 5
# kind of edit, frames, (height, width), media, has a reference, needs it
QUADRUPLETS = [
    ("subject_reference", FRAMES, (32, 32), "video", True, True),
    ("background_reference", FRAMES, (32, 32), "video", True, True),
    ("swap", FRAMES, (32, 32), "video", True, False),
    ("recolour", 3 * FRAMES, (32, 32), "video", True, False),  # three windows
]
VIDEOS = [
    ("recolour", FRAMES, (32, 32), "video", False, False),
    ("remove", FRAMES, (32, 32), "video", False, False),
    ("background", 11 * FRAMES, (32, 32), "video", False, False),  # four windows, the most
    ("style", FRAMES, (24, 48), "video", False, False),
    ("recolour", FRAMES, (24, 48), "video", False, False),
]
IMAGES = [(kind, 1, (32, 32), "image", False, False) for kind in ("recolour", "swap", "remove", "style", "background")]


class _Recorded(TaskRun):
    """A task that keeps what it is told, for tests to look at."""

    def __init__(self) -> None:
        super().__init__("recorded", None, None)
        self.said: list[dict[str, Any]] = []

    def _append(self, event: str, **said: Any) -> None:
        self.said.append({"event": event, **said})

    @property
    def notes(self) -> list[str]:
        return [each["text"] for each in self.said if each["event"] == "note"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two workers with two threads each wait for one another on two cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recorded() -> _Recorded:
    return _Recorded()


def _configured(workspace: Path, *stages: StageSettings, **model: Any) -> RunConfiguration:
    return RunConfiguration(
        preset="tiny",
        workspace=str(workspace),
        tracking_uri="",
        threads=1,  # test workers share the cores
        model=ModelSettings(size=SIDE, frames=FRAMES, **model),
        stages=stages or (_staged(),),
    )


def _staged(name: str = "stage1", steps: int = 8, **changes: Any) -> StageSettings:
    settings = {
        "batch_size": 4,
        "mix": {"image": 0.3, "video": 0.4, "reference": 0.3},
        "learning_rate": 2e-3,
        "mllm_learning_rate": 5e-3,
        "optimizer": "muon",
        "checkpoint_every": 3,
        **changes,
    }
    return StageSettings(name=name, steps=steps, **settings)


def _publish(workspace: Path, listed: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Writes a dataset of procedural pairs and says so where publishing does."""
    rows, members = [], {}
    for position, (kind, frames, size, media, has_reference, needs_reference) in enumerate(listed):
        sample = draw(SourceSettings(seed=4, size=max(size)), position, kind, frames)
        height = size[0]
        clips = [encode_video(None, clip[:, :height], 8, lossless=True) for clip in (sample.source, sample.target)]
        reference = sample.reference if sample.reference is not None else np.full((9, 9, 3), 40 + position, np.uint8)
        hashes = [hashlib.sha256(clip).hexdigest() for clip in clips]
        iid = sample_id(*hashes, sample.prompt)
        names = [f"{iid}.source.mp4", f"{iid}.target.mp4"]
        members |= dict(zip(names, clips, strict=True))
        rows.append(
            {
                "position": position, "iid": iid, "pair_id": f"p{position}", "source_dataset": "procedural",
                "license": "CC0-1.0", "edit_type": kind, "task": TASKS[kind].value, "media": media,
                "prompt": sample.prompt, "needs_reference": needs_reference,
                "src_video": member_address("shards/0.tar", names[0]),
                "tgt_video": member_address("shards/0.tar", names[1]),
                "src_sha256": hashes[0], "tgt_sha256": hashes[1], "width": size[1], "height": height,
                "frames": frames, "fps": 8.0, "status": "kept" if has_reference else "rejected",
                "stage": "" if has_reference else "ground", "reason": "" if has_reference else "global_change",
                "trains_as": "quadruplet" if has_reference else "instruction",
                "ref_image_bytes": png_bytes(reference) if has_reference else None,
            }
        )  # fmt: skip
    media_root = workspace / "curated"
    write_shard(media_root / "shards" / "0.tar", members.items())
    result = write_dataset(workspace / "dataset", pl.DataFrame(rows), media_root, parameters={}, split=all_train)
    said = {"path": result["path"], "digest": result["digest"], "version": "v1", "revision": "0" * 40}
    write_json(Workspace(workspace).root / "dataset.json", said)
    return said


@pytest.fixture(scope="session")
def configured() -> Callable[..., RunConfiguration]:
    """configured(workspace, *stages, **model settings)."""
    return _configured


@pytest.fixture(scope="session")
def staged() -> Callable[..., StageSettings]:
    """staged(name, steps, **settings)."""
    return _staged


@pytest.fixture(scope="session")
def publish() -> Callable[..., dict[str, Any]]:
    """publish(workspace, *groups): publishes a dataset of the groups "images", "videos" and "quadruplets"."""
    groups = {"images": IMAGES, "videos": VIDEOS, "quadruplets": QUADRUPLETS}
    return lambda workspace, *names: _publish(workspace, [pair for name in names for pair in groups[name]])


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a published dataset of images, videos of two shapes, and quadruplets; cached. Read only."""
    root = tmp_path_factory.mktemp("training")
    _publish(root, [*IMAGES, *VIDEOS, *QUADRUPLETS])
    cache_latents(_configured(root), silent())
    return root


@pytest.fixture(scope="session")
def cache(workspace: Path) -> Path:
    return Path(cache_latents(_configured(workspace), silent())["path"])


@pytest.fixture(scope="session")
def new_editor() -> Callable[[], KiwiEditModel]:
    """Equal editors with random weights, to be trained apart."""
    from kiwi.training.start import initial_model

    first = initial_model(ModelSettings())
    return lambda: copy.deepcopy(first)


@pytest.fixture
def run_apart(tmp_path: Path) -> Callable[[str], str]:
    """Runs a program in a fresh interpreter and returns what it printed."""

    def run(program: str) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
