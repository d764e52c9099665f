"""The pipeline's steps at the registry: register the trained model, decide on it, and promote or hold it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError
from kiwi.hashing import contents_digest
from kiwi.registry.approvals import NotApproved, policy_tags
from kiwi.registry.gate import Decision, decide_gate
from kiwi.registry.history import Entry, default_who
from kiwi.registry.promotion import ChampionChanged, Change, RolledBack, changing, promote
from kiwi.registry.versions import (
    CHALLENGER,
    CHAMPION,
    ModelVersion,
    RegistryError,
    checked_name,
    list_versions,
    show,
    versions,
)
from kiwi.tracking.delivery import task_mlflow_run
from kiwi.tracking.records import TaskRun, attempt_of
from kiwi.tracking.server import answers, connect, tag_text, tracking_uri
from kiwi.workspace import Workspace, read_json, write_json

RECORDED = ("overall", "overall_sample_weighted", "criteria", "coverage", "revision", "judge", "samples")
"""What of scores.json a version carries in its tags: what the gate compares."""


def register(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """Registers the last stage's checkpoint as a new version with the alias `challenger`.

    The model folder becomes an MLflow artifact; the dataset's commit, the configuration's hash, the benchmark's
    revision, the judge and the scores become tags. A retry of the same attempt with the same checkpoint returns the
    same version. Writes `<workspace>/model.json` and returns it: {"name", "version", "aliases", "run_id",
    "checkpoint", "tracking_uri", "source"}. Raises KiwiError where training or judging has left nothing,
    TrackingUnavailable where the registry is away.
    """
    workspace = Workspace.of(configuration)
    trained = _result(workspace.root / "training" / f"{configuration.stages[-1].name}.json", "trained model")
    scores = _result(workspace.root / "benchmark" / "scores.json", "judged benchmark")
    folder = _model_folder(Path(trained["checkpoint"]))
    uri, name, attempt = tracking_uri(configuration), checked_name(configuration.model_name), attempt_of(configuration)
    key = str(trained["key"])
    if (version := _registered(list_versions(uri, name), attempt, key)) is None:
        run_id, source = _upload(configuration, folder, scores, task)
        tags = _tags(configuration, folder, key, scores)
    with changing(uri, name) as change:
        version = version or _registered(versions(change.client, name), attempt, key)
        if version is None:
            version = _create(change, source, run_id, tags)
        else:
            task.note("reused")
        if CHALLENGER not in version.aliases and CHAMPION not in version.aliases and _newest(change, version):
            before = change.aliases.get(CHAMPION)
            who = f"pipeline ({default_who()})"
            entry = Entry(name, "register", version.version, before, before, who, f"trained by {attempt}", attempt)
            change.make({CHALLENGER: version.version}, entry)
        version = change.version(version.version)
    said = _write_model(configuration, version, key)
    task.tags({"model.name": name, "model.version": version.version})
    if isinstance(scores.get("overall"), int | float):
        task.metrics({"overall": scores["overall"]})
    return said


def _upload(configuration: RunConfiguration, folder: Path, scores: dict[str, Any], task: TaskRun) -> tuple[str, str]:
    """Puts the model's files and scores into the task's MLflow run: (run id, where the model lies). Before the
    registry is held, because a large model takes minutes."""
    stem = task.name if task.shard is None else f"{task.name}-{task.shard}"
    run_id, artifacts = task_mlflow_run(configuration, stem)
    uri = tracking_uri(configuration)
    client = connect(uri)
    with answers(uri):
        client.log_artifacts(run_id, str(folder), "model")
        client.log_dict(run_id, scores, "scores.json")
        client.log_text(run_id, configuration.canonical(), "configuration.json")
        for path, place in _edits(configuration, scores):
            client.log_artifact(run_id, str(path), place)
    return run_id, f"{artifacts.rstrip('/')}/model"


def _edits(configuration: RunConfiguration, scores: dict[str, Any]) -> list[tuple[Path, str]]:
    """The edits of the benchmark's chosen samples, and the list of all edits: (file, folder in MLflow)."""
    benchmark = Workspace.of(configuration).root / "benchmark"
    listing = benchmark / "edits.json"
    if not listing.is_file():
        return []
    edits = read_json(listing)
    if edits.get("key") != scores.get("key"):
        return []
    shown = [benchmark / row["files"]["result"] for row in edits.get("samples", ()) if "result" in row["files"]]
    return [(listing, "edits"), *((path, f"edits/{path.parent.name}") for path in shown if path.is_file())]


def _tags(configuration: RunConfiguration, folder: Path, key: str, scores: dict[str, Any]) -> dict[str, str]:
    attempt = attempt_of(configuration)
    tags = {
        "kiwi.attempt": attempt,
        "kiwi.checkpoint": key,
        "kiwi.configuration": configuration.identity(),
        "kiwi.preset": configuration.preset,
        "kiwi.scores": json.dumps({name: scores[name] for name in RECORDED if name in scores}),
        "benchmark.revision": scores.get("revision"),
        "benchmark.judge": scores.get("judge"),
        "benchmark.overall": scores.get("overall"),
        "model.digest": contents_digest(folder),
        "model.bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        **_dataset_tags(configuration),
        **policy_tags(configuration.gate, default_who()),
    }
    return {name: tag_text(value) for name, value in tags.items() if value is not None}


def _create(change: Change, source: str, run_id: str, tags: dict[str, str]) -> ModelVersion:
    """A new version with all its tags in one call, so that none is ever half described."""
    from mlflow.exceptions import MlflowException

    try:
        change.client.create_registered_model(change.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    said = f"Trained by {tags['kiwi.attempt']} with preset {tags['kiwi.preset']}."
    made = change.client.create_model_version(change.name, source=source, run_id=run_id, tags=tags, description=said)
    return change.version(str(made.version))


def decide(configuration: RunConfiguration, task: TaskRun) -> str:
    """Puts the registered candidate before the gate; returns "promote" or "hold".

    Writes `<workspace>/decision.json`: {"decision", "reasons", "compared_with", "checks", "candidate": {"name",
    "version", "overall"}, "champion": {"version", "overall"} | null, "attempt"}, and the decision on the version.
    A retry of the same attempt returns what was decided.
    """
    workspace = Workspace.of(configuration)
    model = _result(workspace.root / "model.json", "registered model")
    attempt = attempt_of(configuration)
    if workspace.decision.exists():
        former = read_json(workspace.decision)
        if former["attempt"] == attempt and former["candidate"]["version"] == model["version"]:
            task.note("reused")
            return str(former["decision"])
    uri = tracking_uri(configuration)
    with changing(uri, model["name"]) as change:
        said = _decide(configuration, change, model)
    task.tags({"decision": said["decision"], "compared_with": said["compared_with"]})
    for reason in said["reasons"]:
        task.note(reason)
    return str(said["decision"])


def _decide(configuration: RunConfiguration, change: Change, model: dict[str, Any]) -> dict[str, Any]:
    """The gate against the champion of this moment; recorded on the version, in the history and in the workspace."""
    workspace = Workspace.of(configuration)
    scores = _result(workspace.root / "benchmark" / "scores.json", "judged benchmark")
    candidate = change.version(str(model["version"]))
    number = change.aliases.get(CHAMPION)
    champion = change.version(number) if number and number != candidate.version else None
    recorded = None if champion is None else (champion.scores or {"version": champion.version})
    verdict: Decision = decide_gate(scores, recorded, configuration.gate)
    compared = scores.get("champion") or recorded or {}
    said = {
        **verdict.as_dict(),
        "candidate": {"name": candidate.name, "version": candidate.version, "overall": scores.get("overall")},
        "champion": champion and {"version": champion.version, "overall": compared.get("overall")},
        "attempt": attempt_of(configuration),
    }
    client, name = change.client, candidate.name
    client.set_model_version_tag(name, candidate.version, "kiwi.decision", verdict.decision)
    reasons = list(verdict.reasons)
    while len(json.dumps(reasons)) > 4000:
        reasons = reasons[:-1]
    client.set_model_version_tag(name, candidate.version, "kiwi.reasons", json.dumps(reasons))
    client.set_model_version_tag(name, candidate.version, "kiwi.compared_with", verdict.compared_with)
    against = champion.version if champion else "none"
    client.set_model_version_tag(name, candidate.version, "kiwi.compared_version", against)
    action = "hold" if verdict.decision == "hold" else "pass"
    why = " ".join(verdict.reasons)
    change.note(Entry(name, action, candidate.version, number, number, "gate", why, said["attempt"]))
    write_json(workspace.decision, said)
    return said


def promote_candidate(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """Carries out a decision to promote. Where another champion came in between, the gate decides anew against it.

    Returns {"name", "version", "aliases", "decision"}; model.json and decision.json then say what happened. A version
    that people have to approve, or that was rolled back since, stays where it is: "waits" says for what and why.
    """
    workspace = Workspace.of(configuration)
    model = _result(workspace.root / "model.json", "registered model")
    decision = _result(workspace.decision, "decision")
    uri, name = tracking_uri(configuration), str(model["name"])
    for _ in range(20):
        if decision["decision"] != "promote":
            return hold_candidate(configuration, task)
        expected = decision["champion"]["version"] if decision["champion"] else None
        who = f"pipeline ({default_who()})"
        try:
            version = promote(
                uri,
                name,
                str(model["version"]),
                why=str(decision["reasons"][0]),
                who=who,
                run=attempt_of(configuration),
                expected_champion=expected,
            )
        except ChampionChanged as error:
            task.note(error.message)
            with changing(uri, name) as change:
                decision = _decide(configuration, change, model)
            continue
        except (NotApproved, RolledBack) as error:
            task.note(error.message)
            waits = {"for": "approvals" if isinstance(error, NotApproved) else "rolled back", "why": error.message}
            return {**_left(configuration, task, waits), "decision": "promote"}
        task.tags({"model.aliases": ",".join(version.aliases)})
        return {**_write_model(configuration, version, str(model["checkpoint"])), "decision": "promote"}
    raise RegistryError(f"{name}: the champion changed 20 times while promoting", "promote later: `kiwi model promote`")


def hold_candidate(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """Leaves the candidate a challenger; the gate's reasons are on it. Returns as promote_candidate does."""
    return {**_left(configuration, task, None), "decision": "hold"}


def _left(configuration: RunConfiguration, task: TaskRun, waits: dict[str, str] | None) -> dict[str, Any]:
    """The candidate as it is; `waits` is {"for", "why"} of one that the gate let through."""
    model = _result(Workspace.of(configuration).root / "model.json", "registered model")
    version = show(tracking_uri(configuration), str(model["name"]), str(model["version"]))
    task.tags({"model.aliases": ",".join(version.aliases)})
    return _write_model(configuration, version, str(model["checkpoint"]), waits)


def _write_model(
    configuration: RunConfiguration, version: ModelVersion, key: str, waits: dict[str, str] | None = None
) -> dict[str, Any]:
    said: dict[str, Any] = {
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "run_id": version.run_id,
        "checkpoint": key,
        "source": version.source,
        "tracking_uri": tracking_uri(configuration),
        "waits": waits,
    }
    write_json(Workspace.of(configuration).root / "model.json", said)
    return said


def _registered(known: list[ModelVersion], attempt: str, key: str) -> ModelVersion | None:
    """The version that an earlier try of this attempt registered."""
    for version in known:
        if version.tags.get("kiwi.attempt") == attempt and version.tags.get("kiwi.checkpoint") == key:
            return version
    return None


def _newest(change: Change, version: ModelVersion) -> bool:
    return all(int(other.version) <= int(version.version) for other in versions(change.client, change.name))


def _dataset_tags(configuration: RunConfiguration) -> dict[str, Any]:
    path = Workspace.of(configuration).root / "dataset.json"
    said = read_json(path) if path.exists() else {}
    return {f"dataset.{key}": said.get(key) for key in ("version", "revision", "digest")}


def _model_folder(checkpoint: Path) -> Path:
    """The folder that from_pretrained loads: `model` inside a checkpoint folder, or the named folder itself."""
    folder = checkpoint / "model" if (checkpoint / "model").is_dir() else checkpoint
    if not folder.is_dir() or not any(folder.iterdir()):
        raise RegistryError(f"no model in {folder}", "train again: `kiwi run` resumes where it stopped")
    return folder


def _result(path: Path, what: str) -> dict[str, Any]:
    if not path.exists():
        raise KiwiError(f"{path} is missing, so there is no {what} here", "run the tasks before this one first")
    said: dict[str, Any] = read_json(path)
    return said
