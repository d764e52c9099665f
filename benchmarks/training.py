"""The training loop's speed, on the tiny editor and on the middle size, all sides in one run.

    taskset -c 0,1 python benchmarks/training.py [--rounds N] [--steps N] [--threads N] [--out FILE]

Measured in turns, so that a busy machine slows every side. Each side's shortest time counts: other work on the
machine only adds.

- samples a second from the cache, against encoding the same samples live (codec, vision tower and decoding of the
  clips) before every step, as the authors' loop does;
- the loop against a bare one (forward, backward, clipping, optimiser step on batches that lie ready);
- the share of a step that waits for data;
- the loop with a checkpoint every few steps, written meanwhile, against none;
- seconds from the start of a process to its first step, and what of it imports take.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine

from kiwi.configuration import ModelSettings, RunConfiguration, SourceSettings, StageSettings, TrainerSettings
from kiwi.curation.build import build_dataset
from kiwi.curation.finished import dataset_folder
from kiwi.model.editor import KiwiEditModel
from kiwi.tracking import silent
from kiwi.training import cache_latents, latents
from kiwi.training.loop import train
from kiwi.training.loss import losses
from kiwi.training.mixture import Mixture, training_noise
from kiwi.training.optimizers import Optimizers
from kiwi.training.start import initial_model
from kiwi.training.views import views
from kiwi.workspace import read_json, write_json

SEED = 0
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"model": ModelSettings(), "batch_size": 16, "optimizer": "muon", "steps": 12},
    "middle": {"model": ModelSettings(preset="middle", size=64), "batch_size": 4, "optimizer": "adamw", "steps": 4},
}
FIRST_STEP = """
import time; began = time.perf_counter()
from kiwi.configuration import RunConfiguration
from kiwi.tracking import silent
import kiwi.training.curriculum as curriculum
from kiwi.training import loop
imported = time.perf_counter()
original = loop._step
class First(Exception): pass
def step(*inputs):
    told = original(*inputs); print("SECONDS", imported - began, time.perf_counter() - began); raise First
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
        self.samples = self._samples()

    def _samples(self) -> dict[str, list[Any]]:
        """Rows of the dataset by the kind of sample that they give."""
        from kiwi.dataset.reader import read_split

        dataset = Path(read_json(Path(self.configuration.workspace) / "dataset.json")["path"])
        rows = read_split(dataset, "train", latents.COLUMNS).to_dicts()
        found: dict[str, list[Any]] = {}
        for row in rows:
            kind = "image" if row["media"] == "image" else "reference" if row["trains_as"] == "quadruplet" else "video"
            found.setdefault(kind, []).append(row)
        found.setdefault("video", found["reference"])
        return found

    def loop(self, steps: int, *, save_every: int | None = None) -> float:
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
        began = time.perf_counter()
        train(model, mixture, stage, SEED, folder, task, trainer=trainer)
        seconds = time.perf_counter() - began
        if save_every is None:
            self.waits += told[-1:]
        return seconds

    def bare(self, steps: int, live: bool = False) -> float:
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
        began = time.perf_counter()
        for batch, noise, levels in ready:
            if live:
                self._encode(model, batch.kind, len(batch.iids))
            self._step(model, optimizers, stage, batch, noise, levels)
        return time.perf_counter() - began

    def _step(self, model: KiwiEditModel, optimizers: Optimizers, stage: StageSettings, *data: Any) -> None:
        losses(model, *data, stage).loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(optimizers.parameters, 1.0)
        optimizers.step(1.0)

    def _encode(self, model: KiwiEditModel, kind: str, count: int) -> None:
        """What the cache saves: decoding and encoding as many samples of the kind."""
        view = views(self.configuration)[0]
        dataset = Path(read_json(Path(self.configuration.workspace) / "dataset.json")["path"])
        rows = (self.samples[kind] * count)[:count]
        given = [next(latents._of_row(model, view, dataset, row, kind == "reference", False)) for row in rows]
        for _ in latents._encoded(model, view, iter(given)):
            pass

    def _mixture(self, model: KiwiEditModel, stage: StageSettings) -> Mixture:
        return Mixture(self.cache, stage, model.context_encoder, SEED)


def in_turns(rounds: int, sides: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in list(sides) if turn % 2 else list(reversed(sides)):
            times[name].append(sides[name]())
    return times


def measured(name: str, root: Path, rounds: int, steps: int) -> dict[str, Any]:
    configuration = configured(name, root, steps)
    publish(root, configuration)
    cache = Path(cache_latents(configuration, silent())["path"])
    sides = Sides(configuration, cache, root / "scratch" / name)
    every = steps // 2
    times = in_turns(
        rounds,
        {
            "loop": lambda: sides.loop(steps),
            "bare": lambda: sides.bare(steps),
            "live": lambda: sides.bare(steps, live=True),
            "saving": lambda: sides.loop(steps, save_every=every),
        },
    )
    least = {side: min(seconds) for side, seconds in times.items()}  # other work on the machine only adds
    samples = steps * configuration.stages[0].batch_size
    return {
        "parameters": sum(p.numel() for p in sides.first.parameters()),
        "batch_size": configuration.stages[0].batch_size,
        "seconds": {side: [round(each, 3) for each in seconds] for side, seconds in times.items()},
        "samples_per_second_cached": round(samples / least["loop"], 1),
        "samples_per_second_live": round(samples / least["live"], 1),
        "cached_over_live": round(least["live"] / least["loop"], 2),
        "loop_overhead": round(least["loop"] / least["bare"] - 1, 4),
        "data_share": round(min(sides.waits), 4),
        "data_share_median": round(statistics.median(sides.waits), 4),
        "checkpoint_every_steps": every,
        "checkpoint_cost": round(least["saving"] / least["loop"] - 1, 4),
        "steps": steps,
    }


def first_step(configuration: RunConfiguration, root: Path) -> dict[str, float]:
    path = root / "first.json"
    path.write_text(configuration.canonical())
    found = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_STEP.format(path=str(path))], capture_output=True, text=True, check=True
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS"))
        found.append([float(word) for word in line.split()[1:]])
    imports, total = min(found, key=lambda each: each[1])
    return {"imports": round(imports, 2), "first_step": round(total, 2)}


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
            print(name, {key: value for key, value in result[name].items() if key != "seconds"}, flush=True)
        result["start_seconds"] = first_step(configured("tiny", root, 4), root)
    write_json(arguments.out, {"machine": machine(), **result})
    print(f"start: {result['start_seconds']}; written to {arguments.out.name}")


if __name__ == "__main__":
    main()
