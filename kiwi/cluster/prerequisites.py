"""What a run needs before it starts: services, secrets, quotas, model access, free space; all that is missing at once.

A laptop checks it inside `kiwi run`, a cluster in a task of its own, told by KIWI_NEEDS what its profile expects.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi import storage
from kiwi.cluster.kubernetes import Kubernetes, inside_cluster
from kiwi.cluster.train_jobs import TRAINER, VERSION
from kiwi.configuration import RunConfiguration, WeightsSettings
from kiwi.errors import KiwiError, UsageError
from kiwi.tracking.server import (
    TrackingUnavailable,
    check_answers,
    database_path,
    hide_password,
    tracking_uri,
)

if TYPE_CHECKING:
    import requests  # type: ignore[import-untyped,unused-ignore]

    from kiwi.registry.history import History

GIGABYTE = 10**9
SECONDS = 5.0


class PrerequisitesError(KiwiError):
    """Something that the run needs is missing; nothing was started."""


@dataclass(frozen=True)
class Problem:
    """One thing that is missing, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Needs:
    """What a profile expects of the place, as pipelines/placing.py writes it."""

    free_gigabytes: float = 0.2
    secrets: dict[str, list[str]] | None = None
    accelerators: dict[str, int] | None = None
    queue: str | None = None
    namespace: str | None = None
    training_runtime: str | None = None

    @classmethod
    def told(cls) -> Needs:
        said = os.environ.get("KIWI_NEEDS")
        return cls(**json.loads(said)) if said else cls()


def check(configuration: RunConfiguration) -> None:
    """Raises PrerequisitesError with one list of all that is missing. Takes milliseconds where nothing is remote."""
    _raise_for(list(missing(configuration, Needs.told())))


def _raise_for(problems: list[Problem]) -> None:
    if not problems:
        return
    count = "one thing is" if len(problems) == 1 else f"{len(problems)} things are"
    listed = "".join(f"\n  - {problem.what}\n    {problem.remedy}" for problem in problems)
    raise PrerequisitesError(f"nothing was started: {count} missing{listed}")


def check_editor(configuration: RunConfiguration) -> None:
    """Raises PrerequisitesError with what a released size lacks (weights, disk, a GPU), and for any size an attention
    that is not there.
    """
    _raise_for(list(_editor(configuration)))


def missing(configuration: RunConfiguration, needs: Needs) -> Iterator[Problem]:
    """Every problem, in the order secrets, space, tracking, registry, stores, the judge, the benchmark's list, model
    services, weights, quotas."""
    yield from _secrets(needs)
    yield from _space(configuration.workdir, needs.free_gigabytes)
    for ask in (
        partial(_tracking, configuration),
        _registry,
        partial(_stores, configuration),
        partial(_judge, configuration),
        partial(_listed, configuration),
        partial(_model_services, configuration),
        partial(_weights, configuration),
        partial(_editor, configuration),
        partial(_quotas, needs),
    ):
        try:
            yield from ask()
        except KiwiError as error:
            yield Problem(error.message, error.remedy)


def _secrets(needs: Needs) -> Iterator[Problem]:
    for name, variables in (needs.secrets or {}).items():
        empty = [variable for variable in variables if not os.environ.get(variable)]
        if empty:
            yield Problem(
                f"secret {name!r} gives no {', '.join(empty)}",
                f"make the secret {name!r} with these keys (docs/cluster.md)",
            )


def _space(workdir: Path, gigabytes: float) -> Iterator[Problem]:
    there = next(folder for folder in [workdir, *workdir.absolute().parents] if folder.exists())
    free = shutil.disk_usage(there).free / GIGABYTE
    if free < gigabytes:
        yield Problem(f"{there} has {free:.1f} GB free, {gigabytes:g} are needed", "make room, or name another volume")


def _tracking(configuration: RunConfiguration) -> Iterator[Problem]:
    uri = tracking_uri(configuration)
    if database_path(uri) is not None:  # a file beside the work folder, which whoever takes that folder looks after
        return
    try:
        check_answers(uri)
    except TrackingUnavailable as error:
        yield Problem(error.message, "start the server, or set another --tracking-uri")
        return
    if not uri.startswith(("http://", "https://")):
        return
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/registered-models/search"
    answer = _get(url, token, (user, password or "") if user else None, {"max_results": "1"})
    shown = f"MLflow at {hide_password(uri)}"
    if isinstance(answer, str):
        yield Problem(f"{shown}: {answer}", "start the server, or set another --tracking-uri")
    elif answer.status_code == 403 and "Host header" in answer.text:
        yield Problem(f"{shown} does not know itself by that name", "add it to the server's --allowed-hosts")
    elif answer.status_code in (401, 403):
        yield Problem(
            f"{shown} does not let us in ({answer.status_code})",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    elif answer.status_code != 200:
        yield Problem(f"{shown} answers {answer.status_code}", "is this MLflow's address? look at the server's log")


def _registry() -> Iterator[Problem]:
    """The database of the registry's history, where one is named: it answers and takes us in."""
    if os.environ.get("KIWI_REGISTRY_URL", "").strip():
        from kiwi.registry.history import History

        yield from _tried(lambda: _read(History.of("")))


def _read(history: History) -> None:
    history.entries("")


def _stores(configuration: RunConfiguration) -> Iterator[Problem]:
    """Every remote store answers; the ones that are written to take and give back a small file."""
    written = [configuration.store, os.environ.get("KIWI_DVC_REMOTE"), os.environ.get("KIWI_ARTIFACT_ROOT")]
    for place in dict.fromkeys(name for name in written if name and storage.is_remote(name)):
        probe = storage.join(place, f".kiwi-check-{os.getpid()}")
        yield from _tried(partial(storage.check, place), partial(_write_and_delete, probe))
    for collection in configuration.source.collections:
        if storage.is_remote(collection.location):
            yield from _tried(partial(storage.check, collection.location))


def _judge(configuration: RunConfiguration) -> Iterator[Problem]:
    """The judge is one that there is, and its rubric texts can be read. Its server is among the model services."""
    if configuration.benchmark.judge != "measured":
        from kiwi.benchmark.judges import judge_of

        judge_of(configuration)
    yield from ()


def _listed(configuration: RunConfiguration) -> Iterator[Problem]:
    """The benchmark's list that the gate is to decide on: readable, its media there, and the gate's bounds of it."""
    if configuration.benchmark.listed is None:
        return
    from kiwi.benchmark.listed import check_listed
    from kiwi.registry.gate import needing_truth

    yield from _tried(partial(check_listed, configuration.benchmark.listed, configuration.gate.min_coverage))
    if bounds := needing_truth(configuration.gate):
        more = f" and {len(bounds) - 1} more" if len(bounds) > 1 else ""
        what = f"the gate has a bound on {bounds[0]}{more}, which a list without ground truth cannot show"
        yield Problem(what, "--set gate.floors={} --set gate.ceilings={}")


def _write_and_delete(probe: str) -> None:
    storage.write_bytes(probe, b"kiwi")
    storage.delete(probe)


def _tried(*actions: Callable[[], None]) -> Iterator[Problem]:
    try:
        for action in actions:
            action()
    except KiwiError as error:
        yield Problem(error.message, error.remedy)


def _model_services(configuration: RunConfiguration) -> Iterator[Problem]:
    """Each vision-language model that the configuration asks: its server answers, lets us in, and serves it."""
    curation, benchmark = configuration.curation, configuration.benchmark
    asked = [
        ("score", curation.scorer == "vlm", curation.vlm_score.model),
        ("ground", curation.grounder == "vlm", curation.vlm_ground.model),
        ("verify", curation.verifier == "vlm", curation.vlm_verify.model),
        ("judge", benchmark.judge == "mllm", benchmark.mllm.model),
    ]
    for purpose, needed, model in asked:
        if needed:
            try:
                yield from _model_service(purpose, model)
            except UsageError as error:
                yield Problem(error.message, error.remedy)


def _model_service(purpose: str, model: str) -> Iterator[Problem]:
    from kiwi.services.endpoint import endpoint_of

    endpoint = endpoint_of(purpose)
    shown = f"model server {endpoint.shown} ({purpose})"
    key = endpoint.variable.replace("BASE_URL", "API_KEY")
    answer = _get(f"{endpoint.shown}/models", authorization=endpoint.authorization)
    if isinstance(answer, str):
        yield Problem(f"{shown}: {endpoint.without_secrets(answer)}", f"start it, or mend {endpoint.variable}")
    elif answer.status_code in (401, 403):
        yield Problem(f"{shown} does not let us in ({answer.status_code})", f"set {key} to a key that it accepts")
    elif answer.status_code != 200:
        yield Problem(f"{shown} answers {answer.status_code}", f"is {endpoint.variable} the address that ends in /v1?")
    else:
        served = _served(answer)
        if model not in served:
            yield Problem(f"{shown} does not serve {model!r} but {', '.join(served) or 'nothing'}", "serve that model")


def _served(answer: requests.Response) -> list[str]:
    try:
        return [str(entry["id"]) for entry in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def _weights(configuration: RunConfiguration) -> Iterator[Problem]:
    """Released weights are in a local folder, or may be fetched with the token that we have."""
    curation = configuration.curation
    used: list[WeightsSettings] = []
    if curation.segmenter == "sam3":
        used.append(curation.sam3)
    if curation.synthesizer == "qwen_image_edit":
        used.append(curation.qwen_image_edit)
    if curation.deduplicator == "clip":
        used.append(curation.clip)
    for weights in used:
        if not Path(weights.model).is_dir():
            yield from _repository(weights.model, weights.revision)


def _repository(model: str, revision: str | None) -> Iterator[Problem]:
    if model.startswith(("/", ".")):
        yield Problem(f"no weights in {model}", "put them there, or name a repository of the Hugging Face hub")
        return
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
        if not (cache / f"models--{model.replace('/', '--')}").is_dir():
            yield Problem(f"{model} is not in {cache}, and HF_HUB_OFFLINE is set", "fetch it first, or unset it")
        return
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    # A file of the repository, since a gated one shows its description to everybody.
    answer = _get(f"{hub}/{model}/resolve/{revision or 'main'}/config.json", os.environ.get("HF_TOKEN"), head=True)
    if isinstance(answer, str):
        yield Problem(f"{model}: {hub} does not answer: {answer}", "let the pods reach it, or name a local folder")
    elif answer.status_code in (401, 403):
        yield Problem(
            f"{model} may not be fetched ({answer.status_code})", "accept its licence on the hub, and set HF_TOKEN"
        )
    elif answer.status_code >= 500:
        yield Problem(f"{model}: {hub} answers {answer.status_code}", "try again later, or name a local folder")
    # 404: a repository of several models has no config.json at its root.


def _editor(configuration: RunConfiguration) -> Iterator[Problem]:
    """A released size finds the weights that it starts from, room for its checkpoints, and here a GPU."""
    from kiwi.model.foundation import FOUNDATIONS, faults, needed_gigabytes

    preset, here = configuration.model.preset, not inside_cluster() and "KIWI_NEEDS" not in os.environ
    if here and configuration.trainer.attention != "native":
        yield from _attention(configuration)
    if preset not in FOUNDATIONS:
        return
    for what, remedy in faults(configuration.model):
        yield Problem(what, remedy)
    for problem in _space(configuration.workdir, math.ceil(needed_gigabytes(configuration))):
        said = f"{problem.what} for checkpoints of {preset}"
        yield Problem(said, "name another --workdir, or set trainer.keep=1 and stages.NAME.moments=bfloat16")
    if configuration.trainer.device != "cpu" and here:
        yield from _gpu(preset)


def _attention(configuration: RunConfiguration) -> Iterator[Problem]:
    from kiwi.model.attention import check_attention
    from kiwi.training.parallelize import chosen_device

    try:
        check_attention(configuration.trainer.attention, chosen_device(configuration.trainer.device))
    except UsageError as error:
        yield Problem(f"trainer.attention: {error.message}", error.remedy)


def _gpu(preset: str) -> Iterator[Problem]:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        yield Problem(f"{preset} trains with torch, which is not installed", "pip install 'kiwi[train]'")
        return
    import torch

    if not torch.cuda.is_available():
        yield Problem(f"{preset} needs a GPU, and torch finds none here", "use a machine with one, or --preset tiny")


def _quotas(needs: Needs) -> Iterator[Problem]:
    """Room for the largest task's accelerators, the queue, and the nodes' runtime; only inside a cluster."""
    if not (needs.accelerators or needs.queue or needs.training_runtime):
        return
    if not inside_cluster():
        print("quotas are not checked: this is no pod", file=sys.stderr)
        return
    cluster = Kubernetes.inside()
    namespace = needs.namespace or cluster.namespace
    for quota in cluster.get(f"/api/v1/namespaces/{namespace}/resourcequotas").get("items", []):
        yield from _room(quota, needs.accelerators or {})
    if needs.queue:
        path = f"/apis/kueue.x-k8s.io/v1beta1/namespaces/{namespace}/localqueues/{needs.queue}"
        if cluster.find(path) is None:
            yield Problem(f"there is no queue {needs.queue!r} in {namespace}", "apply infra/k8s, or change `queue:`")
    if needs.training_runtime:
        path = f"/apis/{TRAINER}/{VERSION}/namespaces/{namespace}/trainingruntimes/{needs.training_runtime}"
        if cluster.find(path) is None:
            yield Problem(
                f"there is no TrainingRuntime {needs.training_runtime!r} in {namespace}",
                "install Kubeflow Trainer 2.3 and apply infra/k8s, or set `nodes: 1` in the profile",
            )


def _room(quota: dict[str, Any], accelerators: dict[str, int]) -> Iterator[Problem]:
    hard = quota.get("status", {}).get("hard", {})
    for resource, wanted in accelerators.items():
        limit = hard.get(f"requests.{resource}")
        if limit is not None and int(limit) < wanted:
            name = quota["metadata"]["name"]
            yield Problem(
                f"quota {name!r} allows {limit} {resource}, one task asks for {wanted}",
                "raise the quota (infra/k8s), or lower `accelerators:` of the pool",
            )


def _get(
    url: str,
    token: str | None = None,
    login: tuple[str, str] | None = None,
    parameters: dict[str, str] | None = None,
    *,
    authorization: str = "",
    head: bool = False,
) -> requests.Response | str:
    """The answer, or in words why there is none."""
    import requests

    said = authorization or (f"Bearer {token}" if token else "")
    headers = {"Authorization": said} if said else {}
    try:
        return requests.request(
            "HEAD" if head else "GET", url, params=parameters, headers=headers, auth=login, timeout=SECONDS,
            allow_redirects=False,
        )  # fmt: skip
    except requests.Timeout:
        return f"no answer within {SECONDS:g} s"
    except requests.RequestException as error:
        return f"no connection ({type(error).__name__})"
