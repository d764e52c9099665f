"""`kiwi pipeline`: the Kubeflow Pipelines YAML of the end-to-end pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kiwi.errors import UsageError

app = typer.Typer(help="Kubeflow Pipelines: compile.", no_args_is_help=True)


@app.callback()
def pipeline() -> None:
    """Kubeflow Pipelines: compile."""


@app.command("compile")
def compile_(
    out: Annotated[Path, typer.Option(help="The YAML file to write.")] = Path("kiwi-end-to-end.yaml"),
    profile: Annotated[str, typer.Option(help="A profile's name or YAML file.")] = "local",
    image: Annotated[
        str | None, typer.Option(envvar="KIWI_IMAGE", help="REPOSITORY@sha256:… or REPOSITORY:<git SHA>.")
    ] = None,
) -> None:
    """Writes the pipeline as KFP YAML; the image reference is fixed here, never a moving tag."""
    if out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out {out} does not end in .yaml", "KFP reads pipelines from .yaml files")
    from pipelines.compiling import compile_end_to_end

    compile_end_to_end(out, profile, image)
    print(out)
