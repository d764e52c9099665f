"""`kiwi bench`: edit the held-out benchmark with a run's model, judge the edits, compare, show the tables."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from kiwi.cli.metrics import metrics
from kiwi.cli.prefer import prefer
from kiwi.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from kiwi.benchmark.tables import Format, ScoreTable
    from kiwi.configuration import RunConfiguration

app = typer.Typer(help="The held-out benchmark: run, judge, table, compare, prefer.", no_args_is_help=True)
app.command("prefer")(prefer)
app.command("metrics")(metrics)

Workdir = Annotated[Path, typer.Option(help="The work folder of a run with a trained model.")]
Listed = Annotated[
    str,
    typer.Option(
        metavar="NAME=LOCATION",
        help="Instead of held-out samples: refvie-bench=FOLDER, openve-bench=FOLDER, or NAME=FILE in either form.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


WIDTH = 120  # columns that a table of nine figures needs: a narrower terminal folds lines, and loses none


class Form(StrEnum):
    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    HTML = "html"
    LATEX = "latex"


@app.command("run")
def run_(
    workdir: Workdir = Path("runs/demo"),
    benchmark: Listed = "",
    shard: Annotated[int, typer.Option(min=0, help="--benchmark: this process's share, counted from 0.")] = 0,
    shards: Annotated[int, typer.Option(min=1, help="--benchmark: over how many processes samples are shared.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="--benchmark: clips that are edited together.")] = 4,
    with_champion: Annotated[
        bool, typer.Option("--champion/--no-champion", help="--benchmark: the champion edits the same samples.")
    ] = True,
) -> None:
    """Edits the held-out samples, or those of a benchmark's list; goes on where it was stopped.

    The edits are kept with the run in MLflow, with their hashes.
    """
    from kiwi.cli.stored import stored_configuration

    configuration = stored_configuration(workdir)
    from kiwi.benchmark.listed_edits import Shard
    from kiwi.registry.contest import benchmark_with_champion, champion_reference
    from kiwi.tracking import task_run

    share = Shard(shard, shards)
    if shards > 1 and not benchmark:
        raise UsageError("--shard and --shards are for a benchmark's list", "add --benchmark NAME=LOCATION")
    from kiwi.cli.editing_progress import progress_of

    number = shard if shards > 1 else None
    with task_run(configuration, "bench_run", number) as task, progress_of("editing") as told:
        if benchmark:
            from kiwi.benchmark.listed import load_listed
            from kiwi.benchmark.listed_edits import edit_listed

            listed = load_listed(configuration, benchmark)
            beside = champion_reference(configuration) if with_champion else None
            said = edit_listed(configuration, listed, task, beside, shard=share, batch=batch, told=told)
        else:
            said = benchmark_with_champion(configuration, task, told=told)
    _send(configuration)
    print(json.dumps(said))


def _send(configuration: RunConfiguration) -> None:
    """Delivers what was recorded to MLflow; where that is away, the next delivery takes it along."""
    from kiwi.tracking import send
    from kiwi.tracking.server import TrackingUnavailable

    try:
        send(configuration)
    except TrackingUnavailable as error:
        print(f"not yet in MLflow: {error.message}; the next `kiwi bench run` or `kiwi run` sends it", file=sys.stderr)


@app.command()
def judge(
    workdir: Workdir = Path("runs/demo"),
    benchmark: Listed = "",
    judge: Annotated[str, typer.Option(help="measured or mllm; default: the run's own.")] = "",
    model: Annotated[str, typer.Option(help="mllm: the name under which the server serves it.")] = "",
    repeats: Annotated[int, typer.Option(min=0, help="mllm: judgements of each edit; 0: as configured.")] = 0,
    rubrics: Annotated[str, typer.Option(help="mllm: a folder of your own rubric texts.")] = "",
    as_json: AsJson = False,
) -> None:
    """Scores the edits on the six criteria. Another judge than the run's leaves the run's scores as they are."""
    from kiwi.cli.stored import stored_configuration

    stored = stored_configuration(workdir)
    configuration = _asked(stored, judge, model, repeats, rubrics)
    from kiwi.benchmark.judge import judge_again, judge_edits
    from kiwi.tracking import silent

    own = configuration.benchmark == stored.benchmark
    if benchmark or (stored.benchmark.listed and not own):
        from kiwi.benchmark.listed import load_listed
        from kiwi.benchmark.listed_scores import judge_listed

        listed = load_listed(configuration, benchmark or str(stored.benchmark.listed))
        scores, path = judge_listed(configuration, listed)
        print(f"written to {path}", file=sys.stderr)
    elif own:
        scores = judge_edits(configuration, silent())
    else:
        scores, path = judge_again(configuration, silent())
        print(f"written to {path}", file=sys.stderr)
    if as_json:
        print(json.dumps(scores))
    else:
        _print_scores(scores)


def _asked(stored: RunConfiguration, judge: str, model: str, repeats: int, rubrics: str) -> RunConfiguration:
    """The configuration with the judge that was asked for on the command line."""
    of_mllm = {"model": model or None, "passes": repeats or None, "prompt": rubrics or None}
    changed = {name: value for name, value in of_mllm.items() if value is not None}
    name = judge or stored.benchmark.judge
    if changed and name != "mllm":
        raise UsageError("--model, --repeats and --rubrics are of the judge mllm", "add --judge mllm")
    mllm = stored.benchmark.mllm.model_copy(update=changed)
    benchmark = stored.benchmark.model_copy(update={"judge": name, "mllm": mllm})
    return stored.model_copy(update={"benchmark": benchmark})


@app.command()
def table(
    scores: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]SCORES...", help="Work folders or scores files to set beside published rows."),
    ] = None,
    workdir: Workdir = Path("runs/demo"),
    published: Annotated[
        str, typer.Option(help="The published rows to set beside: refvie-bench, openve-bench, both, none.")
    ] = "",
    form: Annotated[Form, typer.Option("--format", help="How the table is written.")] = Form.TERMINAL,
    out: Annotated[Path | None, typer.Option(help="Write it to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """A run's scores beside a copy of the source, and beside the rows that the paper published."""
    from kiwi.benchmark.comparing import read_scores

    places = [_named(each) for each in scores] if scores else [(workdir.absolute().name, workdir.absolute())]
    read = [(name, read_scores(place)) for name, place in places]
    if as_json:
        said = [{"name": name, **each} for name, each in read]
        print(json.dumps(read[0][1] if len(said) == 1 else said))
        return
    plain = form is Form.TERMINAL and out is None
    if plain and published in ("", "none"):
        for _, each in read:
            _print_scores(each)
    if published == "none":
        return
    tables = _tables(published, read)
    if plain:
        for made in tables:
            _print_table(made)
        return
    _write("\n".join(_rendered(made, form) for made in tables), out)


def _named(said: str) -> tuple[str, Path]:
    name, equals, place = said.partition("=")
    return (name, Path(place)) if equals and name else (Path(said).absolute().name, Path(said))


def _tables(published: str, read: list[tuple[str, dict[str, Any]]]) -> list[ScoreTable]:
    from kiwi.benchmark.published import published_table, published_tables
    from kiwi.benchmark.tables import score_table

    names = list(published_tables()) if published in ("", "both") else [published]
    return [score_table(published_table(name), read) for name in names]


def _rendered(table: ScoreTable, form: Form) -> str:
    from rich.console import Console

    from kiwi.benchmark.tables import render

    if form is Form.TERMINAL:
        console = Console(width=180, record=True, quiet=True)
        _print_table(table, console)
        return console.export_text()
    return render(table, cast("Format", form.value))


def _write(text: str, out: Path | None) -> None:
    if out is None:
        print(text)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}", "name another file with --out") from error
    print(f"written to {out}", file=sys.stderr)


def _print_table(said: ScoreTable, console: Console | None = None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console(width=max(WIDTH, Console().width))
    title = escape(said.title)
    view = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    view.add_column(said.columns[0], min_width=18, overflow="fold")
    for title in said.columns[1:]:
        view.add_column(title.replace(" ", "\n"), justify="right", overflow="fold")
    for number, part in enumerate(said.parts):
        view.add_row(f"[bold]{chr(ord('a') + number)}[/]")
        for row in part.rows:
            view.add_row(*(escape(cell) for cell in row))
        view.add_section()
    console.print(view)
    for number, part in enumerate(said.parts):
        console.print(f"{chr(ord('a') + number)}: {escape(part.title)}", soft_wrap=True)
    for note in said.notes:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def _print_scores(scores: dict[str, Any]) -> None:
    """A run's criteria beside a copy's, with their intervals and what judging cost."""
    from rich.console import Console
    from rich.table import Table

    copy, sure = scores["baselines"].get("copy_source", {}), scores.get("intervals") or {}
    view = Table("criterion", "model", "95%", "copy of the source")
    for name, title in (("overall", "overall"), ("overall_sample_weighted", "overall, by samples")):
        end = name != "overall"
        view.add_row(title, _figure(scores[name]), _ends(sure.get(name)), _figure(copy.get(name)), end_section=end)
    for name, score in scores["criteria"].items():
        ends = _ends(sure.get("criteria", {}).get(name))
        view.add_row(name, _figure(score), ends, _figure(copy.get("criteria", {}).get(name)))
    console = Console(highlight=False)
    console.print(view)
    console.print(f"judge {scores['judge']}, {scores['samples']} samples, {scores['coverage']:.1%} of them judged")
    for reason, (number, each) in _failures(scores).items():
        console.print(
            f"no score: {number} {reason}, such as {each['model']} {each['id']}: {each['detail']}", markup=False
        )
    spent = scores.get("judging") or {}
    if spent:
        tokens = f"{spent['prompt_tokens']} tokens read, {spent['completion_tokens']} written"
        cost = f", cost {spent['cost']:g}" if "cost" in spent else ""
        console.print(f"{spent['requests']} requests, {spent['cached']} from the cache, {tokens}{cost}")


def _failures(scores: dict[str, Any]) -> dict[str, tuple[int, dict[str, str]]]:
    """By reason: how many edits have no score, and the first of them."""
    found: dict[str, tuple[int, dict[str, str]]] = {}
    for each in scores.get("failures") or []:
        number, first = found.get(each["reason"], (0, each))
        found[each["reason"]] = (number + 1, first)
    return found


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A work folder or a scores file.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same benchmark and judge.")],
    min_coverage: Annotated[
        float, typer.Option(min=0, max=1, help="Below this share of judged samples there is no verdict.")
    ] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Two models sample by sample: the second less the first, how sure that is, the chance that it is better."""
    from kiwi.benchmark.comparing import compare as compared
    from kiwi.benchmark.comparing import read_scores

    said = compared(read_scores(first), read_scores(second), min_coverage=min_coverage)
    if as_json:
        print(json.dumps(said))
        return
    from rich.console import Console
    from rich.table import Table

    from kiwi.reports.figures import chance

    view = Table("criterion", "second less first", "95%")
    view.add_row("overall", f"{said['difference']:+.3f}", _ends(said["interval"]), end_section=True)
    for name, each in said["criteria"].items():
        view.add_row(name, f"{each['difference']:+.3f}", _ends(each.get("interval")))
    console = Console(highlight=False)
    console.print(view)
    sure = "not known" if said["chance_better"] is None else chance(said["chance_better"])
    left_out = f", {said['left_out']} left out" if said["left_out"] else ""
    console.print(f"{said['samples']} samples{left_out}; the chance that the second is better: {sure}")
    verdicts = {"better": "The second is better.", "worse": "The second is worse.", "alike": "No difference is shown."}
    console.print(verdicts.get(said["verdict"], f"No verdict: {said['why']}."))


def _figure(score: float | None) -> str:
    return "–" if score is None else f"{score:.3f}"


def _ends(ends: list[float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
