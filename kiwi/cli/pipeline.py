"""`kiwi pipeline`: compile a pipeline for Kubeflow Pipelines, start it on a cluster, and list what runs there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kiwi.errors import UsageError

app = typer.Typer(help="Kubeflow Pipelines: compile, submit, runs.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="end_to_end, refvie, curriculum, evaluation or retrain.")]
Image = Annotated[str | None, typer.Option(envvar="KIWI_IMAGE", help="REPOSITORY@sha256:… or REPOSITORY:<git SHA>.")]
Host = Annotated[str | None, typer.Option(envvar="KIWI_KFP_HOST", help="The pipelines API's address.")]


@app.callback()
def pipeline() -> None:
    """Kubeflow Pipelines: compile, submit, runs."""


@app.command("compile")
def compile_(
    pipeline: Name = "end_to_end",
    out: Annotated[Path | None, typer.Option(help="The YAML file to write; default: kiwi-PIPELINE.yaml.")] = None,
    profile: Annotated[str, typer.Option(help="A profile's name or YAML file.")] = "local",
    image: Image = None,
    preset: Annotated[str | None, typer.Option(help="Whose stages are wired; default: the tiny one's.")] = None,
    stages: Annotated[str | None, typer.Option(help="Or the stages themselves, with commas between.")] = None,
) -> None:
    """Writes a pipeline as KFP YAML; the image reference is fixed here, never a moving tag."""
    from pipelines.compiling import check_pipeline, compile_pipeline

    name = check_pipeline(pipeline)
    out = out or Path(f"kiwi-{name.replace('_', '-')}.yaml")
    if out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--out {out} does not end in .yaml", "KFP reads pipelines from .yaml files")
    if preset and stages:
        raise UsageError("--preset and --stages both name stages", "give one of them")
    compile_pipeline(out, profile, image, name, stages.split(",") if stages else _stages_of(preset))
    print(out)


def _stages_of(preset: str | None) -> list[str]:
    if preset is None:
        return []
    from kiwi.presets import build

    configuration = build(preset, workspace=Path("/"), tracking_uri="")
    return [stage.name for stage in configuration.stages]


@app.command()
def submit(
    pipeline: Name,
    workdir: Annotated[Path, typer.Option(help="The work folder, as the pods see it on the profile's volume.")],
    tracking_uri: Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow, as the pods reach it.")],
    preset: Annotated[str, typer.Option(help="The configuration to start from.")] = "tiny",
    profile: Annotated[str, typer.Option(help="A cluster's profile: dev, prod, or a YAML file.")] = "dev",
    image: Image = None,
    host: Host = None,
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME=LOCATION", help="A published collection (`kiwi data sources`).")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="Your own pairs, as the pods see them.")] = None,
    store: Annotated[str | None, typer.Option(help="Where curation keeps its parts, such as s3://…")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, e.g. curation.min_score=5.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Compiles a pipeline for a profile and starts it on the cluster; prints the run's id."""
    from kiwi.cluster.api import Address, Cluster
    from kiwi.cluster.submitting import compiled
    from kiwi.cluster.submitting import submit as start
    from kiwi.presets import build
    from pipelines.compiling import check_pipeline
    from pipelines.placing import place_of

    name, address = check_pipeline(pipeline), Address.told(host)
    if not workdir.is_absolute():
        raise UsageError(
            f"--workdir {workdir} is not absolute", "name the folder as the pods see it, such as /work/demo"
        )
    configuration = build(
        preset,
        workspace=workdir,
        tracking_uri=tracking_uri,
        pairs=pairs,
        collections=source or (),
        store=store,
        seed=seed,
        overrides=override or [],
    )
    place = place_of(profile)
    spec = compiled(name, profile, image, configuration)
    run = start(Cluster(address, place.namespace), f"{name}-{workdir.name}", spec, place, configuration)
    print(json.dumps({"run_id": run, "namespace": place.namespace}) if as_json else run)


@app.command()
def runs(
    profile: Annotated[str, typer.Option(help="A cluster's profile: dev, prod, or a YAML file.")] = "dev",
    host: Host = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Newest runs.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Lists the newest runs on the cluster."""
    from kiwi.cluster.api import Address, Cluster
    from pipelines.placing import place_of

    found = Cluster(Address.told(host), place_of(profile).namespace).runs(limit)
    rows = [
        {
            "run_id": run.run_id,
            "name": run.display_name,
            "state": run.state or "PENDING",
            "created": run.created_at.isoformat() if run.created_at else None,
            "finished": run.finished_at.isoformat() if run.finished_at and run.finished_at.year > 1970 else None,
            "schedule": run.recurring_run_id or None,
        }
        for run in found
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['run_id']}  {row['state']:<10} {(row['created'] or '')[:19]:<19}  {row['name']}")
    if not rows:
        print("no runs yet")
