"""`kiwi train`: one stage of the curriculum on the dataset of a work folder, without the pipeline."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi.errors import UsageError

if TYPE_CHECKING:
    from kiwi.configuration import RunConfiguration

REFRESH_SECONDS = 0.5


def train(
    stage: Annotated[str, typer.Argument(help="A stage of the preset: stage1, stage2, stage3 (tiny).")],
    workdir: Annotated[Path, typer.Option(help="The work folder of a run with a dataset.")] = Path("runs/demo"),
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    recompute: Annotated[str | None, typer.Option(help="none, selective, attention or full: less memory.")] = None,
    compile_blocks: Annotated[bool, typer.Option("--compile", help="Compile the transformer's blocks.")] = False,
    shard_ranks: Annotated[int | None, typer.Option(help="Ranks a copy of the weights is spread over (HSDP).")] = None,
    samples_every: Annotated[int | None, typer.Option(help="Edit a few held-out clips every so many steps.")] = None,
    profile: Annotated[bool, typer.Option(help="Write a trace of a few steps.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="trainer.KEY=VALUE", help="Any other setting of the trainer.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The stage's result as JSON on stdout.")] = False,
) -> None:
    """Trains one stage from the stage before; resumes from its newest checkpoint; a finished stage returns at once.

    On several GPUs: torchrun --nproc-per-node N -m kiwi train STAGE. After SIGTERM it has saved, and exits with 143
    (torchrun with 1).
    """
    from kiwi.cli.stored import stored_configuration
    from kiwi.cluster.prerequisites import check_editor
    from kiwi.training import checkpoint_folder

    configuration = stored_configuration(workdir)
    configuration.stage(stage)
    said = {
        "device": device, "recompute": recompute, "compile": compile_blocks or None, "shard_ranks": shard_ranks,
        "samples_every": samples_every, "profile": profile or None,
    }  # fmt: skip
    configuration = _with_settings(configuration, settings or [])
    configuration = _with_trainer(configuration, {key: value for key, value in said.items() if value is not None})
    check_editor(configuration)
    result, reused = _trained(configuration, stage)
    if os.environ.get("RANK", "0") != "0":
        return
    # The work folder may have been copied since the result was written.
    result = {**result, "checkpoint": str(checkpoint_folder(configuration, stage))}
    if reused and (configuration.trainer.profile or configuration.trainer.samples_every):
        print(
            f"{stage} is finished already; no trace or samples were written (another work folder trains anew)",
            file=sys.stderr,
        )
    if as_json:
        print(json.dumps(result))
        return
    print(f"{stage}: {result['steps']} steps, loss {result['loss_first']:.3f} → {result['loss_last']:.3f}")
    print(result["checkpoint"])


def _with_settings(configuration: RunConfiguration, settings: list[str]) -> RunConfiguration:
    """Settings of the trainer; those of stages and model decide where results lie, and stand with the work folder."""
    from kiwi.presets import overridden

    for said in settings:
        if not said.startswith("trainer."):
            raise UsageError(
                f"--set {said}: only settings of the trainer can change here",
                "the others belong to the work folder: give them to the `kiwi run` or `kiwi data build` that makes it",
            )
        if said.startswith("trainer.precision="):
            raise UsageError(
                f"--set {said}: the precision decides what is learned, and stands with the work folder",
                "give it to the `kiwi run` or `kiwi data build` that makes the folder",
            )
    return overridden(configuration, settings)


def _with_trainer(configuration: RunConfiguration, said: dict[str, Any]) -> RunConfiguration:
    from kiwi.configuration import RunConfiguration, canonical_json

    values = configuration.model_dump(mode="json")
    values["trainer"] |= said
    return RunConfiguration.parse(canonical_json(values))


def _trained(configuration: RunConfiguration, stage: str) -> tuple[dict[str, Any], bool]:
    """Trains as a recorded task, whose record goes to MLflow however training ended.

    Returns the result, and whether the stage was finished before, which shows no progress bar.
    """
    from kiwi.tracking import TrackingError, send, task_run
    from kiwi.training import train_stage
    from kiwi.training.results import finished_stage

    name = f"train_{stage}"
    try:
        reused = finished_stage(configuration, stage) is not None
        with task_run(configuration, name) as task, nullcontext() if reused else _shown(configuration, name):
            return train_stage(configuration, stage, task), reused
    finally:
        if os.environ.get("RANK", "0") == "0":
            try:
                send(configuration)
            except TrackingError as error:
                print(f"the record is kept, and not yet in MLflow: {error}", file=sys.stderr)


@contextmanager
def _shown(configuration: RunConfiguration, name: str) -> Iterator[None]:
    """A progress bar on stderr while the block runs, drawn from the task's own record; none beside rank 0."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    ended = threading.Event()
    drawer = threading.Thread(target=_draw, args=(configuration, name, ended), name="progress", daemon=True)
    drawer.start()
    try:
        yield
    finally:
        ended.set()
        drawer.join()


def _draw(configuration: RunConfiguration, name: str, ended: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from kiwi.tracking import attempt_of, read_records

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[said]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task(name, total=None, said="")
        while True:
            over = ended.wait(REFRESH_SECONDS)
            records = read_records(configuration.workdir, attempt_of(configuration))
            own = next((record for record in records if record.name == name), None)
            if own is not None and own.progress:
                total, done = own.progress["total"], own.progress["done"]
                bar.update(shown, total=total, completed=done, said=_figures(own.metrics) or own.progress["note"])
            if over:
                return


def _figures(metrics: dict[str, float]) -> str:
    """The newest log line in short."""
    if "loss" not in metrics:
        return ""
    said = [f"loss {metrics['loss']:.3f}", f"{metrics['samples_per_second']:.0f} samples/s"]
    if "mfu" in metrics:
        said.append(f"MFU {metrics['mfu']:.0%}")
    said += [f"data {metrics['data_share']:.0%}", f"{metrics['memory_gb']:.1f} GB"]
    return "  ".join(said)
