"""The services that the environment names: MLflow, the registry's database, S3, stores, model servers, alerts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

from kiwi import storage
from kiwi.doctor.answers import address_problem, get
from kiwi.doctor.checks import Check, Question
from kiwi.errors import UsageError
from kiwi.services.endpoint import endpoint_of
from kiwi.tracking.redaction import redact

PURPOSES = ("score", "ground", "verify", "judge")
GROUP = "service"


def questions(tracking_uri: str | None, needed: bool) -> Iterator[Question]:
    """Args: needed: whether a service that is not set up matters, as it does for a cluster."""
    yield Question(GROUP, "mlflow", partial(_mlflow, tracking_uri, needed))
    yield Question(GROUP, "registry database", partial(_registry, tracking_uri))
    yield Question(GROUP, "s3", partial(_s3, needed))
    yield Question(GROUP, "dvc remote", partial(_store, "dvc remote", "KIWI_DVC_REMOTE", needed))
    yield Question(GROUP, "artifact store", partial(_store, "artifact store", "KIWI_ARTIFACT_ROOT", False))
    for purpose in PURPOSES:
        yield Question(GROUP, f"model server: {purpose}", partial(_model_server, purpose))
    yield Question(GROUP, "alerts", _alerts)
    yield Question(GROUP, "pushgateway", _pushgateway)


def _unset(name: str, variable: str, use: str, needed: bool = False) -> Check:
    return Check(GROUP, name, "missing", f"{variable} is not set", f"set it {use}", needed)


def _mlflow(uri: str | None, needed: bool) -> Check:
    from kiwi.tracking.server import check_answers, database_path, hide_password

    if not uri:
        use = "to the tracking server's address (else runs are kept in a SQLite file)"
        return _unset("mlflow", "MLFLOW_TRACKING_URI", use, needed)
    shown = hide_password(uri)
    if not uri.startswith(("http://", "https://")):
        file = database_path(uri)
        if file is None or file.exists():
            check_answers(uri)
        return Check(GROUP, "mlflow", "ok", shown)
    if problem := address_problem(uri):
        return Check(GROUP, "mlflow", "failed", f"MLFLOW_TRACKING_URI {problem}", "such as https://HOST")
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    answer = get(
        f"{uri.rstrip('/')}/api/2.0/mlflow/registered-models/search?max_results=1",
        os.environ.get("MLFLOW_TRACKING_TOKEN", ""),
        (user, password) if user else None,
    )
    if answer.status == 200:
        return Check(GROUP, "mlflow", "ok", shown)
    if answer.status in (401, 403):
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        if "Host header" in answer.text:
            remedy = "add this name to the server's --allowed-hosts"
        return Check(GROUP, "mlflow", "failed", f"{shown} does not let us in ({answer.status})", remedy)
    said = f"{shown} {answer.said}"
    return Check(GROUP, "mlflow", "failed", said, "start the server, or `kubectl port-forward` to it from a laptop")


def _registry(tracking_uri: str | None) -> Check:
    import sqlalchemy as sa

    from kiwi.registry.history import history_address

    if not (os.environ.get("KIWI_REGISTRY_URL") or os.environ.get("KIWI_HISTORY") or tracking_uri):
        return _unset("registry database", "KIWI_REGISTRY_URL", "to postgresql://… where several people promote")
    address = history_address(tracking_uri or "sqlite:///mlflow.db")
    shown = address.render_as_string(hide_password=True)
    if address.get_backend_name() == "sqlite":
        return Check(GROUP, "registry database", "ok", f"{shown} (one machine's)")
    engine = sa.create_engine(address, poolclass=sa.NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
    except sa.exc.SQLAlchemyError as error:
        first = redact(str(error.__cause__ or error).strip().splitlines()[0])
        return Check(GROUP, "registry database", "failed", f"{shown}: {first}", "start it, or mend KIWI_REGISTRY_URL")
    return Check(GROUP, "registry database", "ok", shown)


def _s3(needed: bool) -> Check:
    from kiwi.storage.remote import endpoint

    if not (os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_PROFILE")):
        return _unset(
            "s3", "AWS_ACCESS_KEY_ID", "with AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL beside Amazon", needed
        )
    named = endpoint("s3")
    if named is None:
        return Check(GROUP, "s3", "ok", "Amazon's own; whether it lets us in is seen at the stores below")
    if problem := address_problem(named):
        return Check(GROUP, "s3", "failed", f"AWS_ENDPOINT_URL {problem}", "such as https://HOST")
    answer = get(named)
    if answer.status:  # an S3 service answers a nameless question with 403 or a list, and either shows that it is there
        return Check(GROUP, "s3", "ok", urlsplit(named).netloc.rpartition("@")[2])
    return Check(
        GROUP, "s3", "failed", f"{redact(named)} {answer.said}", "is AWS_ENDPOINT_URL right, and the service up?"
    )


def _store(name: str, variable: str, needed: bool) -> Check:
    place = os.environ.get(variable, "").strip()
    if not place:
        return _unset(name, variable, "to s3://BUCKET/PREFIX, or a folder", needed)
    storage.check(place)
    return Check(GROUP, name, "ok", place)


def _model_server(purpose: str) -> Check:
    name = f"model server: {purpose}"
    own, common = f"KIWI_VLM_{purpose.upper()}_BASE_URL", "KIWI_VLM_BASE_URL"
    if not (os.environ.get(own) or os.environ.get(common)):
        return _unset(name, own, f"(or {common}) where `{purpose}` is to ask a vision-language model")
    try:
        endpoint = endpoint_of(purpose)
    except UsageError as error:
        return Check(GROUP, name, "failed", error.message, error.remedy)
    key = endpoint.variable.replace("BASE_URL", "API_KEY")
    answer = get(f"{endpoint.shown}/models", authorization=endpoint.authorization)
    if answer.status == 200:
        served = [str(it.get("id")) for it in answer.json().get("data", []) if isinstance(it, dict)]
        return Check(GROUP, name, "ok", f"{endpoint.shown} serves {', '.join(served) or 'nothing'}")
    if answer.status in (401, 403):
        said = f"{endpoint.shown} does not let us in ({answer.status})"
        return Check(GROUP, name, "failed", said, f"set {key} to a key that it accepts")
    said = endpoint.without_secrets(f"{endpoint.shown} {answer.said}")
    return Check(GROUP, name, "failed", said, f"start it, or mend {endpoint.variable} (it ends in /v1)")


def _alerts() -> Check:
    from kiwi.operations.webhook import ADDRESS, Webhook

    webhook = Webhook.told()
    if webhook is None:
        return _unset("alerts", ADDRESS, "to a webhook that is told of failed runs, held gates and promotions")
    said = f"{webhook.shown}, as {webhook.format}; `kiwi doctor --test-alert` sends one"
    return Check(GROUP, "alerts", "ok", said)


def _pushgateway() -> Check:
    from kiwi.operations.figures import GATEWAY

    url = os.environ.get(GATEWAY, "").strip()
    if not url:
        return _unset("pushgateway", GATEWAY, "to have the figures of runs in Prometheus")
    if problem := address_problem(url):
        return Check(GROUP, "pushgateway", "failed", f"{GATEWAY} {problem}", "such as http://pushgateway:9091")
    answer = get(f"{url.rstrip('/')}/-/healthy")
    host = urlsplit(url).hostname
    if answer.status == 200:
        return Check(GROUP, "pushgateway", "ok", str(host))
    return Check(GROUP, "pushgateway", "failed", f"{host} {answer.said}", f"start it, or mend {GATEWAY}")
