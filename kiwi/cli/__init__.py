"""The `kiwi` program: nouns, then verbs. Each noun has a file here; nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys

import typer

from kiwi.cli import bench, data, doctor, edit, model, pipeline, run, runs, schedule, train
from kiwi.errors import KiwiError

app = typer.Typer(
    name="kiwi",
    help="From video-editing pairs to a better reference-guided editor. `--debug` anywhere shows tracebacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("train")(train.train)
app.command("edit")(edit.edit)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.add_typer(model.app, name="model")
app.add_typer(pipeline.app, name="pipeline")
app.add_typer(schedule.app, name="schedule")
app.add_typer(runs.app, name="runs")


def main() -> None:
    """Runs the program. Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, prog_name="kiwi")
    except KiwiError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if debug or (error.name or "").partition(".")[0] in ("kiwi", "components", "pipelines"):
            raise
        _fail(f"package {error.name!r} is not installed\n  pip install 'kiwi[all]', or `kiwi doctor` for details", 1)
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error}\n  this is a defect of kiwi; --debug shows where", 1)


def _fail(text: str, code: int) -> None:
    print(f"kiwi: {text}", file=sys.stderr)
    sys.exit(code)
