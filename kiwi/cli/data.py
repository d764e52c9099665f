"""`kiwi data`: build a dataset without training, look at its funnel and card, list, pull and verify versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi.errors import KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi.configuration import RunConfiguration

app = typer.Typer(help="Datasets: build, inspect, list, pull, verify.", no_args_is_help=True)

Workdir = Annotated[Path, typer.Option(help="The work folder of a run.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


@app.command()
def build(
    preset: Annotated[str, typer.Option()] = "tiny",
    pairs: Annotated[Path | None, typer.Option(help="A CSV of pairs, or a folder with pairs.csv.")] = None,
    workdir: Workdir = Path("runs/data"),
    seed: Annotated[int, typer.Option()] = 0,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    publish: Annotated[bool, typer.Option(help="Publish a version with DVC.")] = False,
    as_json: AsJson = False,
) -> None:
    """Curates pairs into a dataset in this process, without the pipeline."""
    from kiwi.cli.run import configure
    from kiwi.runs import claim, record_end

    configuration = configure(preset, pairs, workdir, seed, override or [], None, 2)
    with claim(configuration, "process") as attempt:
        try:
            result = build_dataset(configuration, publish)
        except BaseException:
            record_end(attempt.workspace, "failed")
            raise
        record_end(attempt.workspace, "finished")
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(f"{result['pairs']} pairs, {result['quadruplets']} quadruplets in {result['path']}")


def build_dataset(configuration: RunConfiguration, publish: bool) -> dict[str, Any]:
    """All of curation, one shard after the other; with `publish`, a DVC version of it."""
    from kiwi.curation.deduplicate import deduplicate
    from kiwi.curation.plan import plan_shards
    from kiwi.curation.stages import run_stage
    from kiwi.dataset.assemble import assemble
    from kiwi.dataset.schema import CURATION_STAGES
    from kiwi.lineage import publish_dataset
    from kiwi.tracking import silent

    task = silent()
    for shard in plan_shards(configuration, task):
        for stage in CURATION_STAGES[:-1]:
            run_stage(configuration, stage, shard, task)
    deduplicate(configuration, task)
    assembled = assemble(configuration, task)
    return {**assembled, **publish_dataset(configuration, Path(assembled["path"]), task)} if publish else assembled


@app.command()
def funnel(workdir: Workdir = Path("runs/demo"), as_json: AsJson = False) -> None:
    """Rows in, kept, rejected and failed at every stage, with reasons."""
    from kiwi.workspace import read_json

    books = read_json(Path(published_dataset(workdir)["path"]) / "manifest.json")["funnel"]
    if as_json:
        print(json.dumps(books))
        return
    from kiwi.curation.funnel import print_funnel

    print_funnel(books)


@app.command()
def card(workdir: Workdir = Path("runs/demo")) -> None:
    """The dataset card, as Markdown."""
    print((Path(published_dataset(workdir)["path"]) / "README.md").read_text())


@app.command("list")
def list_(workdir: Workdir = Path("runs/demo"), as_json: AsJson = False) -> None:
    """Published versions, oldest first."""
    from kiwi.lineage import list_versions
    from kiwi.workspace import Workspace

    versions = list_versions(Workspace(workdir.absolute()).repository)
    if as_json:
        print(json.dumps(versions))
        return
    for version in versions:
        print(
            f"{version['version']}  {version['revision'][:12]}  {version['bytes']:,} bytes in {version['files']} files"
        )


@app.command()
def pull(
    version: Annotated[str, typer.Argument(help="For example refvie/v1.")],
    out: Annotated[Path, typer.Option(help="An empty or new folder.")],
    repository: Annotated[Path, typer.Option(help="The data repository.")] = Path("runs/demo/data"),
) -> None:
    """Fetches a published version into a folder and verifies it."""
    from kiwi.lineage import pull as pull_version

    pull_version(repository, version, out)
    check_dataset(out)
    print(f"{version} is in {out}, verified")


@app.command()
def verify(dataset: Annotated[Path, typer.Argument(help="A dataset's folder.")]) -> None:
    """Checks schema, counts, hashes, and that every medium is there and can be decoded."""
    if not dataset.is_dir():
        raise UsageError(f"no dataset folder {dataset}", "name a folder with manifest.json, or `kiwi data pull` one")
    check_dataset(dataset)
    print(f"{dataset} is whole")


def check_dataset(folder: Path) -> None:
    """Raises KiwiError with the problems that verification found."""
    from kiwi.dataset.verify import verify_dataset

    problems = verify_dataset(folder).problems
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems[:10])
        raise KiwiError(f"{folder}: {len(problems)} problems{listed}", "pull it again: `kiwi data pull VERSION`")


@app.command()
def sources() -> None:
    """The sources that pairs can come from."""
    print("procedural  rendered clips with exact edits (the default)")
    print(
        "pairs       your own: --pairs CSV or folder; columns src_video, tgt_video, prompt[, id, edit_type, ref_image]"
    )


def published_dataset(workdir: Path) -> dict[str, Any]:
    """What the run in `workdir` published. Raises UsageError where it published nothing yet."""
    from kiwi.workspace import read_json

    path = workdir.absolute() / "dataset.json"
    if not path.exists():
        raise UsageError(f"no published dataset in {workdir}", "name a run's work folder with --workdir")
    found: dict[str, Any] = read_json(path)
    return found
