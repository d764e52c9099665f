"""How a store is asked: its file system, again and again while it is away, and one clear error when it stays so.

One layer tries again, this one: botocore's and s3fs's own attempts multiply (5 x 5, each up to 60 s) and count
attempts, where a person thinks in seconds. A store that hangs, throttles or answers 5xx is asked for
KIWI_STORAGE_PATIENCE seconds (120); one that this process has never reached and that cannot be connected to at all is
more likely misnamed than away, and gets at most 10 s. Nothing else is tried twice: not 403, not 404.
"""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import tenacity

from kiwi.errors import KiwiError, UsageError

Answer = TypeVar("Answer")

PATIENCE = "KIWI_STORAGE_PATIENCE"
_DEFAULT_PATIENCE = 120.0
_PATIENCE_WITH_STRANGERS = 10.0
_ONE_ANSWER = 15.0
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT_URL")
_BUSY = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout"})
_log = logging.getLogger(__name__)
_reached: set[tuple[str, str | None]] = set()


class StorageError(KiwiError):
    """A path or address that cannot be read or written; the message names it."""


def patience() -> float:
    """For how many seconds a store that is away is asked again. Raises UsageError for what is no such number."""
    said = os.environ.get(PATIENCE, "").strip()
    try:
        seconds = float(said) if said else _DEFAULT_PATIENCE
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError(
            f"{PATIENCE}={said} is no number of seconds", f"unset it ({_DEFAULT_PATIENCE:.0f}), or 0 to 3600"
        )
    return seconds


def endpoint(scheme: str) -> str | None:
    """The S3 service that the environment names, if it is not Amazon's own."""
    if scheme not in ("s3", "s3a"):
        return None
    return next((os.environ[name] for name in _ENDPOINT_VARIABLES if os.environ.get(name)), None)


def filesystem(path: str | Path) -> Any:
    """The fsspec file system of an address: no listing kept (others write, too), one attempt a request."""
    import fsspec

    scheme = str(path).partition("://")[0]
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a"):
        answer = max(1.0, min(_ONE_ANSWER, patience()))
        once = {"retries": {"total_max_attempts": 1}, "read_timeout": answer, "connect_timeout": min(5.0, answer)}
        options = {"endpoint_url": endpoint(scheme), "use_listings_cache": False, "config_kwargs": once}
    try:
        found = fsspec.filesystem(scheme, **options)
    except (ImportError, ValueError) as error:
        raise StorageError(f"{path}: no support for {scheme}:// ({error})", "pip install 'kiwi[data]'") from error
    found.retries = 1
    return found


def ask(path: str | Path, question: Callable[[], Answer]) -> Answer:
    """Asks a store, again while it is away. Raises StorageError, which names the address and the endpoint."""
    with told(path):
        scheme = str(path).partition("://")[0]
        service = (scheme, endpoint(scheme))
        seconds = patience()
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: _may_pass(error)),
            stop=lambda state: (state.seconds_since_start or 0.0) >= _allowed(state, seconds, service),
            wait=tenacity.wait_exponential_jitter(initial=0.2, max=5.0),
            before_sleep=lambda state: _say(path, service[1], state, _allowed(state, seconds, service)),
            reraise=True,
        )
        try:
            answer = again(question)
        except Exception as error:
            if _answer(error)[1]:
                _reached.add(service)
            raise
        _reached.add(service)
        return answer


@contextmanager
def told(path: str | Path) -> Iterator[None]:
    """Turns whatever the store raises into one StorageError that names the address."""
    try:
        yield
    except KiwiError:
        raise
    except Exception as error:
        scheme, separator, _ = str(path).partition("://")
        remote = bool(separator) and scheme != "file"
        if not remote and not isinstance(error, OSError):
            raise
        raise (_remote_error if remote else _local_error)(path, error) from error


def _local_error(path: str | Path, error: Exception) -> StorageError:
    number = error.errno if isinstance(error, OSError) else None
    remedy = {
        errno.ENOENT: "check the path",
        errno.ENOSPC: "free space there, or name another folder",
        errno.EDQUOT: "free space there, or name another folder",
        errno.EROFS: "name a folder that can be written",
        errno.EACCES: "check the rights of the file and its folder",
        errno.EPERM: "check the rights of the file and its folder",
        errno.ENAMETOOLONG: "name it shorter",
    }.get(number or 0, "check the path, its rights and its disk")
    words = "not found" if number == errno.ENOENT else getattr(error, "strerror", None) or error
    return StorageError(f"{path}: {words}", remedy)


def _remote_error(path: str | Path, error: Exception) -> StorageError:
    scheme, _, rest = str(path).partition("://")
    bucket = rest.partition("/")[0]
    service = endpoint(scheme)
    where = f"{path} at {shown(service)}" if service else str(path)
    code, status, words = _answer(error)
    if code == "NoSuchBucket":
        return StorageError(f"{where}: no bucket {bucket!r}", "create it, or check the address")
    if isinstance(error, FileNotFoundError) or status == 404:
        return StorageError(f"{where}: not found", "check the address, and that AWS_ENDPOINT_URL names its service")
    if isinstance(error, PermissionError) or status == 403 or type(error).__name__.endswith("CredentialsError"):
        remedy = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do with the bucket"
        return StorageError(f"{where}: access refused: {words}", remedy)
    if _may_pass(error):
        waited = f"{PATIENCE} ({patience():g} s) says how long to wait for it"
        return StorageError(f"{where}: the store is away: {words}", f"start it or correct AWS_ENDPOINT_URL; {waited}")
    return StorageError(f"{where}: {words}", "check the address, AWS_ENDPOINT_URL and the credentials")


def shown(service: str) -> str:
    """An endpoint without the name and password that it may hold."""
    parts = urlsplit(service)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _answer(error: BaseException) -> tuple[str, int, str]:
    """The service's own code, HTTP status and words, from botocore's error or the one that s3fs made of it."""
    said = next((getattr(one, "response", None) for one in (error, error.__cause__) if hasattr(one, "response")), None)
    if not isinstance(said, dict):
        return "", 0, getattr(error, "strerror", None) or str(error) or type(error).__name__
    told_by_service = said.get("Error", {})
    status = int(said.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(told_by_service.get("Code") or "")
    return code, status, str(told_by_service.get("Message") or code or f"HTTP {status}")


def _may_pass(error: BaseException) -> bool:
    """Whether what went wrong may be over in a moment: the network, a time-out, throttling, HTTP 5xx."""
    code, status, _ = _answer(error)
    if status:
        return code in _BUSY or status in (408, 429) or (status >= 500 and status != 501)
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return any(name in _PASSING for name in (kind.__name__ for kind in type(error).__mro__)) and not _untrusted(error)


# By name: botocore's and aiohttp's classes exist only where S3 is used, and loading them takes a while.
_PASSING = frozenset(
    {"HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseParserError", "ClientConnectionError"}
    | {"ClientPayloadError", "FSTimeoutError"}
)
_UNCONNECTED = frozenset({"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError"})


def _untrusted(error: BaseException) -> bool:
    return type(error).__name__ == "SSLError"


def _allowed(state: tenacity.RetryCallState, seconds: float, service: tuple[str, str | None]) -> float:
    """The seconds for which this failure is borne."""
    error = state.outcome.exception() if state.outcome else None
    stranger = service not in _reached and type(error).__name__ in _UNCONNECTED
    return min(seconds, _PATIENCE_WITH_STRANGERS) if stranger else seconds


def _say(path: str | Path, service: str | None, state: tenacity.RetryCallState, seconds: float) -> None:
    error = state.outcome.exception() if state.outcome else None
    if state.attempt_number == 1 and error is not None:
        at = f" at {shown(service)}" if service else ""
        _log.warning("%s%s: %s; trying again for up to %g s", path, at, _answer(error)[2], seconds)
