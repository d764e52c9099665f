"""Two questions to the Kubernetes API from inside a pod, with the pod's own service account."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiwi.errors import KiwiError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SECONDS = 5.0


class KubernetesError(KiwiError):
    """The Kubernetes API does not answer, or refuses."""


def inside_cluster() -> bool:
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and (ACCOUNT / "token").is_file()


@dataclass(frozen=True)
class Kubernetes:
    """The API server's address, and the pod's token."""

    url: str
    namespace: str
    token: str = field(repr=False)
    authority: str | bool = True

    @classmethod
    def inside(cls) -> Kubernetes:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        host = f"[{host}]" if ":" in host else host
        namespace = (ACCOUNT / "namespace").read_text().strip()
        token = (ACCOUNT / "token").read_text().strip()
        return cls(f"https://{host}:{port}", namespace, token, str(ACCOUNT / "ca.crt"))

    def find(self, path: str) -> dict[str, Any] | None:
        """An object, or None where there is none. Raises KubernetesError."""
        import requests  # type: ignore[import-untyped,unused-ignore]

        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            answer = requests.get(self.url + path, headers=headers, verify=self.authority, timeout=SECONDS)
        except requests.RequestException as error:
            said = type(error).__name__
            raise KubernetesError(
                f"the Kubernetes API does not answer ({said})", "allow the pods to reach it"
            ) from None
        if answer.status_code == 404:
            return None
        if answer.status_code in (401, 403):
            raise KubernetesError(
                f"the pod's service account may not read {path} ({answer.status_code})",
                "run it as the account of infra/k8s (`service_account:` in the profile)",
            )
        if answer.status_code != 200:
            raise KubernetesError(f"the Kubernetes API answers {answer.status_code} to {path}", "try again later")
        found: dict[str, Any] = answer.json()
        return found

    def get(self, path: str) -> dict[str, Any]:
        """As `find`, for what must be there."""
        found = self.find(path)
        if found is None:
            raise KubernetesError(f"the Kubernetes API knows no {path}", "is the namespace right?")
        return found
