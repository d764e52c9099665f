"""`kiwi run`: the end-to-end pipeline on this machine, watched from the terminal."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kiwi.errors import KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi.configuration import RunConfiguration
    from kiwi.runs import Attempt

BACKENDS = ("local", "docker", "kfp")
GRACE_SECONDS = 5.0
DRAWING_SECONDS = 20.0
REFRESH_SECONDS = 0.25


def run(
    preset: Annotated[str, typer.Option(help="The configuration to start from.")] = "tiny",
    pairs: Annotated[Path | None, typer.Option(help="Your own pairs: a CSV, or a folder with pairs.csv.")] = None,
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME=LOCATION", help="A published collection (`kiwi data sources`).")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="local: subprocesses; docker: containers here; kfp: a cluster.")
    ] = "local",
    workdir: Annotated[Path, typer.Option(help="The run's work folder; a second run there resumes.")] = Path(
        "runs/demo"
    ),
    summary: Annotated[Path | None, typer.Option(help="Where to write the summary as JSON.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, e.g. curation.min_score=5.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow; default: SQLite beside the work folder.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of one task.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    profile: Annotated[str, typer.Option(help="With kfp: a cluster's profile: dev, prod, or a YAML file.")] = "dev",
) -> None:
    """Pairs in, a dataset version, a trained and judged model, and a report to look at."""
    from kiwi.cluster.prerequisites import check
    from kiwi.runs import check_writable, claim

    check_backend(backend)
    here = backend != "kfp"
    if not here and not (workdir.is_absolute() and tracking_uri):
        said = "a cluster's pods see neither this folder nor its tracking database"
        raise UsageError(said, "give --workdir /work/NAME and --tracking-uri http://… as the pods see them")
    configuration = configure(
        preset, pairs, workdir, seed, override or [], tracking_uri, threads, collections=source or (), here=here
    )
    if not here:
        from kiwi.cli.following import run_on_cluster

        return run_on_cluster(configuration, profile, summary, as_json)
    check_summary(summary)
    check_writable(configuration.workdir)
    check(configuration)
    image = _image(backend)
    try:
        with _stopped_by_signals(), claim(configuration, backend) as attempt:
            conduct(attempt, summary, as_json, image)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def check_backend(backend: str) -> None:
    """Raises UsageError for a backend that there is not."""
    if backend not in BACKENDS:
        raise UsageError(f"no backend {backend!r}", f"backends: {', '.join(BACKENDS)}")


def _image(backend: str) -> str | None:
    """The image that tasks run in, looked for before anything starts; None for subprocesses."""
    if backend != "docker":
        return None
    from pipelines.containers import available_image

    image: str = available_image()
    return image


def configure(
    preset: str,
    pairs: Path | None,
    workdir: Path,
    seed: int,
    overrides: list[str],
    tracking_uri: str | None,
    threads: int,
    *,
    collections: Sequence[str] = (),
    store: str | None = None,
    here: bool = True,
) -> RunConfiguration:
    """The run's configuration; the source is looked at, so that a bad list is refused before anything starts. Where
    it lies on a cluster, not `here`, the first task looks."""
    from kiwi.presets import build

    root = workdir.absolute()
    database = f"sqlite:///{root.parent / 'tracking' / 'mlflow.db'}"
    configuration = build(
        preset,
        workspace=root,
        tracking_uri=tracking_uri or database,
        pairs=pairs.absolute() if pairs else None,
        collections=collections,
        store=store,
        seed=seed,
        threads=threads,
        overrides=overrides,
    )
    if here:
        from kiwi.sources.listing import check_source

        check_source(configuration.source)
    return configuration


def check_summary(summary: Path | None) -> None:
    """Raises UsageError where the summary could not be written after hours of work."""
    if summary is None:
        return
    if summary.is_dir():
        raise UsageError(f"--summary {summary} is a folder", "name a file")
    parent = next(folder for folder in [*summary.absolute().parents] if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"--summary {summary} cannot be written", f"{parent} is not a folder that you can write to")


def conduct(attempt: Attempt, summary: Path | None, as_json: bool, image: str | None = None) -> None:
    """Starts the pipeline's process, watches it to its end, and says how it ended. With an image, tasks are
    containers."""
    from kiwi.cli.live import watch
    from kiwi.runs import record_end

    workspace = attempt.workspace
    _greet(attempt)
    _remove_containers(workspace.root, image)
    process, stopped = _start(attempt, image), False
    try:
        watch(workspace.root, attempt.id, attempt.configuration, lambda: process.poll() is not None)
    except KeyboardInterrupt:
        stopped = True
        record_end(workspace, "interrupted")
    finally:
        _end_group(process)
        _remove_containers(workspace.root, image)
        shutil.rmtree(workspace.root / "tmp", ignore_errors=True)
        shutil.rmtree(workspace.root / "kfp", ignore_errors=True)
    if stopped:
        _stop(attempt, summary)
    if process.returncode != 0:
        record_end(workspace, "failed")
        raise failure(attempt)
    record_end(workspace, "finished")
    _finish(attempt, summary, as_json)


def failure(attempt: Attempt) -> KiwiError:
    """What failed and why, from the records; from the log where no task got as far as a record."""
    from kiwi.tracking import read_records

    log = log_file(attempt)
    records = read_records(attempt.workspace.root, attempt.id)
    broken = [record for record in records if record.status in ("failed", "killed")]
    report = attempt.workspace.report
    seen = f"; what there is so far: {report}" if report.exists() else ""
    remedy = f"log: {log}{seen}\n  run the same command again when the cause is removed: finished work is kept"
    if not broken:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        cause = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no output")
        return KiwiError(f"the pipeline failed: {cause}", remedy)
    first = min(broken, key=lambda record: record.finished or time.time())
    why = first.error or ("its process was killed (out of memory?)" if first.status == "killed" else "unknown")
    return KiwiError(f"{first.label} failed: {_whole_message(log, why)}", remedy)


def _whole_message(log: Path, first_line: str) -> str:
    """The error as the task's traceback shows it: a funnel and a remedy may follow its first line."""
    kind, _, text = first_line.partition(": ")
    lines = log.read_text(errors="replace").splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if text and lines[index].endswith(text) and f"{kind}: " in lines[index]:
            rest = []
            indent = " " * (len(lines[index]) - len(lines[index].lstrip()))  # KFP's, of whatever depth
            for line in lines[index + 1 :]:
                if not line.strip() or "finished with status" in line:
                    break
                rest.append(line.removeprefix(indent))
            return "\n".join([text, *rest])
    return text or first_line


def log_file(attempt: Attempt) -> Path:
    return attempt.workspace.root / "logs" / "kfp.log"


def _greet(attempt: Attempt) -> None:
    root = attempt.workspace.root
    said = {
        "new": f"New run in {root}",
        "resumed": f"Resuming the unfinished run in {root}: what was finished is kept",
        "again": f"Another attempt in {root}: what is unchanged is reused, the model is judged and decided on anew",
    }
    print(f"{said[attempt.kind]}  ({attempt.id})", file=sys.stderr, flush=True)


def _remove_containers(workdir: Path, image: str | None) -> None:
    """Those of this work folder, which this run's lock makes ours: an earlier run may have been killed with all."""
    if image is not None:
        from pipelines.containers import remove_containers

        remove_containers(workdir)


def _start(attempt: Attempt, image: str | None) -> subprocess.Popen[bytes]:
    root = attempt.workspace.root
    log = log_file(attempt)
    log.parent.mkdir(parents=True, exist_ok=True)
    temporary = root / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    threads = attempt.configuration.threads
    named = ("OMP", "OPENBLAS", "MKL", "NUMEXPR")
    environment = {
        **os.environ,
        **{f"{name}_NUM_THREADS": str(threads) for name in named},
        "POLARS_MAX_THREADS": str(threads),
        "OPENCV_FOR_THREADS_NUM": str(threads),
        "KIWI_SHARD_THREADS": str(max(1, threads // 2)),
        "KIWI_PROFILE": "docker" if image else "local",
        "KIWI_RUN_ID": attempt.id,
        "TMPDIR": str(temporary),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment.pop("KIWI_IMAGE", None)
    if image:
        environment["KIWI_IMAGE"] = image
    with open(log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.local", str(root), str(os.getpid()), "docker" if image else "local"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the pipeline's process and all that it started: asks, waits, then kills."""
    for signum, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        if not _group_lives(process):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        until = time.monotonic() + seconds
        while _group_lives(process) and time.monotonic() < until:
            time.sleep(0.05)


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP stop a run as Ctrl-C does, where they are not ignored (nohup)."""
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def interrupt(signum: int, frame: object) -> NoReturn:
        _silence(number for number in terminals if not os.isatty(number))
        raise KeyboardInterrupt

    caught = [signum for signum in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, interrupt) for signum in caught}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _silence(numbers: Iterable[int]) -> None:
    """Lets what is written there go nowhere: a terminal that was closed would fail each write with an error."""
    for number in numbers:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def _stop(attempt: Attempt, summary: Path | None) -> NoReturn:
    """The last word of a run that was stopped: what there is so far, drawn and sent. Being stopped again leaves it."""
    from kiwi.tracking import TrackingError, send

    print("Stopped. The same command resumes from what was finished.", file=sys.stderr, flush=True)
    os.environ["KIWI_RUN_ID"] = attempt.id
    over = _draw_so_far(attempt, summary)
    with contextlib.suppress(TrackingError):
        send(attempt.configuration, "failed")
    if not over:
        _leave()
    raise typer.Exit(130)


def _leave() -> NoReturn:
    """Ends without waiting for the clips that are being decoded, as Python would; files are replaced whole."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(130)


def _draw_so_far(attempt: Attempt, summary: Path | None) -> bool:
    """The report and the summary of what there is; what goes wrong here is said, and stops nothing from resuming.

    False where it took too long and is drawn on in the background.
    """
    from kiwi.operations.deadline import within
    from kiwi.runs import close_stopped_run

    try:
        within(DRAWING_SECONDS, lambda: close_stopped_run(attempt.configuration))
        _copy_summary(attempt, summary)
    except KeyboardInterrupt:
        _leave()
    except TimeoutError:
        print(f"The report was not drawn within {DRAWING_SECONDS:g} s.", file=sys.stderr, flush=True)
        return False
    except Exception as error:  # noqa: BLE001 - whatever it is, the records are still to be sent
        said = error.message if isinstance(error, KiwiError) else f"{type(error).__name__}: {error}"
        print(f"The report was not drawn: {said}", file=sys.stderr, flush=True)
    else:
        print(f"What there is so far: {attempt.workspace.report}", file=sys.stderr, flush=True)
    return True


def _finish(attempt: Attempt, summary: Path | None, as_json: bool) -> None:
    from kiwi.cli.verdict import print_verdict

    _copy_summary(attempt, summary)
    print_verdict(attempt.workspace, to_stderr=as_json)
    if as_json:
        print(attempt.workspace.summary.read_text())


def _copy_summary(attempt: Attempt, summary: Path | None) -> None:
    """Copies the run's summary to where it was asked for, whole or not at all."""
    written = attempt.workspace.summary
    if summary is not None and summary.absolute() != written:
        summary.parent.mkdir(parents=True, exist_ok=True)
        temporary = summary.with_name(f".{summary.name}.{os.getpid()}.tmp")
        shutil.copyfile(written, temporary)
        os.replace(temporary, summary)
