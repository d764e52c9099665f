"""The Kubernetes API from inside a pod, with the pod's own service account: find, list, create, delete, read a log."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi.errors import KiwiError

if TYPE_CHECKING:
    import requests  # type: ignore[import-untyped,unused-ignore]

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SECONDS = 5.0
LOG_BYTES = 2**20  # of a pod's log, asked for at once


class KubernetesError(KiwiError):
    """The Kubernetes API does not answer, or refuses. `status` is 0 where nobody answered."""

    status = 0


class KubernetesUnavailable(KubernetesError):  # noqa: N818
    """Nobody answers at the address."""


class NotAuthenticated(KubernetesError):  # noqa: N818
    """401: the pod's token is not accepted."""


class NotAllowed(KubernetesError):  # noqa: N818
    """403: the service account may not do this, or an admission rule is against it."""


class NotFound(KubernetesError):  # noqa: N818
    """404: there is no such object, or no such kind."""


class Conflict(KubernetesError):  # noqa: N818
    """409: an object of that name is there already, or it is not the one that was meant."""


class Busy(KubernetesError):  # noqa: N818
    """429: too many requests, also after we had waited."""


class ServerFault(KubernetesError):  # noqa: N818
    """5xx: the server itself failed, also after we had waited."""


ROLE = "run it as the account of infra/k8s (`service_account:` in the profile)"
REFUSALS: dict[int, tuple[type[KubernetesError], str, str]] = {
    401: (NotAuthenticated, "the pod's service account may not {verb} {path}", ROLE),
    403: (NotAllowed, "the pod's service account may not {verb} {path}", ROLE),
    404: (NotFound, "the Kubernetes API knows no {path}", "is the namespace right, and its operator installed?"),
    409: (Conflict, "the Kubernetes API has another {path} meanwhile", "try again"),
    429: (Busy, "the Kubernetes API has too much to do to {verb} {path}", "try again in a minute"),
    500: (ServerFault, "the Kubernetes API failed to {verb} {path}", "try again later; is its server healthy?"),
}
VERBS = {"GET": "read", "POST": "create", "DELETE": "delete"}


def inside_cluster() -> bool:
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and (ACCOUNT / "token").is_file()


@dataclass(frozen=True)
class Kubernetes:
    """The API server's address, and the pod's token.

    Attributes:
        token_file: read at every request where it is named, since a pod's token is exchanged every hour.
        attempts: times that a request is made while the server is away, busy or failing.
        pause: waits between them; tests give their own.
    """

    url: str
    namespace: str
    token: str = field(default="", repr=False)
    authority: str | bool = True
    token_file: Path | None = None
    attempts: int = 3
    pause: Callable[[float], None] | None = None

    @classmethod
    def inside(cls, attempts: int = 3) -> Kubernetes:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        host = f"[{host}]" if ":" in host else host
        namespace = (ACCOUNT / "namespace").read_text().strip()
        authority = str(ACCOUNT / "ca.crt")
        return cls(
            f"https://{host}:{port}", namespace, authority=authority, token_file=ACCOUNT / "token", attempts=attempts
        )

    def find(self, path: str) -> dict[str, Any] | None:
        """An object, or None where there is none. Raises KubernetesError."""
        try:
            return self.get(path)
        except NotFound:
            return None

    def get(self, path: str, parameters: dict[str, str] | None = None) -> dict[str, Any]:
        """As `find`, for what must be there, and for lists."""
        found: dict[str, Any] = self._ask("GET", path, parameters).json()
        return found

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Makes an object whose name the body gives, so that asking twice makes no second one.

        Raises Conflict where it is there, and other KubernetesErrors.
        """
        made: dict[str, Any] = self._ask("POST", path, body=body).json()
        return made

    def delete(self, path: str, uid: str) -> None:
        """Deletes the object with that uid and all it owns; one that is gone, or made anew meanwhile, is fine."""
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        try:
            self._ask("DELETE", path, body=body)
        except (NotFound, Conflict):
            return

    def log(self, pod: str, container: str, since: str | None = None, tail: int | None = None) -> list[str]:
        """Lines of a container's log with their times in front; none where it has not started yet."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        said = {"container": container, "timestamps": "true", "limitBytes": str(LOG_BYTES)}
        said |= {"sinceTime": since} if since else {"tailLines": str(tail)} if tail is not None else {}
        try:
            text: str = self._ask("GET", path, said).text
            return text.splitlines()
        except NotFound:
            return []
        except KubernetesError as error:
            if error.status == 400:  # ContainerCreating
                return []
            raise

    def _ask(
        self, verb: str, path: str, parameters: dict[str, str] | None = None, body: dict[str, Any] | None = None
    ) -> requests.Response:
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

        waits: dict[str, Any] = {"sleep": self.pause} if self.pause else {}
        retrying = Retrying(
            retry=retry_if_exception_type((KubernetesUnavailable, Busy, ServerFault)), reraise=True,
            stop=stop_after_attempt(self.attempts), wait=wait_exponential(multiplier=1, max=60), **waits,
        )  # fmt: skip
        answer: requests.Response = retrying(self._once, verb, path, parameters, body)
        return answer

    def _once(
        self, verb: str, path: str, parameters: dict[str, str] | None, body: dict[str, Any] | None
    ) -> requests.Response:
        import requests

        token = self.token_file.read_text().strip() if self.token_file else self.token
        try:
            answer = requests.request(
                verb, self.url + path, params=parameters, json=body, headers={"Authorization": f"Bearer {token}"},
                verify=self.authority, timeout=SECONDS, allow_redirects=False,
            )  # fmt: skip
        except requests.RequestException as error:
            said = f"the Kubernetes API does not answer ({type(error).__name__})"
            raise KubernetesUnavailable(said, "allow the pods to reach it (infra/k8s/base/network.yaml)") from None
        if not 200 <= answer.status_code < 300:
            raise refusal(verb, path, answer)
        return answer


def refusal(verb: str, path: str, answer: requests.Response) -> KubernetesError:
    """What an HTTP status means, with the server's own words and what to do."""
    status = answer.status_code
    unknown = (KubernetesError, "the Kubernetes API will not {verb} {path}", "see its words above")
    kind, said, remedy = REFUSALS.get(500 if status >= 500 else status, unknown)
    words = _words(answer)
    text = f"{said.format(verb=VERBS[verb], path=path)} ({status}{f': {words}' if words else ''})"
    error = kind(text, remedy)
    error.status = status
    return error


def _words(answer: requests.Response) -> str:
    try:
        said = answer.json()
    except ValueError:
        said = answer.text
    text = said.get("message", "") if isinstance(said, dict) else said
    return " ".join(str(text).split())[:300]
