"""`kiwi bench`: edit the held-out benchmark with a run's model, judge the edits, show the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kiwi.cli.prefer import prefer
from kiwi.errors import UsageError

app = typer.Typer(help="The held-out benchmark: run, judge, table, prefer.", no_args_is_help=True)
app.command("prefer")(prefer)

Workdir = Annotated[Path, typer.Option(help="The work folder of a run with a trained model.")]


@app.command("run")
def run_(workdir: Workdir = Path("runs/demo")) -> None:
    """Edits the held-out samples."""
    from kiwi.cli.stored import stored_configuration

    configuration = stored_configuration(workdir)
    from kiwi.registry.contest import benchmark_with_champion
    from kiwi.tracking import silent

    print(json.dumps(benchmark_with_champion(configuration, silent())))


@app.command()
def judge(workdir: Workdir = Path("runs/demo")) -> None:
    """Scores the edits on the six criteria."""
    from kiwi.cli.stored import stored_configuration

    configuration = stored_configuration(workdir)
    from kiwi.benchmark.judge import judge_edits
    from kiwi.tracking import silent

    judge_edits(configuration, silent())
    table(workdir)


@app.command()
def table(
    workdir: Workdir = Path("runs/demo"),
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """The scores of a run beside the copy-source baseline."""
    from rich.console import Console
    from rich.table import Table

    from kiwi.workspace import read_json

    path = workdir.absolute() / "benchmark" / "scores.json"
    if not path.exists():
        raise UsageError(f"no benchmark scores in {workdir}", "`kiwi bench run` and `kiwi bench judge` make them")
    scores = read_json(path)
    if as_json:
        print(json.dumps(scores))
        return
    copy = scores["baselines"]["copy_source"]
    view = Table("criterion", "model", "copy of the source")
    view.add_row("overall", f"{scores['overall']:.3f}", f"{copy['overall']:.3f}", end_section=True)
    for name, score in scores["criteria"].items():
        view.add_row(name, _figure(score), _figure(copy.get("criteria", {}).get(name)))
    Console().print(view)


def _figure(score: float | None) -> str:
    return "–" if score is None else f"{score:.3f}"
