"""`kiwi model`: the registry: list, show, approve, promote, rollback, history, export; and convert."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from kiwi.errors import KiwiError, UsageError

app = typer.Typer(help="The model registry, and converting model folders.", no_args_is_help=True)

WORKDIR = Path("runs/demo")
Workdir = Annotated[Path, typer.Option(help="The run whose registry is meant.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


Name = Annotated[str | None, typer.Option("--model", help="The registered model; default: the run's.")]
Uri = Annotated[str | None, typer.Option("--tracking-uri", help="MLflow; default: the run's.")]
Reason = Annotated[str, typer.Option(help="A sentence for the history.")]


@app.command("list")
def list_(workdir: Workdir = WORKDIR, name: Name = None, uri: Uri = None, as_json: AsJson = False) -> None:
    """All versions with their aliases and scores, newest first."""
    from kiwi.registry import check_registered, list_versions

    where = registered(workdir, name, uri)
    found = list_versions(*where)
    if not found and name:
        check_registered(*where)
    rows = []
    for version in found:
        scores = version.scores or {}
        rows.append(
            {
                "name": version.name,
                "version": version.version,
                "aliases": list(version.aliases),
                "overall": scores.get("overall"),
                "dataset": version.tags.get("dataset.version", ""),
                "registered": datetime.fromtimestamp(version.created).isoformat(" ", "seconds"),
            }
        )
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
    elif rows:
        from kiwi.cli.registered import print_versions

        print_versions(where[1], rows)
    else:
        print(f"{where[1]} has no version yet")


@app.command()
def show(
    version: Annotated[str, typer.Argument(help="A version or an alias.")] = "champion",
    workdir: Workdir = WORKDIR,
    name: Name = None,
    uri: Uri = None,
    as_json: AsJson = False,
) -> None:
    """One version: where it came from, what it scored, what the gate said."""
    from kiwi.registry import show as show_version

    found = show_version(*registered(workdir, name, uri), version)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1, ensure_ascii=False))
        return
    from kiwi.cli.registered import print_version

    print_version(found)


@app.command()
def promote(
    version: Annotated[str, typer.Argument(help="The version or alias to promote.")] = "challenger",
    reason: Reason = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also what the gate held back or was rolled back; approvals still count.")
    ] = False,
    workdir: Workdir = WORKDIR,
    name: Name = None,
    uri: Uri = None,
) -> None:
    """Makes a version the champion; the former one becomes `previous`. Sends an alert where KIWI_ALERT_URL is set."""
    from kiwi.registry import promote as promote_version

    where = registered(workdir, name, uri)
    with _announced(where):
        changed = promote_version(*where, version, why=reason, force=force)
        print(f"{changed.name}: champion is version {changed.version}", flush=True)


@app.command()
def rollback(reason: Reason = "", workdir: Workdir = WORKDIR, name: Name = None, uri: Uri = None) -> None:
    """Makes the previous champion the champion again. Sends an alert where KIWI_ALERT_URL is set."""
    from kiwi.registry import rollback as roll_back

    where = registered(workdir, name, uri)
    with _announced(where):
        changed = roll_back(*where, why=reason)
        print(f"{changed.name}: champion is version {changed.version}", flush=True)


@contextmanager
def _announced(where: tuple[str, str]) -> Iterator[None]:
    """Sends the alerts of what is done here and entered in the history; a promotion that changed nothing has none."""
    if not os.environ.get("KIWI_ALERT_URL", "").strip():
        yield
        return
    from kiwi.operations import announce_change
    from kiwi.registry import default_who, show
    from kiwi.registry import history as read_history

    known = {entry.id for entry in read_history(*where)}
    yield
    try:
        for entry in read_history(*where):
            if entry.id not in known and entry.action in ("promote", "rollback") and entry.who == default_who():
                announce_change(entry, (show(*where, entry.version).scores or {}).get("overall"), where[0])
    except KiwiError as error:  # the champion is changed already
        print(f"kiwi: the alert was not sent: {error.message}", file=sys.stderr)


@app.command()
def approve(
    version: Annotated[str, typer.Argument(help="The version or alias to approve.")],
    person: Annotated[str, typer.Option("--as", help="Who approves.")],
    reason: Reason = "",
    workdir: Workdir = WORKDIR,
    name: Name = None,
    uri: Uri = None,
) -> None:
    """Enters somebody's approval of a version's files; promotion waits for as many as gate.approvals asks for."""
    from kiwi.registry import approve as approve_version
    from kiwi.registry import show as show_version

    where = registered(workdir, name, uri)
    number = show_version(*where, version).version
    names, required = approve_version(*where, number, who=person, why=reason)
    asked = f"{len(names)} of {required} approvals" if required else f"{len(names)} approved, none is asked for"
    print(f"{where[1]} version {number}: {asked} ({', '.join(names)})")


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The folder to write; not there yet, or empty.")],
    version: Annotated[str, typer.Argument(help="A version or an alias.")] = "champion",
    workdir: Workdir = WORKDIR,
    name: Name = None,
    uri: Uri = None,
    as_json: AsJson = False,
) -> None:
    """Writes a version as a folder for serving: the model, its card, scores, decision, provenance and hashes."""
    from kiwi.registry import export_model

    done = export_model(*registered(workdir, name, uri), version, out=out)
    if as_json:
        print(json.dumps(done.as_dict(), ensure_ascii=False))
        return
    print(f"{done.folder}: {done.name} version {done.version}, {done.files} files, {done.bytes / 1e6:.1f} MB, checked")
    for record in done.missing:
        print(f"  without {record}: the version's run does not keep it", file=sys.stderr)


@app.command()
def history(workdir: Workdir = WORKDIR, name: Name = None, uri: Uri = None, as_json: AsJson = False) -> None:
    """Who decided, approved or moved an alias, when, why, from what to what; oldest first."""
    from kiwi.registry import check_registered
    from kiwi.registry import history as read_history

    where = registered(workdir, name, uri)
    entries = read_history(*where)
    if not entries and name:
        check_registered(*where)
    if as_json:
        print(json.dumps([entry.as_dict() for entry in entries], ensure_ascii=False))
        return
    from kiwi.cli.registered import print_history

    print_history(entries)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A training checkpoint, a diffusers repository, or a kiwi folder.")],
    destination: Annotated[Path, typer.Argument(help="What to write; it must not be there yet.")],
    to: Annotated[str | None, typer.Option(help="kiwi, training or diffusers. Default: kiwi from the others.")] = None,
    mllm: Annotated[Path | None, typer.Option(help="A folder of Qwen2.5-VL with its tokenizer.")] = None,
    vae: Annotated[
        Path | None, typer.Option(help="A folder of the stock AutoencoderKLWan; to diffusers: the authors' vae/.")
    ] = None,
    transformer: Annotated[
        Path | None, typer.Option(help="A folder of the stock transformer, for what a checkpoint lacks.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="A kiwi folder, for every part that a checkpoint lacks.")] = None,
    reference_first: Annotated[
        bool, typer.Option("--reference-first", help="The checkpoint has reference frames before the video.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Converts the authors' checkpoints and repositories into a model folder of ours, and back.

    What is unknown, missing or mis-shaped is listed and refused; nothing is overwritten.
    """
    from kiwi.model.additions import Additions
    from kiwi.model.conversion import convert as convert_model

    additions = Additions(mllm, vae, transformer, start, reference_first)
    done = convert_model(source, destination, _format(to), additions)
    if as_json:
        print(json.dumps(done.as_dict(), ensure_ascii=False))
        return
    print(f"{done.destination}: {done.tensors} tensors, {done.source_format} -> {done.destination_format}")
    for note in done.notes:
        print(f"  {note}", file=sys.stderr)


def _format(name: str | None) -> Literal["kiwi", "training", "diffusers"] | None:
    if name is None or name in ("kiwi", "training", "diffusers"):
        return cast('Literal["kiwi", "training", "diffusers"] | None', name)
    raise UsageError(f"no model format {name!r}", "--to kiwi, training or diffusers")


def registered(workdir: Path, name: str | None, uri: str | None) -> tuple[str, str]:
    """(MLflow's address, the model's name): as given, and for the rest those of the run in `workdir`."""
    if uri:
        _check_there(uri)
    if name and uri:
        return uri, name
    from kiwi.cli.stored import stored_configuration
    from kiwi.tracking import tracking_uri

    configuration = stored_configuration(workdir)
    return uri or tracking_uri(configuration), name or configuration.model_name


def _check_there(uri: str) -> None:
    """Raises UsageError for a database file that is not there: asking MLflow would make an empty one."""
    from kiwi.tracking.server import database_path

    path = database_path(uri)
    if path is not None and not path.exists():
        raise UsageError(f"there is no registry at {path}", "give MLflow's own address with --tracking-uri")
