"""`kiwi bench prefer`: people compare edits in the browser; their votes become win rates and scores."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kiwi.errors import KiwiError, UsageError

if TYPE_CHECKING:
    import socket

    from kiwi.benchmark.preference.assigning import Aim
    from kiwi.benchmark.preference.edit_sets import EditSet
    from kiwi.benchmark.preference.preparing import Plan
    from kiwi.benchmark.preference.server import Access, Desk
    from kiwi.benchmark.preference.study import Study

DEFAULT_PORT = 8765


def prefer(
    edits: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]EDITS[@MODEL]...",
            help="Two sets of edits or more: a run's work folder (MODEL: a stage, or champion) or a folder with "
            "edits.csv. Left out: the study that is there.",
        ),
    ] = None,
    study: Annotated[Path, typer.Option(help="The folder that holds the study.")] = Path("runs/preference"),
    votes: Annotated[
        str,
        typer.Option(envvar="KIWI_PREFERENCE_VOTES", help="A SQLite file or postgresql://…; default: in the study."),
    ] = "",
    host: Annotated[str, typer.Option(help="Where to listen; beyond loopback others can come in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = DEFAULT_PORT,
    token: Annotated[
        str | None, typer.Option(envvar="KIWI_PREFERENCE_TOKEN", help="What links hold; made where none is given.")
    ] = None,
    public_url: Annotated[str, typer.Option(help="The address raters use, where a proxy is in front.")] = "",
    raters: Annotated[
        str, typer.Option(help="How many may join, or their names: anna,ben gives each their own link.")
    ] = "2",
    overlap: Annotated[int, typer.Option(min=0, help="Raters who see each comparison; 0: two, or the only one.")] = 0,
    samples: Annotated[int, typer.Option(min=0, help="At most so many samples, spread over kinds; 0: all.")] = 0,
    attention_share: Annotated[float, typer.Option(help="Share of attention checks, 0 to 0.5.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Draws the samples.")] = 0,
    results: Annotated[bool, typer.Option("--results", help="Show the results instead of serving.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write all votes to FILE.csv, .jsonl or .parquet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """People compare edits blind, side by side, in the browser; --results scores their votes."""
    if results or export is not None:
        if edits:
            raise UsageError("--results and --export take no edits", "name the study's folder with --study")
        _show(study, votes, export, as_json)
        return
    from kiwi.benchmark.preference.assigning import Aim
    from kiwi.benchmark.preference.preparing import Plan

    names, number = _raters(raters)
    if overlap > number:
        raise UsageError(f"{overlap} of {number} raters cannot see each comparison", "raise --raters")
    access = _access(host, public_url, names)
    plan = Plan(samples, attention_share, seed)
    with _listen(host, port) as listening:
        _serve(
            study, edits or [], plan, votes, token, Aim(number, overlap or min(2, number)), access, listening, as_json
        )


def _raters(said: str) -> tuple[tuple[str, ...], int]:
    """(names, number) of `--raters`: a number, or names. Raises UsageError for neither."""
    from kiwi.benchmark.preference.server import RATER_NAME

    if said.strip().isdigit():
        number = int(said)
        if not 1 <= number <= 10_000:
            raise UsageError(f"{number} raters", "give 1 or more")
        return (), number
    names = tuple(" ".join(name.split()) for name in said.split(","))
    for name in names:
        if not RATER_NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a rater", "names are letters, digits, spaces, dots and hyphens")
    if len({name.casefold() for name in names}) < len(names):
        raise UsageError(f"a rater is named twice: {said}", "give each rater one name")
    return names, len(names)


def _access(host: str, public_url: str, names: tuple[str, ...]) -> Access:
    """Who may come in: by loopback names alone, unless `host` or `public_url` say otherwise."""
    from urllib.parse import urlsplit

    from kiwi.benchmark.preference.server import LOOPBACK, Access

    if public_url:
        parts = urlsplit(public_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise UsageError(f"{public_url!r} is no address of a site", "give https://name, without a path")
        hosts = LOOPBACK | {parts.hostname} if host in LOOPBACK else None
        return Access(hosts, parts.netloc, parts.scheme == "https", names)
    return Access(LOOPBACK if host in LOOPBACK else None, named=names)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UsageError where the address cannot be had."""
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # a link may be opened before the server has started
    except OSError as error:
        remedy = "choose another --port (0: any free one), or stop what listens there"
        raise UsageError(f"cannot listen on {host}, port {port}: {error.strerror or error}", remedy) from error
    return listening


def _serve(
    folder: Path,
    edits: list[str],
    plan: Plan,
    votes: str,
    token: str | None,
    aim: Aim,
    access: Access,
    listening: socket.socket,
    as_json: bool,
) -> None:
    """Opens the study, prints the links, and serves until it is interrupted."""
    from kiwi.benchmark.preference.edit_sets import read_edit_set
    from kiwi.benchmark.preference.server import Desk, serve
    from kiwi.benchmark.preference.signing import signer_of
    from kiwi.benchmark.preference.study import load_study
    from kiwi.benchmark.preference.votes import VoteStore
    from kiwi.workspace import write_json

    sets = [read_edit_set(each) for each in edits]
    found = _prepared(folder, sets, plan) if sets else load_study(folder)
    signer = signer_of(folder, token)
    store = VoteStore(votes or str(folder / "votes.db"), found.study_id)
    kept = store.name if votes else ""  # "": in the study itself, wherever its folder is moved to
    write_json(folder / "settings.json", {"raters": aim.raters, "overlap": aim.overlap, "votes": kept})
    desk = Desk(found, folder, store, signer, aim, access)
    site = _site(access, listening)
    links = {name: f"{site}/join?rater={desk.link_key(store.invite(name))}" for name in access.named}
    _announce(desk, site, links, as_json)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # how one stops it
            serve(desk, listening)
    finally:
        store.close()
    print(f"stopped; the votes are in {store.name}", file=sys.stderr)


def _prepared(folder: Path, sets: list[EditSet], plan: Plan) -> Study:
    """The study of these sets, and how far its clips are."""
    from kiwi.benchmark.preference.preparing import open_study
    from kiwi.cli.editing_progress import progress_of

    if not (folder / "study.json").is_file():
        print(f"preparing clips of {' and '.join(each.name for each in sets)} in {folder}", file=sys.stderr, flush=True)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with progress_of("clips") as progress:
        return open_study(folder, sets, plan, threads=threads, progress=progress)


def _site(access: Access, listening: socket.socket) -> str:
    import socket

    if access.public:
        return f"{'https' if access.secure else 'http'}://{access.public}"
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # nosec B104 - compared with, not bound to
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _announce(desk: Desk, site: str, links: dict[str, str], as_json: bool) -> None:
    """The links: as one line of JSON on stdout, or for people on stderr."""
    study, aim = desk.study, desk.aim
    link = None if links else f"{site}/join?token={desk.signer.token}"
    if as_json:
        print(json.dumps({"study": study.study_id, "url": link, "raters": links, "votes": desk.store.name}), flush=True)
        return
    lines = [
        f"{len(study.samples)} samples, {' against '.join(study.sets)}: {len(study.comparisons)} comparisons, "
        f"each seen by {aim.overlap} of {aim.raters} raters",
        *(f"left out: {each['id']}, {each['reason']}" for each in study.excluded),
        *([f"for all raters   {link}"] if link else [f"for {name:<12} {each}" for name, each in links.items()]),
        f"votes go to {desk.store.name}; Ctrl-C stops, the same command goes on",
    ]
    if desk.access.hosts is None and not desk.access.secure:
        lines.append(
            "links and votes cross the network unencrypted: put a TLS proxy in front (--public-url) beyond your own"
        )
    print("\n".join(lines), file=sys.stderr, flush=True)


def _show(folder: Path, votes: str, export: Path | None, as_json: bool) -> None:
    """Scores the votes; writes them out where asked."""
    from kiwi.benchmark.preference.exporting import export_votes
    from kiwi.benchmark.preference.results import results
    from kiwi.benchmark.preference.study import load_study
    from kiwi.benchmark.preference.votes import VoteStore
    from kiwi.workspace import read_json

    found = load_study(folder)
    path = folder / "settings.json"
    if not path.is_file():
        raise KiwiError(f"the study in {folder} was never opened to raters", f"kiwi bench prefer --study {folder}")
    settings = read_json(path)
    store = VoteStore(votes or _kept_at(folder, settings["votes"]), found.study_id, new=False)
    try:
        given, undone = store.votes(), store.undone()
    finally:
        store.close()
    if export is not None:
        number = export_votes(found, given, export)
        print(f"{number} votes written to {export}", file=sys.stderr)
    said = results(found, given, overlap=settings["overlap"], undone=undone)
    if as_json:
        print(json.dumps(said))
    else:
        from kiwi.cli.preferred import print_results

        print_results(said)


def _kept_at(folder: Path, name: str) -> str:
    """Where the votes were kept last. Raises UsageError where a password is needed that is not kept."""
    if ":***@" in name:
        raise UsageError(f"the votes are in {name}", "give the address with --votes or KIWI_PREFERENCE_VOTES")
    return name or str(folder / "votes.db")
