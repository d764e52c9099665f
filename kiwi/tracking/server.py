"""The way to an MLflow server: its address, whether it answers, one client a process, and a lock between processes."""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError

if TYPE_CHECKING:
    from mlflow import MlflowClient

ANSWER_SECONDS = 3.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
QUIET = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "GIT_PYTHON_REFRESH": "quiet",
}


class TrackingError(KiwiError):
    """MLflow refused what it was asked."""


class TrackingUnavailable(TrackingError):  # noqa: N818
    """The tracking server does not answer. Nothing is lost: records stay in the workspace until they are sent."""


class Locked(KiwiError):  # noqa: N818
    """Another process held a lock for longer than one was ready to wait."""


def tracking_uri(configuration: RunConfiguration) -> str:
    """The MLflow address of a run: the injected one where an orchestrator injected a run, else the configuration's."""
    if os.environ.get("MLFLOW_RUN_ID"):
        return os.environ.get("MLFLOW_TRACKING_URI") or configuration.tracking_uri
    return configuration.tracking_uri


def database_path(uri: str) -> Path | None:
    """The file behind a `sqlite:///` address; None for a server."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").split("?")[0])).absolute()


def artifact_root(configuration: RunConfiguration) -> str | None:
    """Where a new experiment keeps its artifacts: beside a SQLite database, at KIWI_ARTIFACT_ROOT, or None where
    an HTTP server decides."""
    uri = tracking_uri(configuration)
    if named := os.environ.get("KIWI_ARTIFACT_ROOT"):
        return named
    if uri.startswith(("http://", "https://", "databricks")):
        return None
    database = database_path(uri)
    folder = database.parent if database else configuration.workdir.absolute().parent / "tracking"
    return str(folder / "artifacts")


def check_answers(uri: str) -> None:
    """Finds out within a few seconds whether the server is there. Raises TrackingUnavailable where it is not."""
    database = database_path(uri)
    parsed = urlparse(uri)
    scheme = parsed.scheme.split("+")[0]
    try:
        if database is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(database, timeout=ANSWER_SECONDS, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
        elif parsed.hostname:
            address = (parsed.hostname, parsed.port or PORTS.get(scheme, 443))
            socket.create_connection(address, timeout=ANSWER_SECONDS).close()
    except (OSError, sqlite3.Error) as error:
        raise _away(uri, error) from error


def _away(uri: str, error: BaseException) -> TrackingUnavailable:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return TrackingUnavailable(
        f"MLflow at {hide_password(uri)} does not answer: {said}",
        "records are kept in the workspace; start the server, or set another --tracking-uri, and they are sent",
    )


def hide_password(uri: str) -> str:
    """The address as it may be shown."""
    parsed = urlparse(uri)
    return uri.replace(f":{parsed.password}@", ":***@") if parsed.password else uri


_clients: dict[tuple[int, str], MlflowClient] = {}


def connect(uri: str) -> MlflowClient:
    """A client for `uri`, made once a process; a new SQLite database is made by one process while others wait.

    Raises TrackingUnavailable. Takes about 2 s for the import of mlflow, and 2 s for a new database.
    """
    check_answers(uri)
    if client := _clients.get((os.getpid(), uri)):
        return client
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    hush()
    database = database_path(uri)
    lock = database.with_name(f".{database.name}.lock") if database else None
    with answers(uri), locked(lock, seconds=60.0):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    _clients[os.getpid(), uri] = client
    return client


def hush() -> None:
    """Takes MLflow's and Alembic's running commentary off the terminal; warnings that matter become our errors."""
    import logging
    import warnings

    for name in ("mlflow", "alembic", "alembic.runtime.migration", "mlflow.store.db.utils", "git"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("mlflow", "sqlalchemy", "alembic"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*[Mm]odel.*stage.*")


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """Turns what MLflow, its HTTP client and its databases raise into TrackingUnavailable or TrackingError."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException  # type: ignore[import-untyped,unused-ignore]
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (RequestException, SQLAlchemyError, ConnectionError, TimeoutError) as error:
        raise _away(uri, error) from error
    except MlflowException as error:
        said = str(error)
        if any(sign in said for sign in ("API request to", "timed out", "database is locked", "OperationalError")):
            raise _away(uri, error) from error
        remedy = "run `mlflow db upgrade` on it" if "out-of-date database schema" in said else ""
        raise TrackingError(f"MLflow at {hide_password(uri)}: {said.strip().splitlines()[0]}", remedy) from error


def experiment_id(client: MlflowClient, configuration: RunConfiguration) -> str:
    """The experiment of a run: the injected one, else the one of the configured name, created at need."""
    if os.environ.get("MLFLOW_RUN_ID") and (injected := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return injected
    from mlflow.exceptions import MlflowException

    for attempt in (1, 2):
        experiment = client.get_experiment_by_name(configuration.experiment)
        if experiment is not None:
            if experiment.lifecycle_stage != "active":
                raise TrackingError(
                    f"the MLflow experiment {configuration.experiment!r} was deleted",
                    f"restore it with `mlflow experiments restore -x {experiment.experiment_id}`, or name another one",
                )
            return str(experiment.experiment_id)
        try:
            made = client.create_experiment(configuration.experiment, artifact_location=artifact_root(configuration))
            return str(made)
        except MlflowException as error:
            if attempt == 2 or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    raise AssertionError("unreachable")


@contextmanager
def locked(path: Path | None, seconds: float = 30.0) -> Iterator[None]:
    """Holds an exclusive lock on a file between processes and threads; the system frees it when the holder dies.

    Raises Locked when it is still held after `seconds`. None as path locks nothing.
    """
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    until = time.monotonic() + seconds
    try:
        while not _take(descriptor):
            if time.monotonic() > until:
                raise Locked(f"{path} is held by another process since more than {seconds:.0f} s", "try again later")
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def tag_text(value: Any, limit: int = 5000) -> str:
    """A tag's or parameter's text, shortened to what MLflow stores."""
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
