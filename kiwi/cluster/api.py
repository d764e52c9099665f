"""One door to a Kubeflow Pipelines API server (REST v2beta1): its address and login, typed refusals, patience.

kfp's generated client speaks the protocol; kfp itself is not imported, so that kiwi stays free of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from kiwi.errors import KiwiError, UsageError

POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
SECONDS = 30.0
ATTEMPTS = 4
PAGE = 100
T = TypeVar("T")


class ClusterError(KiwiError):
    """The pipelines server did not do what it was asked."""

    status = 0


class ClusterUnavailable(ClusterError):  # noqa: N818
    """Nobody answers at the address."""


class NotAuthenticated(ClusterError):  # noqa: N818
    """401: the server does not know who we are."""

    status = 401


class NotAllowed(ClusterError):  # noqa: N818
    """403: the server knows who we are, and refuses."""

    status = 403


class NotFound(ClusterError):  # noqa: N818
    """404: there is no such thing, or no such API."""

    status = 404


class Conflict(ClusterError):  # noqa: N818
    """409: something of that name is there already."""

    status = 409


class Busy(ClusterError):  # noqa: N818
    """429: too many requests, also after we had waited."""

    status = 429


class ServerFault(ClusterError):  # noqa: N818
    """5xx: the server itself failed."""

    status = 500


REFUSALS: dict[int, tuple[type[ClusterError], str]] = {
    401: (NotAuthenticated, "set KIWI_KFP_TOKEN (or KIWI_KFP_TOKEN_FILE, or KIWI_KFP_COOKIE); is it out of date?"),
    403: (NotAllowed, "ask for the role kiwi-operator in the namespace (infra/k8s/base/rbac.yaml)"),
    404: (NotFound, "is KIWI_KFP_HOST the address of the pipelines API, and its version 2 or newer?"),
    409: (Conflict, "somebody else changed it meanwhile: give the command again"),
    429: (Busy, "wait a minute and give the command again: what was done stays done"),
    500: (ServerFault, "look at the log of ml-pipeline, then give the command again: what was done stays done"),
}


@dataclass(frozen=True)
class Address:
    """Where the server is and how to log in to it."""

    url: str
    token: str = field(default="", repr=False)
    cookie: str = field(default="", repr=False)
    authority: str | None = None

    @classmethod
    def told(cls, host: str | None = None) -> Address:
        """KIWI_KFP_HOST with KIWI_KFP_TOKEN, KIWI_KFP_TOKEN_FILE, a pod's own token, or KIWI_KFP_COOKIE.

        Raises UsageError where no usable address is set, or the token's file cannot be read.
        """
        url = (host or os.environ.get("KIWI_KFP_HOST", "")).strip().rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.password:
            raise UsageError(
                "where is the pipelines server? KIWI_KFP_HOST is not set, or no plain http(s) address",
                "export KIWI_KFP_HOST=https://HOST/pipeline, or give --host; a login goes into KIWI_KFP_TOKEN",
            )
        return cls(url, _token(), os.environ.get("KIWI_KFP_COOKIE", ""), os.environ.get("KIWI_KFP_CA"))


def _token() -> str:
    if said := os.environ.get("KIWI_KFP_TOKEN", "").strip():
        return said
    named = os.environ.get("KIWI_KFP_TOKEN_FILE") or os.environ.get("KF_PIPELINES_SA_TOKEN_PATH")
    if not named and not POD_TOKEN.is_file():
        return ""
    file = Path(named) if named else POD_TOKEN
    try:
        return file.read_text().strip()
    except OSError as error:
        raise UsageError(f"token file {file}: {error.strerror}", "mend KIWI_KFP_TOKEN_FILE") from None


class Cluster:
    """The API server, for one namespace. `pause` waits between tries; tests give their own."""

    def __init__(self, address: Address, namespace: str, pause: Callable[[float], None] | None = None) -> None:
        import kfp_server_api as api  # type: ignore[import-untyped,unused-ignore]

        settings = api.Configuration(host=address.url)
        settings.retries = False  # ours is in `_ask`: the server says whether to wait
        settings.ssl_ca_cert = address.authority
        client = api.ApiClient(settings, cookie=address.cookie or None)
        if address.token:
            client.set_default_header("Authorization", f"Bearer {address.token}")
        self.address, self.namespace = address, namespace
        self._pause = pause
        self._api = api
        self._experiments = api.ExperimentServiceApi(client)
        self._runs = api.RunServiceApi(client)
        self._recurring = api.RecurringRunServiceApi(client)

    def experiment(self, name: str) -> str:
        """The id of the experiment of that name, which is made where there is none; of two who try, both get it."""
        if known := self._known_experiment(name):
            return known
        body = self._api.V2beta1Experiment(display_name=name, namespace=self.namespace)
        make = self._experiments.experiment_service_create_experiment
        try:
            return str(self._ask(lambda: make(body, _request_timeout=SECONDS), again=False).experiment_id)
        except Conflict:
            if known := self._known_experiment(name):
                return known
            raise

    def _known_experiment(self, name: str) -> str | None:
        listed = self._pages(self._experiments.experiment_service_list_experiments, "experiments")
        return next((str(known.experiment_id) for known in listed if known.display_name == name), None)

    def submit(
        self, name: str, spec: dict[str, Any], config: str, experiment: str, account: str | None, root: str | None
    ) -> str:
        """Starts a run of a compiled pipeline; returns its id."""
        body = self._api.V2beta1Run(
            display_name=name,
            experiment_id=experiment,
            pipeline_spec=spec,
            runtime_config=self._api.V2beta1RuntimeConfig(parameters={"config": config}, pipeline_root=root),
            service_account=account,
        )
        make = self._runs.run_service_create_run
        return str(self._ask(lambda: make(body, _request_timeout=SECONDS), again=False).run_id)

    def runs(self, limit: int) -> list[Any]:
        """The newest runs of the namespace."""
        ask = self._runs.run_service_list_runs
        size = min(limit, PAGE)
        found = self._ask(
            lambda: ask(namespace=self.namespace, page_size=size, sort_by="created_at desc", _request_timeout=SECONDS)
        )
        return list(found.runs or [])[:limit]

    def recurring_runs(self) -> list[Any]:
        """All recurring runs of the namespace."""
        return list(self._pages(self._recurring.recurring_run_service_list_recurring_runs, "recurring_runs"))

    def create_recurring_run(self, body: Any) -> str:
        make = self._recurring.recurring_run_service_create_recurring_run
        return str(self._ask(lambda: make(body, _request_timeout=SECONDS), again=False).recurring_run_id)

    def disable_recurring_run(self, identity: str) -> None:
        stop = self._recurring.recurring_run_service_disable_recurring_run
        self._ask(lambda: stop(identity, _request_timeout=SECONDS))

    def delete_recurring_run(self, identity: str) -> None:
        """Deletes it; one that is gone already is fine."""
        delete = self._recurring.recurring_run_service_delete_recurring_run
        try:
            self._ask(lambda: delete(identity, _request_timeout=SECONDS))
        except NotFound:
            return

    def _pages(self, ask: Callable[..., Any], field_name: str) -> Iterator[Any]:
        token = ""
        while True:
            page = self._ask(
                lambda token=token: ask(  # type: ignore[misc]
                    namespace=self.namespace, page_token=token, page_size=PAGE, _request_timeout=SECONDS
                )
            )
            yield from getattr(page, field_name) or []
            token = page.next_page_token or ""
            if not token:
                return

    def _ask(self, call: Callable[[], T], *, again: bool = True) -> T:
        """One request. 429 is waited out always; faults and silence only where asking twice does no harm."""
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

        def patient(error: BaseException) -> bool:
            return isinstance(error, Busy) or (again and isinstance(error, (ServerFault, ClusterUnavailable)))

        waits: dict[str, Any] = {"sleep": self._pause} if self._pause else {}
        retrying = Retrying(
            retry=retry_if_exception(patient), stop=stop_after_attempt(ATTEMPTS), reraise=True,
            wait=wait_exponential(multiplier=1, max=20), **waits,
        )  # fmt: skip
        answer: T = retrying(self._once, call)
        return answer

    def _once(self, call: Callable[[], T]) -> T:
        from urllib3.exceptions import HTTPError

        try:
            return call()
        except self._api.ApiException as error:
            raise refusal(self.address.url, int(error.status or 0), error.body) from None
        except HTTPError as error:
            said = f"pipelines server {self.address.url} does not answer ({type(error).__name__})"
            raise ClusterUnavailable(said, "is KIWI_KFP_HOST right, and can this machine reach it?") from None
        except ValueError as error:  # the generated client could not read the answer
            said = f"pipelines server {self.address.url} answered something else than version 2 of the API: {error}"
            raise ClusterError(said, "is KIWI_KFP_HOST the API, and not a login page?") from None


def refusal(url: str, status: int, body: Any) -> ClusterError:
    """What an HTTP status means, with the server's own words and what to do."""
    kind, remedy = REFUSALS.get(500 if status >= 500 else status, (ClusterError, "see the server's words above"))
    said = _words(body)
    error = kind(f"pipelines server {url}: {status}{f': {said}' if said else ''}", remedy)
    error.status = status
    return error


def _words(body: Any) -> str:
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        said = json.loads(text)
        text = str(said.get("message") or said.get("error") or text) if isinstance(said, dict) else text
    except ValueError:
        return " ".join(text.split())[:200]  # no JSON, such as a proxy's page: its own words
    return " ".join(text.split())[:200]
