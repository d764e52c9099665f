"""The training loop's speed, on the tiny editor and on the middle size, all sides in one run.

    taskset -c 0,1 python benchmarks/training.py [--rounds N] [--steps N] [--threads N] [--out FILE]

Measured in turns, so that a busy machine slows every side. Each side's shortest time counts: other work on the
machine only adds.

- samples a second from the cache, against encoding live before every step, as the authors' loop does it: in turn,
  decode the frames of source and target that the sample has, scale them, encode them, and run the vision tower. Twice:
  the dataset's clips as small as the model sees them, and as large as videos are (the real pairs where they are at
  hand, KIWI_REAL_PAIRS; else procedural clips of 480 x 480);
- the loop against a bare one (forward, backward, clipping, optimiser step on batches that lie ready);
- the share of a step that waits for data;
- asynchronous checkpoints: what one takes of the training's own thread and of the writer's processor time. Their sum
  is the cost where no core is idle; from it the share of throughput at one every 10 seconds and at the stage's default;
- seconds from the start of a process to its first step, with what importing can put off and without.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from machine import machine

from kiwi.configuration import ModelSettings, RunConfiguration, SourceSettings, StageSettings, TrainerSettings
from kiwi.curation.build import build_dataset
from kiwi.curation.finished import dataset_folder
from kiwi.dataset.reader import open_media, read_split
from kiwi.media import encode_video
from kiwi.media.images import decode_image
from kiwi.media.reading import decode
from kiwi.media.resizing import resize_frames
from kiwi.model.editor import KiwiEditModel
from kiwi.sources.procedural import draw
from kiwi.tracking import silent
from kiwi.training import cache_latents, latents
from kiwi.training.checkpoints import Checkpoints
from kiwi.training.loop import train
from kiwi.training.loss import losses
from kiwi.training.mixture import Mixture, training_noise
from kiwi.training.optimizers import Optimizers
from kiwi.training.start import initial_model
from kiwi.training.views import View, views
from kiwi.workspace import read_json, write_json

SEED = 0
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"model": ModelSettings(), "batch_size": 16, "optimizer": "muon", "steps": 12},
    "middle": {"model": ModelSettings(preset="middle", size=64), "batch_size": 4, "optimizer": "adamw", "steps": 4},
}
PLAIN = StageSettings(name="plain", steps=1, mix={}, learning_rate=0.0, mllm_learning_rate=0.0)
CADENCE = 10.0  # seconds between checkpoints of somebody who fears to lose any
REAL = Path(os.environ.get("KIWI_REAL_PAIRS", Path(__file__).parents[2] / "shared" / "data" / "real"))
LARGE = 480
FIRST_STEP = """
import time; began = time.perf_counter()
if not {light}:
    import contextlib
    import kiwi.model.imports as imports
    imports.import_parts = lambda: None
    imports.light_imports = lambda **_: contextlib.nullcontext()
from kiwi.configuration import RunConfiguration
from kiwi.tracking import silent
import kiwi.training.curriculum as curriculum
from kiwi.training import loop
imported = time.perf_counter()
original = loop._step
class First(Exception): pass
def step(*inputs):
    told = original(*inputs)
    print("SECONDS", imported - began, time.perf_counter() - began, time.process_time()); raise First
loop._step = step
try: curriculum.run_stage(RunConfiguration.parse(open({path!r}).read()), "stage", silent())
except First: pass
"""


def configured(name: str, root: Path, steps: int) -> RunConfiguration:
    size = SIZES[name]
    stage = StageSettings(
        name="stage", steps=steps, batch_size=size["batch_size"], mix={"image": 0.2, "video": 0.4, "reference": 0.4},
        learning_rate=1e-4, mllm_learning_rate=1e-4, optimizer=size["optimizer"], checkpoint_every=10**6,
    )  # fmt: skip
    return RunConfiguration(
        preset="tiny", workspace=str(root / name), tracking_uri="", model=size["model"], stages=(stage,),
        source=SourceSettings(clips=60, images=20), threads=torch.get_num_threads(),
    )  # fmt: skip


def publish(root: Path, configuration: RunConfiguration) -> None:
    """One procedural dataset for all sizes, said to be published."""
    if not (root / "curated").exists():
        build_dataset(configuration.model_copy(update={"workspace": str(root / "curated")}))
    dataset = dataset_folder(configuration.model_copy(update={"workspace": str(root / "curated")}))
    said = {"path": str(dataset), "digest": "benchmark", "version": "v1", "revision": "0" * 40}
    write_json(Path(configuration.workspace) / "dataset.json", said)


class Sides:
    """The ways of training the same steps; each call trains them anew and returns seconds."""

    def __init__(self, configuration: RunConfiguration, cache: Path, scratch: Path) -> None:
        self.configuration, self.cache, self.scratch = configuration, cache, scratch
        self.first = initial_model(configuration.model)
        self.stage = configuration.stages[0]
        self.waits: list[float] = []
        self.checkpoints: list[tuple[float, float]] = []
        self.samples = self._samples()
        self.large = large_pairs(scratch)

    def _samples(self) -> dict[str, list[Any]]:
        """Rows of the dataset by the kind of sample that they give."""
        dataset = Path(read_json(Path(self.configuration.workspace) / "dataset.json")["path"])
        rows = read_split(dataset, "train", latents.COLUMNS).to_dicts()
        found: dict[str, list[Any]] = {}
        for row in rows:
            kind = "image" if row["media"] == "image" else "reference" if row["trains_as"] == "quadruplet" else "video"
            found.setdefault(kind, []).append(row)
        found.setdefault("video", found["reference"])
        return found

    def loop(self, steps: int, *, save_every: int | None = None) -> tuple[float, float]:
        model, folder = copy.deepcopy(self.first), self.scratch / "stage"
        shutil.rmtree(folder, ignore_errors=True)
        stage = self.stage.model_copy(update={"steps": steps, "checkpoint_every": save_every or 10**6})
        mixture = self._mixture(model, stage)
        told: list[float] = []
        task = silent()
        task.metrics = lambda figures, step=None: told.append(figures["data_share"])  # type: ignore[method-assign]
        trainer = TrainerSettings(log_every=steps)
        short = stage.model_copy(update={"steps": 3})
        train(model, self._mixture(model, short), short, SEED, folder, silent(), trainer=trainer)  # warm up
        shutil.rmtree(folder, ignore_errors=True)
        with timed_checkpoints(self.checkpoints if save_every else []):
            began = clocks()
            train(model, mixture, stage, SEED, folder, task, trainer=trainer)
            seconds = since(began)
        if save_every is None:
            self.waits += told[-1:]
        return seconds

    def bare(self, steps: int) -> tuple[float, float]:
        model = copy.deepcopy(self.first)
        stage = self.stage.model_copy(update={"steps": steps})
        mixture, optimizers = self._mixture(model, stage), Optimizers(model, stage)
        plan = mixture.plan(steps)
        ready = [
            (mixture.batch(*drawn), *training_noise(mixture.batch(*drawn).target.shape, (SEED, 3, step)))
            for step, drawn in enumerate(plan)
        ]
        model.train()
        for batch, noise, levels in ready[:2]:
            self._step(model, optimizers, stage, batch, noise, levels)
        began = clocks()
        for batch, noise, levels in ready:
            self._step(model, optimizers, stage, batch, noise, levels)
        return since(began)

    def _step(self, model: KiwiEditModel, optimizers: Optimizers, stage: StageSettings, *data: Any) -> None:
        losses(model, *data, stage).loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(optimizers.parameters, 1.0)
        optimizers.step(1.0)

    def encoding(self, steps: int, *, large: bool = False) -> tuple[float, float]:
        """What the cache saves: decoding, scaling and encoding the samples of the same steps, one after another."""
        model = copy.deepcopy(self.first)
        mixture = self._mixture(model, self.stage.model_copy(update={"steps": steps}))
        drawn = [mixture.batch(*each) for each in mixture.plan(steps)]
        view = views(self.configuration)[0]
        self._encode(model, view, drawn[0].kind, 1, large)  # warm up
        began = clocks()
        for batch in drawn:
            self._encode(model, view, batch.kind, len(batch.iids), large)
        return since(began)

    def _encode(self, model: KiwiEditModel, view: View, kind: Any, count: int, large: bool) -> None:
        rows = (self.samples[kind] * count)[:count]
        pairs = (self.large * count)[:count] if large else [self._own_pair(row) for row in rows]
        frames = 1 if kind == "image" else view.frames
        samples: dict[Any, list[Any]] = {}
        for row, pair in zip(rows, pairs, strict=True):
            source, target = (decode(each, max_frames=frames).frames for each in pair)
            length = 1 + 4 * ((min(len(source), len(target)) - 1) // 4)
            clips = [resize_frames(clip[:length], view.size, view.size) for clip in (source, target)]
            reference = decode_image(row["ref_image_bytes"]) if kind == "reference" else None
            seen = model.vision.reference(reference) if reference is not None else None
            sample = latents._Sample(row["iid"], row["prompt"], kind, *clips, reference, seen)
            samples.setdefault(sample.bucket, []).append(sample)
        for alike in samples.values():
            latents.encode_live(model, alike)

    def _own_pair(self, row: dict[str, Any]) -> tuple[Any, Any]:
        dataset = Path(read_json(Path(self.configuration.workspace) / "dataset.json")["path"])
        return open_media(dataset, row["src_video"]), open_media(dataset, row["tgt_video"])

    def _mixture(self, model: KiwiEditModel, stage: StageSettings) -> Mixture:
        return Mixture(self.cache, stage, model.context_encoder, SEED)


def large_pairs(scratch: Path) -> list[tuple[Path, Path]]:
    """Files of (source, target) at the size that videos have."""
    if (REAL / "pairs.csv").is_file():
        with (REAL / "pairs.csv").open(newline="") as file:
            return [(REAL / row["src_video"], REAL / row["tgt_video"]) for row in csv.DictReader(file)]
    folder = scratch.parent / "large"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for number in range(8):
            sample = draw(SourceSettings(seed=SEED, size=LARGE), number, "recolour", 9)
            encode_video(folder / f"{number}.source.mp4", sample.source, 8)
            encode_video(folder / f"{number}.target.mp4", sample.target, 8)
    return [(path, Path(str(path).replace(".source.", ".target."))) for path in sorted(folder.glob("*.source.mp4"))]


@contextmanager
def timed_checkpoints(found: list[tuple[float, float]]) -> Iterator[None]:
    """Adds (seconds of the training's thread, processor seconds of the writer's) of each checkpoint to `found`."""
    save, commit, write = Checkpoints.save, Checkpoints.commit, Checkpoints._write
    own: list[float] = []
    writer: list[float] = []

    def timed(method: Any, clock: Callable[[], float], told: list[float]) -> Any:
        def call(*inputs: Any, **named: Any) -> Any:
            began = clock()
            method(*inputs, **named)
            told.append(clock() - began)

        return call

    Checkpoints.save = timed(save, time.perf_counter, own)  # type: ignore[method-assign]
    Checkpoints.commit = timed(commit, time.perf_counter, own)  # type: ignore[method-assign]
    Checkpoints._write = timed(write, time.thread_time, writer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Checkpoints.save, Checkpoints.commit, Checkpoints._write = save, commit, write  # type: ignore[method-assign]
    if writer:
        found.append((sum(own) / len(writer), sum(writer) / len(writer)))


def in_turns(
    rounds: int, sides: dict[str, Callable[[], tuple[float, float]]]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each side, and processor seconds of all threads, which waiting for a core does not lengthen."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides) if turn % 2 else list(reversed(sides)):
            seconds, own = sides[name]()
            times[name].append(seconds)
            processor[name].append(own)
    return times, processor


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    wall, processor = clocks()
    return wall - began[0], processor - began[1]


def measured(name: str, root: Path, rounds: int, steps: int) -> dict[str, Any]:
    configuration = configured(name, root, steps)
    publish(root, configuration)
    cache = Path(cache_latents(configuration, silent())["path"])
    sides = Sides(configuration, cache, root / "scratch" / name)
    every = steps // 2
    times, processor = in_turns(
        rounds,
        {
            "loop": lambda: sides.loop(steps),
            "bare": lambda: sides.bare(steps),
            "encoding": lambda: sides.encoding(steps),
            "encoding_large": lambda: sides.encoding(steps, large=True),
            "saving": lambda: sides.loop(steps, save_every=every),
        },
    )
    least = {side: min(seconds) for side, seconds in times.items()}  # other work on the machine only adds
    busy = {side: min(seconds) for side, seconds in processor.items()}
    samples = steps * configuration.stages[0].batch_size
    live, large = least["bare"] + least["encoding"], least["bare"] + least["encoding_large"]
    return {
        "parameters": sum(p.numel() for p in sides.first.parameters()),
        "batch_size": configuration.stages[0].batch_size,
        "seconds": {side: [round(each, 3) for each in seconds] for side, seconds in times.items()},
        "processor_seconds": {side: [round(each, 3) for each in seconds] for side, seconds in processor.items()},
        "by_processor_seconds": {
            "cached_over_live": round((busy["bare"] + busy["encoding"]) / busy["loop"], 2),
            "cached_over_live_large": round((busy["bare"] + busy["encoding_large"]) / busy["loop"], 2),
            "loop_overhead": round(busy["loop"] / busy["bare"] - 1, 4),
        },
        "samples_per_second_cached": round(samples / least["loop"], 1),
        "samples_per_second_live": round(samples / live, 1),
        "samples_per_second_live_large": round(samples / large, 1),
        "cached_over_live": round(live / least["loop"], 2),
        "cached_over_live_large": round(large / least["loop"], 2),
        "large_clips": "real pairs" if (REAL / "pairs.csv").is_file() else f"procedural, {LARGE} x {LARGE}",
        "loop_overhead": round(least["loop"] / least["bare"] - 1, 4),
        "data_share": round(min(sides.waits), 4),
        "data_share_median": round(statistics.median(sides.waits), 4),
        "checkpoints": checkpoint_costs(sides.checkpoints, least["loop"] / steps),
        "steps": steps,
    }


def checkpoint_costs(found: list[tuple[float, float]], step_seconds: float) -> dict[str, float]:
    own, writer = min(each[0] for each in found), min(each[1] for each in found)
    both = own + writer
    return {
        "training_thread_ms": round(1e3 * own, 1),
        "writer_processor_ms": round(1e3 * writer, 1),
        "cost_every_10_s": round(both / CADENCE, 4),
        "default_every_steps": PLAIN.checkpoint_every,
        "cost_by_default": round(both / (PLAIN.checkpoint_every * step_seconds), 5),
    }


def first_step(configuration: RunConfiguration, root: Path) -> dict[str, dict[str, float]]:
    """Seconds from the start to the imported trainer and to the end of the first step, and processor seconds."""
    path = root / "first.json"
    path.write_text(configuration.canonical())
    found: dict[str, list[list[float]]] = {"light": [], "whole": []}
    for _ in range(3):
        for name, runs in found.items():
            program = FIRST_STEP.format(path=str(path), light=name == "light")
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
            line = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS"))
            runs.append([float(word) for word in line.split()[1:]])
    least = {name: [round(min(each), 2) for each in zip(*runs, strict=True)] for name, runs in found.items()}
    names = ("imports", "first_step", "first_step_processor")
    return {name: dict(zip(names, seconds, strict=True)) for name, seconds in least.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=None, help="of each size; the sizes have their own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in SIZES:
            result[name] = measured(name, root, arguments.rounds, arguments.steps or SIZES[name]["steps"])
            print(name, {key: value for key, value in result[name].items() if key[-7:] != "seconds"}, flush=True)
        result["start_seconds"] = first_step(configured("tiny", root, 4), root)
    write_json(arguments.out, {"machine": machine(), **result})
    print(f"start: {result['start_seconds']}; written to {arguments.out.name}")


if __name__ == "__main__":
    main()
