"""Trains a tiny editor on a cache of random latents: `[torchrun …] training_program.py FOLDER OUT [SETTINGS]`.

A program of its own, so that torchrun can start it on several ranks, and so that trainings can be forks of a process
that has imported everything and started no thread: without arguments it reads {"folder", "out", "ranks", "said"} line
by line, trains on forks that have the variables torchrun gives its processes, and answers each with the exit codes.
What the forks say on stderr is in OUT.log. The cache is a fake, written through the real writer: what latents
say does not matter to what is tested, which is that the same ones give the same losses.

SETTINGS is JSON: "stage" and "trainer" settings; "stop_after", a step after which the training is left as by an
error; "keep", to save the model. Writes the losses to OUT.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiwi.configuration import ModelSettings, StageSettings, TrainerSettings
from kiwi.model.checkpoint import save_model
from kiwi.model.editor import KiwiEditModel
from kiwi.tracking import silent
from kiwi.training import latents
from kiwi.training.curriculum import _unsharded
from kiwi.training.latents import _Sample
from kiwi.training.loop import train
from kiwi.training.mixture import Mixture
from kiwi.training.optimizers import freeze_all_but
from kiwi.training.parallelize import parallelize
from kiwi.training.ranks import joined_ranks
from kiwi.training.start import initial_model

SEED = 3
SAMPLES = 11


class Left(Exception):  # noqa: N818
    """The training was left, as by an error."""


def write_cache(folder: Path) -> None:
    """Random latents of images, clips and quadruplets."""
    generator = torch.Generator().manual_seed(0)

    def batches() -> Iterator[Any]:
        for kind, frames in (("image", 1), ("video", 5), ("reference", 5)):
            shape = (SAMPLES, 48, 1 + frames // 4, 4, 4)
            tensors: dict[str, Tensor] = {
                name: torch.randn(shape, generator=generator) for name in ("source", "target")
            }
            tensors["vision"] = torch.randn(SAMPLES, 4, 64, generator=generator)
            grids = {"grid": [1, 4, 4]}
            if kind == "reference":
                tensors["reference"] = torch.randn(SAMPLES, 48, 1, 4, 4, generator=generator)
                tensors["reference_vision"] = torch.randn(SAMPLES, 4, 64, generator=generator)
                grids["reference_grid"] = [1, 4, 4]
            samples = [
                _Sample(f"{kind}-{place}", f"Make it {place}.", kind, None, None, None, None)  # type: ignore[arg-type]
                for place in range(SAMPLES)
            ]
            yield (kind, frames, 32, 32), samples, {name: t.half() for name, t in tensors.items()}, grids

    folder.mkdir(parents=True)
    latents._write_chunk(folder, 0, "a fake", batches())
    latents._finish(folder, "a fake", "a fake", 1)


def settings(**changes: Any) -> StageSettings:
    said = {
        "steps": 24, "batch_size": 4, "mix": {"image": 0.3, "video": 0.4, "reference": 0.3}, "learning_rate": 2e-3,
        "mllm_learning_rate": 5e-3, "optimizer": "muon", "checkpoint_every": 3, "edit_weight": 0.5, **changes,
    }  # fmt: skip
    return StageSettings(name="stage", **said)


def trained(folder: Path, said: dict[str, Any], model: KiwiEditModel | None = None) -> list[Any] | None:
    """The losses; None on ranks other than the first. Raises Left where that was asked for."""
    torch.set_num_threads(1)
    stage, trainer = settings(**said.get("stage", {})), TrainerSettings(**said.get("trainer", {}))
    device = torch.device("cpu")
    with joined_ranks(device) as ranks:
        model = model or initial_model(ModelSettings())
        mixture = Mixture(folder / "cache", stage, model.context_encoder, SEED, least=ranks.world * stage.accumulate)
        freeze_all_but(model, stage.trainable)
        parallelize(model, trainer, device, ranks)
        stop = said.get("stop_after")

        def leave(step: int) -> None:
            if step == stop:
                raise Left

        if stop is not None:
            trainer = trainer.model_copy(update={"samples_every": 1})
        progress = train(
            model, mixture, stage, SEED, folder / "stage", silent(), trainer=trainer, ranks=ranks, device=device,
            edit_samples=leave,
        )  # fmt: skip
        whole = _unsharded(model, ranks, lambda: initial_model(ModelSettings()))
        if whole is not None and said.get("keep"):
            save_model(whole, folder / "model", "trained on random latents")
        return progress.losses if ranks.first else None


def run(folder: Path, out: Path, said: dict[str, Any]) -> None:
    try:
        found = trained(folder, said)
    except Left:
        os._exit(0)  # without the farewells of a process group that the other rank has left
    if found is not None:
        out.write_text(json.dumps(found))


def forked(rank: int, port: int, job: dict[str, Any]) -> int:
    """The number of a fork that trains as one of a job's ranks, and ends with 0 when it has."""
    child = os.fork()
    if child:
        return child
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in {**names, "MASTER_PORT": port}.items()})
    status = 1
    try:
        os.dup2(os.open(f"{job['out']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        run(Path(job["folder"]), Path(job["out"]), job["said"])
        status = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(status)


def all_ended(children: list[int]) -> list[int]:
    """The exit codes of all; where one fails, the others are killed, for they would wait for it."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            ended, status = (0, 0) if child in codes else os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
                for other in children if codes[child] else []:
                    if other not in codes:
                        os.kill(other, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


def serve() -> None:
    import torch._dynamo
    import torch.distributed.checkpoint
    import torch.distributed.fsdp  # noqa: F401

    initial_model(ModelSettings())  # imports what it is made of
    for line in sys.stdin:
        job = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        print(all_ended([forked(rank, port, job) for rank in range(job["ranks"])]), flush=True)
    os._exit(0)  # without taking apart all that was imported


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
    else:
        serve()
