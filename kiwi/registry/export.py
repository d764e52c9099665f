"""Exporting a version: its model folder as registered, and beside it where it came from and how it was judged.

The exported folder is the model folder itself, so whatever loads a model loads it; what the registry knows lies in its
subfolder `registry`. It is written under another name, read back against its hashes, and renamed: whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi.errors import UsageError
from kiwi.hashing import contents_digest, sha256_of
from kiwi.registry.approvals import approved_by
from kiwi.registry.history import Entry, History
from kiwi.registry.versions import CHAMPION, ModelVersion, RegistryError, download_model, show
from kiwi.tracking.server import answers, connect, hide_password

FACTS = "registry"
RECORDS = ("scores.json", "configuration.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Exported:
    """A folder that was written; `missing` names what the version's MLflow run does not keep."""

    folder: Path
    name: str
    version: str
    digest: str
    files: int
    bytes: int
    missing: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "folder": str(self.folder), "missing": list(self.missing)}


def export_model(uri: str, name: str, alias_or_version: str = CHAMPION, *, out: Path) -> Exported:
    """Writes a version (number or alias) to `out`, a folder that is not there yet or is empty.

    Raises UsageError where something is there, RegistryError where the version or its files are gone, changed, pickled
    or were registered without a digest, TrackingUnavailable, HistoryUnavailable.
    """
    out = out.absolute()
    _check_free(out)
    version = show(uri, name, alias_or_version)
    if not (digest := version.tags.get("model.digest")):
        raise RegistryError(
            f"{name} version {version.version} was registered without a digest of its files, so they cannot be checked",
            "choose another version (`kiwi model list`)",
        )
    told = [entry for entry in History.of(uri).entries(name) if entry.version == version.version]
    with _staging(out) as staging:
        folder = _fetch(uri, version, staging)
        facts = folder / FACTS
        facts.mkdir()
        missing = _records(uri, version, facts)
        _write_facts(uri, version, told, folder)
        files, size = _check(folder, version)
        _check_free(out)
        _put(folder, out)
    return Exported(out, name, version.version, digest, files, size, missing)


def check_export(folder: Path) -> int:
    """Reads an exported folder against its hashes; returns how many files it holds. Raises RegistryError naming the
    first that is missing, changed or foreign."""
    path = folder / FACTS / "provenance.json"
    remedy = "export it again: `kiwi model export`"
    try:
        listed: dict[str, str] = json.loads(path.read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{folder} is no exported model: {path} cannot be read", remedy) from error
    found = {each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()}
    found.discard(f"{FACTS}/provenance.json")
    for name in sorted(found ^ set(listed)):
        raise RegistryError(
            f"{folder / name} is {'not listed in ' + str(path) if name in found else 'missing'}", remedy
        )
    for name, digest in sorted(listed.items()):
        if sha256_of(folder / name) != digest:
            raise RegistryError(f"{folder / name} is not the file that was exported", remedy)
    return len(listed) + 1


def _check_free(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is a file", "name a folder that is not there yet, with --out")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty", "name a folder that is not there yet, with --out")


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is gone afterwards."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise UsageError(f"nothing can be written beside {out}: {error.strerror}", "name another --out") from error
    try:
        yield folder
    except OSError as error:
        raise RegistryError(
            f"{out} could not be written: {error}", "nothing is there; make room and try again"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(uri: str, version: ModelVersion, staging: Path) -> Path:
    """A copy of the version's files in a folder of the staging folder."""
    fetched = download_model(uri, version.name, version.version, staging / "fetched")
    folder = staging / "model"
    os.rename(fetched, folder)
    pickled = sorted(path for path in folder.rglob("*") if path.suffix in PICKLES)
    if pickled:
        raise RegistryError(
            f"{version.name} version {version.version} holds the pickle {pickled[0].relative_to(folder)}",
            "pickles are not exported; convert the model with `kiwi model convert`",
        )
    if (folder / FACTS).exists():
        raise RegistryError(
            f"the model folder of version {version.version} has {FACTS!r} in it already", "export it from where it came"
        )
    return folder


def _records(uri: str, version: ModelVersion, facts: Path) -> tuple[str, ...]:
    """Fetches what the version's MLflow run keeps; returns the names of what it does not keep."""
    client = connect(uri)
    with answers(uri):
        kept = {each.path for each in client.list_artifacts(version.run_id)} if version.run_id else set()
        for name in RECORDS:
            if name in kept:
                client.download_artifacts(version.run_id, name, str(facts))
    return tuple(name for name in RECORDS if name not in kept)


def _write_facts(uri: str, version: ModelVersion, told: list[Entry], folder: Path) -> None:
    facts, said = folder / FACTS, version.as_dict()
    decision = {
        "decision": said["decision"],
        "reasons": said["reasons"],
        "compared_with": version.tags.get("kiwi.compared_with"),
        "compared_version": version.tags.get("kiwi.compared_version"),
        "approved_by": list(approved_by(told, version)),
        "forced": any(entry.forced for entry in told),
    }
    _write(facts / "decision.json", decision)
    (facts / "card.md").write_text(_card(folder, version, decision))
    (facts / "README.md").write_text(_how_to_use(version))
    hashes = {
        path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    provenance = {
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "registered": version.created,
        "tracking_uri": hide_password(uri),
        "run_id": version.run_id,
        "model_digest": version.tags["model.digest"],
        "dataset": {key: version.tags.get(f"dataset.{key}") for key in ("version", "revision", "digest")},
        "configuration": said["configuration"],
        "benchmark": {"revision": version.tags.get("benchmark.revision"), "judge": version.tags.get("benchmark.judge")},
        "history": [entry.as_dict() for entry in told],
        "files": hashes,
    }
    _write(facts / "provenance.json", provenance)


def _card(folder: Path, version: ModelVersion, decision: dict[str, Any]) -> str:
    """The model's own card, and what the registry knows."""
    own = folder / "README.md"
    tags = version.tags
    lines = [
        own.read_text().rstrip() if own.is_file() else f"# {version.name}",
        "",
        f"## Version {version.version} of {version.name}",
        "",
        f"- dataset: `{tags.get('dataset.version', 'unknown')}` at `{tags.get('dataset.revision', 'unknown')}`",
        f"- configuration: `{tags.get('kiwi.configuration', 'unknown')}`",
        f"- benchmark: {tags.get('benchmark.overall', 'no score')}, revision `{tags.get('benchmark.revision', '?')}`, "
        f"judge `{tags.get('benchmark.judge', '?')}`",
        f"- decision: {decision['decision'] or 'none'}" + (", promoted by force" if decision["forced"] else ""),
        *(f"  - {reason}" for reason in decision["reasons"]),
        f"- approved by: {', '.join(decision['approved_by']) or 'nobody'}",
        f"- files: SHA-256 `{tags['model.digest']}`",
    ]
    return "\n".join(lines) + "\n"


def _how_to_use(version: ModelVersion) -> str:
    return (
        f"# {version.name}, version {version.version}\n\n"
        "The folder above this one is a whole model: safetensors and JSON, no pickles. It needs no registry.\n\n"
        '    kiwi edit clip.mp4 --prompt "Make the red circle blue." --model FOLDER --out edited.mp4\n\n'
        "In Python: `KiwiEditPipeline.from_pretrained(FOLDER)` of `kiwi.editing.pipeline`.\n\n"
        "- `card.md`: what it is, what it was made from, what it scored\n"
        "- `scores.json`, `decision.json`: the benchmark, and what the gate and people said\n"
        "- `configuration.json`: the configuration that trained it\n"
        "- `provenance.json`: the registry's history of this version, and SHA-256 of every other file\n"
    )


def _check(folder: Path, version: ModelVersion) -> tuple[int, int]:
    """Reads back what was written, and puts it on the disk: (files, bytes)."""
    files = check_export(folder)
    facts = folder / FACTS
    os.rename(facts, aside := folder.with_name(FACTS))
    same = contents_digest(folder) == version.tags["model.digest"]
    os.rename(aside, facts)
    if not same:
        raise RegistryError(f"the copy of version {version.version} is not what was registered", "try again")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return files, sum(path.stat().st_size for path in paths)


def _put(folder: Path, out: Path) -> None:
    """Renames into place; a folder that got files meanwhile is left as it is."""
    try:
        os.rename(folder, out)
    except OSError as error:
        raise RegistryError(f"{out} could not be put in place: {error.strerror}", "name another --out") from error


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
