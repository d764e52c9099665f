"""`kiwi data`: build a dataset without training, look at its funnel and card, list, pull and verify versions."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi.errors import KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi.configuration import RunConfiguration
    from kiwi.dataset.verify import Verification
    from kiwi.runs import Attempt

app = typer.Typer(help="Datasets: build, inspect, list, pull, verify.", no_args_is_help=True)

Workdir = Annotated[Path, typer.Option(help="The work folder of a run.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
DatasetFolder = Annotated[Path | None, typer.Option(help="A dataset's folder, instead of a run's work folder.")]


@app.command()
def build(
    preset: Annotated[str, typer.Option()] = "tiny",
    pairs: Annotated[Path | None, typer.Option(help="A CSV of pairs, or a folder with pairs.csv.")] = None,
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME=LOCATION", help="A published collection; may be given again.")
    ] = None,
    workdir: Workdir = Path("runs/data"),
    store: Annotated[
        str | None, typer.Option(help="Where the parts of curation are kept: a folder or s3://BUCKET/PREFIX.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each takes one shard at a time.")] = 1,
    seed: Annotated[int, typer.Option()] = 0,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    publish: Annotated[bool, typer.Option(help="Publish a version with DVC.")] = False,
    as_json: AsJson = False,
) -> None:
    """Curates pairs into a dataset, without the pipeline. Run again, it goes on where it was, and makes anew only
    what changed settings ask for."""
    from kiwi.cli.run import configure
    from kiwi.runs import DATASETS, claim, record_end

    configuration = configure(
        preset, pairs, workdir, seed, override or [], None, 2, collections=source or (), store=store
    )
    with claim(configuration, DATASETS) as attempt:
        try:
            with watched(attempt):
                result = build_and_publish(configuration, workers, publish)
        except KeyboardInterrupt:
            record_end(attempt.workspace, "interrupted")
            print("Stopped. The same command goes on with what was finished.", file=sys.stderr, flush=True)
            raise typer.Exit(130) from None
        except BaseException:
            record_end(attempt.workspace, "failed")
            raise
        record_end(attempt.workspace, "finished")
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(f"{result['pairs']} pairs, {result['quadruplets']} quadruplets in {result['path']}")


def build_and_publish(configuration: RunConfiguration, workers: int, publish: bool) -> dict[str, Any]:
    """All of curation; with `publish`, a DVC version of it."""
    from kiwi.curation.build import build_dataset
    from kiwi.lineage import publish_dataset
    from kiwi.tracking import task_run

    assembled = build_dataset(configuration, workers)
    if not publish:
        return assembled
    with task_run(configuration, "publish_dataset") as task:
        return {**assembled, **publish_dataset(configuration, Path(assembled["path"]), task)}


@contextmanager
def watched(attempt: Attempt) -> Iterator[None]:
    """Shows the tasks of curation on stderr while they run: rows, rate, time left, and what was kept so far."""
    from kiwi.cli.live import watch

    os.environ["KIWI_RUN_ID"] = attempt.id
    over = threading.Event()
    root, configuration = attempt.workspace.root, attempt.configuration
    viewer = threading.Thread(target=lambda: watch(root, attempt.id, configuration, over.is_set, curation=True))
    viewer.start()
    try:
        yield
    finally:
        over.set()
        viewer.join()


@app.command()
def funnel(
    workdir: Workdir = Path("runs/demo"),
    dataset: DatasetFolder = None,
    asked: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="BOUND", help="Cut again: score.overall=8, score.sharpness>=0.5, … Repeatable."),
    ] = None,
    by: Annotated[str, typer.Option(help="Also by source_dataset, task, license, edit_type or media.")] = "",
    as_json: AsJson = False,
) -> None:
    """Rows in, kept, rejected and failed at every stage, with reasons; --set cuts the stored scores elsewhere."""
    from kiwi.curation import recut, stored
    from kiwi.curation.recut_table import print_recut

    try:
        rows = stored.stored_dataset(dataset) if dataset else stored.stored_workdir(workdir.absolute())
    except UsageError:
        books = [] if dataset or asked or by else stored.books_of_workdir(workdir.absolute())
        if not books:
            raise
        show_books(books, as_json)
        return
    cut = recut.cut_of(rows, asked or [])
    found = recut.recut(rows, cut, by)
    if as_json:
        plain = not asked and not by
        books = [{key: value for key, value in entry.items() if key != "unmeasured"} for entry in found[""].before]
        print(json.dumps(books if plain else recut.said(found, rows, cut, by), ensure_ascii=False))
    else:
        print_recut(found, cut, by)


def show_books(books: list[dict[str, Any]], as_json: bool) -> None:
    """The funnel of a run that is under way."""
    from kiwi.curation.funnel import print_funnel

    if as_json:
        print(json.dumps(books, ensure_ascii=False))
        return
    print_funnel(books)
    print("curation is under way: these are the stages and shards that are finished", file=sys.stderr)


@app.command()
def card(
    workdir: Workdir = Path("runs/demo"),
    dataset: DatasetFolder = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page with pictures there.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Write the page, and show it in a browser.")] = False,
) -> None:
    """The dataset card: as Markdown, or with --html or --open as a page that plays samples."""
    from kiwi.curation.stored import dataset_in
    from kiwi.dataset.card import dataset_card
    from kiwi.dataset.manifest import read_manifest

    folder = dataset or dataset_in(workdir.absolute())
    if folder is None:
        raise UsageError(f"no dataset in {workdir}", "name a run's work folder with --workdir, or one with --dataset")
    if html is None and not open_:
        print(dataset_card(read_manifest(folder)), end="")
        return
    from kiwi.reports.dataset_page import write_dataset_card

    named = (workdir / "dataset.json").is_file() and not dataset
    version = str(published_dataset(workdir)["version"]) if named else ""
    page = write_dataset_card(folder, html or _temporary("dataset.html"), version)
    print(page)
    if open_ and not webbrowser.open(page.absolute().as_uri()):
        raise KiwiError(f"no browser opened {page}", "open the file yourself, or write it elsewhere with --html")


def _temporary(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix="kiwi-card-")) / name


@app.command("list")
def list_(workdir: Workdir = Path("runs/demo"), as_json: AsJson = False) -> None:
    """Published versions, oldest first."""
    from kiwi.lineage import list_versions
    from kiwi.workspace import Workspace

    versions = list_versions(Workspace(workdir.absolute()).repository)
    if as_json:
        print(json.dumps(versions))
        return
    if not versions:
        print(f"no version was published in {workdir} (kiwi data build --publish)", file=sys.stderr)
    for version in versions:
        print(
            f"{version['version']}  {version['revision'][:12]}  {version['bytes']:,} bytes in {version['files']} files"
        )


@app.command()
def diff(
    one: Annotated[str, typer.Argument(help="For example v1, or a commit.")],
    two: Annotated[str, typer.Argument(help="For example v2, or latest.")],
    repository: Annotated[Path, typer.Option(help="The data repository.")] = Path("runs/demo/data"),
    limit: Annotated[int, typer.Option(min=0, help="Rows of each kind that are shown; all are counted.")] = 20,
    as_json: AsJson = False,
) -> None:
    """What changed between two versions: rows in and out, verdicts, scores. Fetches no media."""
    from kiwi.lineage import diff_versions, print_differences

    found = diff_versions(repository, one, two, limit)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print_differences(found)


@app.command()
def pull(
    version: Annotated[str, typer.Argument(help="For example refvie/v1.")],
    out: Annotated[Path, typer.Option(help="An empty or new folder.")],
    repository: Annotated[Path, typer.Option(help="The data repository.")] = Path("runs/demo/data"),
    rows_only: Annotated[bool, typer.Option("--rows-only", help="All but the media.")] = False,
) -> None:
    """Fetches a published version into a folder and verifies it; one that was cut off goes on where it was."""
    from kiwi.lineage import pull as pull_version

    pull_version(repository, version, out, rows_only)
    if rows_only:
        print(f"{version} without its media is in {out}, each file as it was published")
        return
    check_dataset(out)
    print(f"{version} is in {out}, verified")


@app.command()
def verify(
    dataset: Annotated[Path, typer.Argument(help="A dataset's folder.")],
    quick: Annotated[bool, typer.Option(help="Sizes instead of hashes, and only 32 rows' media decoded.")] = False,
    as_json: AsJson = False,
) -> None:
    """Checks schema, counts, hashes, references, repetitions, and that every medium is there and can be decoded."""
    if not dataset.is_dir():
        raise UsageError(f"no dataset folder {dataset}", "name a folder with manifest.json, or `kiwi data pull` one")
    found = verified(dataset, quick)
    if as_json:
        print(json.dumps(found.said(), ensure_ascii=False))
        if not found.passed:
            raise typer.Exit(1)
        return
    if not found.passed:
        raise KiwiError(f"{dataset}: {_problems(found)}", "pull it again: `kiwi data pull VERSION`, or build it anew")
    checked = ", ".join(f"{count:,} {what}" for what, count in found.checked.items())
    print(f"{dataset} is whole ({checked})" + "".join(f"\n  not checked: {what}" for what in found.unchecked))


def verified(folder: Path, quick: bool = False) -> Verification:
    """Verifies a dataset's folder, showing how far it is."""
    from rich.console import Console
    from rich.progress import Progress

    from kiwi.curation.repeats import repeats_of
    from kiwi.dataset.manifest import ManifestError, read_manifest
    from kiwi.dataset.verify import QUICK, verify_dataset

    try:
        repeats = "a quick look compares nothing" if quick else repeats_of(read_manifest(folder))
    except ManifestError as error:
        repeats = error.message
    with Progress(console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task("media", total=None)
        return verify_dataset(
            folder,
            decode_media=QUICK if quick else None,
            hashes=not quick,
            repeats=repeats,
            progress=lambda done, total: shown.update(bar, completed=done, total=total),
        )


def _problems(found: Verification) -> str:
    listed = "".join(f"\n  {problem}" for problem in found.problems)
    return f"{len(found.problems)} problem{'s' if len(found.problems) != 1 else ''}{listed}"


def check_dataset(folder: Path) -> None:
    """Raises KiwiError with the problems that verification found."""
    found = verified(folder)
    if not found.passed:
        raise KiwiError(f"{folder}: {_problems(found)}", "pull it again: `kiwi data pull VERSION`")


@app.command()
def sources(
    name: Annotated[str | None, typer.Argument(help="An adapter.")] = None,
    location: Annotated[str | None, typer.Argument(help="The folder or s3:// address of its collection.")] = None,
    check: Annotated[int, typer.Option(min=0, help="Pairs whose media are opened, spread over the listing.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The sources that pairs can come from or, with NAME and LOCATION, what is there."""
    from kiwi.cli.sources import print_adapters, print_survey

    if name is None:
        print_adapters(as_json)
    elif location is None:
        raise UsageError(f"no location given for {name!r}", "kiwi data sources NAME LOCATION")
    else:
        print_survey(name, location, check, as_json)


def published_dataset(workdir: Path) -> dict[str, Any]:
    """What the run in `workdir` published or, of a build that published nothing, where its dataset is.

    Raises UsageError where there is neither.
    """
    from kiwi.workspace import read_json

    path, configured = workdir.absolute() / "dataset.json", workdir.absolute() / "configuration.json"
    if path.exists():
        found: dict[str, Any] = read_json(path)
        return found
    if configured.exists():
        from kiwi.configuration import RunConfiguration
        from kiwi.curation.finished import dataset_folder

        folder = dataset_folder(RunConfiguration.parse(configured.read_text()))
        if folder.is_dir():
            return {"path": str(folder)}
    raise UsageError(f"no dataset in {workdir}", "name a run's work folder with --workdir")
