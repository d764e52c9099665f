"""`kiwi train`: one stage of the curriculum on the dataset of a work folder, without the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    stage: Annotated[str, typer.Argument(help="stage1, stage2 or stage3.")],
    workdir: Annotated[Path, typer.Option(help="The work folder of a run with a dataset.")] = Path("runs/demo"),
) -> None:
    """Trains one stage from the stage before; resumes from its newest checkpoint; a finished stage returns at once."""
    from kiwi.cli.stored import stored_configuration

    configuration = stored_configuration(workdir)
    configuration.stage(stage)
    from kiwi.tracking import silent
    from kiwi.training import cache_latents, train_stage

    cache_latents(configuration, silent())
    result = train_stage(configuration, stage, silent())
    print(f"{stage}: {result['steps']} steps, loss {result['loss_first']:.3f} → {result['loss_last']:.3f}")
    print(result["checkpoint"])
