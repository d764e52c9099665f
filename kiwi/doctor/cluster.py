"""The cluster as a laptop sees it: the kubeconfig and its API server, and the pipelines server."""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kiwi.doctor.answers import Answer, get
from kiwi.doctor.checks import Check, Question
from kiwi.errors import UsageError

GROUP = "cluster"


def questions(needed: bool) -> Iterator[Question]:
    yield Question(GROUP, "kubeconfig", partial(_kubernetes, needed))
    yield Question(GROUP, "pipelines server", partial(_pipelines, needed))


def _kubernetes(needed: bool) -> Check:
    name = "kubeconfig"
    named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    path = Path(named) if named else Path.home() / ".kube" / "config"
    if not path.is_file():
        remedy = "only needed for kubectl; ask your cluster's administrator for one"
        return Check(GROUP, name, "missing", f"no {path}", remedy, needed=False)
    try:
        said = _current(path)
    except ValueError as error:
        return Check(GROUP, name, "failed", f"{path}: {error}", "fetch it again from the cluster")
    context, server = said["context"], said["server"]
    with _authority(said["cluster"]) as verify:
        answer = get(f"{server.rstrip('/')}/version", str(said["user"].get("token", "")), verify=verify)
    return _kubernetes_answered(f"{context} at {server}", answer)


def _kubernetes_answered(shown: str, answer: Answer) -> Check:
    if answer.status == 200:
        version = answer.json().get("gitVersion", "?")
        return Check(GROUP, "kubeconfig", "ok", f"{shown}, Kubernetes {version}")
    if answer.status in (401, 403):  # it is there; who logs in by a program or a certificate is not known here
        return Check(GROUP, "kubeconfig", "ok", f"{shown} answers; `kubectl auth whoami` shows whether it lets you in")
    remedy = "are you in the right network, and is it the right context (`kubectl config current-context`)?"
    return Check(GROUP, "kubeconfig", "failed", f"{shown} {answer.said}", remedy)


def _current(path: Path) -> dict[str, Any]:
    """The current context's cluster and user. Raises ValueError, which says what is wrong."""
    import yaml

    try:
        said = yaml.safe_load(path.read_text())
        context = said["current-context"]
        chosen = _named(said["contexts"], context)["context"]
        cluster = _named(said["clusters"], chosen["cluster"])["cluster"]
        user = _named(said.get("users") or [], chosen.get("user", ""))
        return {
            "context": context,
            "cluster": cluster,
            "server": str(cluster["server"]),
            "user": user.get("user") or {},
        }
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot be read ({type(error).__name__})") from None
    except (KeyError, TypeError, AttributeError):
        raise ValueError("has no current context with a cluster") from None


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next((entry for entry in entries if entry["name"] == name), {})


@contextmanager
def _authority(cluster: dict[str, Any]) -> Iterator[str | bool]:
    """What the API server's certificate is checked with."""
    if named := cluster.get("certificate-authority"):
        yield str(named)
    elif data := cluster.get("certificate-authority-data"):
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            try:
                file.write(base64.b64decode(data))
            except (binascii.Error, TypeError):
                file.write(b"")
            file.flush()
            yield file.name
    else:
        yield True


def _pipelines(needed: bool) -> Check:
    from kiwi.cluster.api import Address

    name = "pipelines server"
    if not os.environ.get("KIWI_KFP_HOST"):
        remedy = "export KIWI_KFP_HOST=https://HOST/pipeline, and KIWI_KFP_TOKEN where it asks for a login"
        return Check(GROUP, name, "missing", "KIWI_KFP_HOST is not set", remedy, needed)
    try:
        address = Address.told()
    except UsageError as error:
        return Check(GROUP, name, "failed", error.message, error.remedy)
    verify = address.authority or True
    answer = get(f"{address.url}/apis/v2beta1/healthz", address.token, verify=verify)
    if answer.status == 200 and answer.json():
        return Check(GROUP, name, "ok", f"{address.url}, {answer.json().get('tag_name') or 'version unknown'}")
    if answer.status in (301, 302, 303, 307, 401, 403):
        said = f"{address.url} does not let us in ({answer.status})"
        remedy = "set KIWI_KFP_TOKEN (or KIWI_KFP_TOKEN_FILE, or KIWI_KFP_COOKIE); is it out of date?"
        return Check(GROUP, name, "failed", said, remedy)
    said = f"{address.url} {answer.said}" + ("" if answer.status != 200 else ", but not as the pipelines API does")
    remedy = "is it the API's address? else `kubectl port-forward -n kubeflow svc/ml-pipeline 8888` and use that"
    return Check(GROUP, name, "failed", said, remedy)
