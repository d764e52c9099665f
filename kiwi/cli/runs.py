"""`kiwi runs`: the tree of MLflow runs, and what was not sent yet."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Recorded runs: the tree in MLflow, and sending what is left.", invoke_without_command=True)

Workdir = Annotated[Path, typer.Option(help="The work folder of a run.")]


@app.callback()
def show(
    context: typer.Context,
    workdir: Workdir = Path("runs/demo"),
    limit: Annotated[int, typer.Option(min=1, help="Newest attempts.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Shows attempts and their tasks as MLflow has them."""
    if context.invoked_subcommand:
        return
    from kiwi.cli.stored import stored_configuration
    from kiwi.tracking import list_runs, print_tree

    configuration = stored_configuration(workdir)
    if as_json:
        print(json.dumps(list_runs(configuration.tracking_uri, configuration.experiment, limit)))
    else:
        print_tree(configuration.tracking_uri, configuration.experiment, limit)


@app.command()
def send(workdir: Workdir = Path("runs/demo")) -> None:
    """Sends the records that a tracking server did not get while it was away."""
    from kiwi.cli.stored import stored_configuration
    from kiwi.tracking import send as send_records
    from kiwi.workspace import Workspace, read_json

    configuration = stored_configuration(workdir)
    record = read_json(Workspace.of(configuration).run_record)
    for attempt in record["attempts"]:
        os.environ["KIWI_RUN_ID"] = attempt["id"]
        status = None if attempt["status"] == "running" else attempt["status"]
        result = send_records(configuration, "finished" if status == "finished" else status and "failed")
        print(f"{attempt['id']}: {result['sent']} events sent")
