"""Registered model versions: finding them by number or alias, their scores, and their files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError, UsageError
from kiwi.hashing import contents_digest
from kiwi.registry.history import History
from kiwi.registry.lost_aliases import told_of_alias
from kiwi.tracking.server import (
    TrackingError,
    TrackingUnavailable,
    answers,
    connect,
    hide_password,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHALLENGER, CHAMPION, PREVIOUS = ALIASES = ("challenger", "champion", "previous")
RESERVED = re.compile(r"latest|v?\d+", re.IGNORECASE)
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class RegistryError(KiwiError):
    """The registry does not hold what was asked of it, or may not do it."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model. `created` is in seconds since 1970, `source` where its files lie."""

    name: str
    version: str
    aliases: tuple[str, ...]
    created: float
    run_id: str
    source: str
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, Any] | None:
        """What the gate compares, as recorded on registration: overall, criteria, coverage, revision, judge."""
        said = self.tags.get("kiwi.scores")
        return {**json.loads(said), "version": self.version} if said else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "aliases": list(self.aliases),
            "created": self.created,
            "run_id": self.run_id,
            "source": self.source,
            "dataset_version": self.tags.get("dataset.version"),
            "dataset_revision": self.tags.get("dataset.revision"),
            "configuration": self.tags.get("kiwi.configuration"),
            "decision": self.tags.get("kiwi.decision"),
            "reasons": json.loads(self.tags.get("kiwi.reasons", "[]")),
            "scores": self.scores,
        }


def checked_name(name: str) -> str:
    """A model name that MLflow and a file system take. Raises UsageError."""
    if not MODEL_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no model name", "use letters, digits, '.', '_' and '-'")
    return name


def checked_alias(alias: str) -> str:
    """An alias that kiwi moves. Raises UsageError; MLflow itself would take "1" and read it as nobody means it."""
    if alias in ALIASES:
        return alias
    remedy = f"use a version's number or one of: {', '.join(ALIASES)}"
    if not alias.strip():
        raise UsageError("an empty name is no alias", remedy)
    if RESERVED.fullmatch(alias):
        raise UsageError(f"{alias!r} is no alias: MLflow keeps such names for versions", remedy)
    raise UsageError(f"{alias!r} is neither a version nor an alias", remedy)


def list_models(uri: str) -> list[str]:
    """Names of all registered models."""
    client = connect(uri)
    with answers(uri):
        return sorted(str(model.name) for model in client.search_registered_models(max_results=1000))


def list_versions(uri: str, name: str) -> list[ModelVersion]:
    """All versions of a model, newest first; none where the model was never registered."""
    client = connect(uri)
    with answers(uri):
        return versions(client, checked_name(name))


def versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    aliases = alias_map(client, name)
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        found += [_version(row, aliases) for row in page]
        token = page.token
        if not token:
            return sorted(found, key=lambda version: -int(version.version))


def alias_map(client: MlflowClient, name: str) -> dict[str, str]:
    """Alias to version of a model; empty where the model was never registered."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def _version(row: Any, aliases: dict[str, str]) -> ModelVersion:
    number = str(row.version)
    mine = tuple(sorted(alias for alias, version in aliases.items() if version == number))
    created = row.creation_timestamp / 1000
    return ModelVersion(row.name, number, mine, created, row.run_id or "", row.source, dict(row.tags))


def show(uri: str, name: str, alias_or_version: str = CHAMPION) -> ModelVersion:
    """One version by number ("3", "v3") or alias. Raises RegistryError naming what there is."""
    checked_name(name)
    wanted = alias_or_version.strip()
    number = wanted.removeprefix("v") if wanted.removeprefix("v").isdigit() else None
    if number is None:
        checked_alias(wanted)
    found = list_versions(uri, name)
    for version in found:
        if version.version == number or (number is None and wanted in version.aliases):
            return version
    if not found:
        check_registered(uri, name)
        raise RegistryError(
            f"{name} has no version any more", f"`kiwi model history --model {name}` says what there was"
        )
    has = ", ".join(f"{version.version}{_mark(version)}" for version in found[:10])
    if number is None:
        told = told_of_alias(History.of(uri).entries(name), wanted, {version.version for version in found})
        raise RegistryError(f"{name} has no {wanted}: {told}", f"newest versions: {has}")
    raise RegistryError(f"{name} has no version {wanted!r}", f"newest versions: {has}")


def check_registered(uri: str, name: str) -> None:
    """Raises RegistryError for a model that the registry does not know, naming those that it does."""
    models = list_models(uri)
    if checked_name(name) not in models:
        known = ", ".join(models) or "none"
        raise RegistryError(f"no model {name!r} in the registry at {hide_password(uri)}", f"registered models: {known}")


def _mark(version: ModelVersion) -> str:
    return f" ({', '.join(version.aliases)})" if version.aliases else ""


def champion(configuration: RunConfiguration) -> ModelVersion | None:
    """The champion of the configured model; None where there is none."""
    found = list_versions(tracking_uri(configuration), configuration.model_name)
    return next((version for version in found if CHAMPION in version.aliases), None)


def recorded_scores(version: ModelVersion, revision: str, judge: str) -> dict[str, Any] | None:
    """A version's recorded scores where they are of this benchmark revision and judge; None otherwise."""
    scores = version.scores
    return scores if scores and scores.get("revision") == revision and scores.get("judge") == judge else None


def download_model(
    where: RunConfiguration | str, name: str | None = None, alias_or_version: str = CHAMPION, out: Path | None = None
) -> Path:
    """A local folder with a version's model, ready for `KiwiEditPipeline.from_pretrained`.

    Args:
        where: a configuration, or an MLflow address.
        name: the model; the configuration's where None.
        out: a folder to download into. Without it files that lie on this machine are used in place.

    Raises RegistryError where the version or its files are gone or its files are not those that were registered.
    """
    if isinstance(where, RunConfiguration):
        uri, name = tracking_uri(where), name or where.model_name
    else:
        uri = where
    if name is None:
        raise UsageError("no model was named", "name one, such as kiwi-edit-tiny")
    version = show(uri, name, alias_or_version)
    gone = RegistryError(
        f"the files of {name} version {version.version} are gone from {version.source}",
        "register the model again, or choose another version (`kiwi model list`)",
    )
    connect(uri)
    from mlflow.artifacts import download_artifacts

    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        with answers(uri):
            folder = Path(
                download_artifacts(artifact_uri=version.source, dst_path=str(out) if out else None, tracking_uri=uri)
            )
    except TrackingUnavailable:
        raise
    except (OSError, TrackingError) as error:
        raise gone from error
    if not folder.is_dir():
        raise gone
    if (said := version.tags.get("model.digest")) and said != contents_digest(folder):
        raise RegistryError(
            f"the files of {name} version {version.version} in {folder} are not those that were registered",
            "restore them from a backup, or choose another version (`kiwi model list`)",
        )
    return folder


def checked_content(uri: str, version: ModelVersion) -> str:
    """The digest of a version's files, computed now. Files on this machine are read in place, others fetched.

    Raises RegistryError where they are gone, are not those that were registered, or no digest was registered.
    """
    if not (said := version.tags.get("model.digest")):
        raise RegistryError(
            f"{version.name} version {version.version} was registered without a digest of its files",
            "register it by `kiwi run`, which records one",
        )
    if Path(version.source.removeprefix("file://")).is_dir():
        download_model(uri, version.name, version.version)
        return said
    with TemporaryDirectory(prefix="kiwi-content-") as folder:
        download_model(uri, version.name, version.version, Path(folder))
    return said
