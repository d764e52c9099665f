"""Presets: whole configurations as Python functions, and the command line's overrides on them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kiwi.configuration import CollectionSettings, RunConfiguration, canonical_json
from kiwi.errors import UsageError
from kiwi.presets.tiny import tiny
from kiwi.presets.wan import WAN_PRESETS

Preset = Callable[..., RunConfiguration]

PRESETS: dict[str, Preset] = {"tiny": tiny, **WAN_PRESETS}


def build(
    preset: str,
    *,
    workspace: Path,
    tracking_uri: str,
    pairs: Path | None = None,
    collections: Sequence[str] = (),
    store: str | None = None,
    seed: int = 0,
    threads: int = 2,
    overrides: Sequence[str] = (),
) -> RunConfiguration:
    """The preset's configuration for this work folder, with `key.path=value` overrides applied in order.

    Args:
        pairs: a CSV of the user's own pairs, or a folder with pairs.csv.
        collections: `ADAPTER=LOCATION` of published collections, curated one after the other.
        store: where curation keeps its parts; the work folder where none is given.

    Raises:
        UsageError: an unknown preset, an override without '=', of a setting that there is not, or with a value that
            does not fit.
    """
    if preset not in PRESETS:
        raise UsageError(f"no preset {preset!r}", f"presets: {', '.join(sorted(PRESETS))}")
    if pairs and collections:
        raise UsageError("--pairs and --source name two sources", "give one of them")
    chosen = PRESETS[preset](
        workspace=str(workspace),
        tracking_uri=tracking_uri,
        pairs=str(pairs) if pairs else None,
        collections=tuple(_collection(said) for said in collections),
        seed=seed,
    )
    values: dict[str, Any] = chosen.model_dump(mode="json")
    values["threads"] = threads
    values["store"] = store
    if pairs:
        values["source"]["listing_sha256"] = _listing_digest(pairs)
    return _settled(values, overrides)


def overridden(configuration: RunConfiguration, overrides: Sequence[str]) -> RunConfiguration:
    """A configuration with `key.path=value` overrides applied in order. Raises UsageError as `build` does."""
    return _settled(configuration.model_dump(mode="json"), overrides)


def _settled(values: dict[str, Any], overrides: Sequence[str]) -> RunConfiguration:
    for override in overrides:
        _apply(values, override)
    for name in ("backbone", "language_model"):  # tasks run in folders of their own
        if said := values["model"][name]:
            values["model"][name] = str(Path(said).absolute())
    name, sign, location = str(values["benchmark"]["listed"] or "").partition("=")
    if location and "://" not in location:
        values["benchmark"]["listed"] = f"{name}{sign}{Path(location).absolute()}"
    return RunConfiguration.parse(canonical_json(values))


def _collection(said: str) -> CollectionSettings:
    adapter, sign, location = said.partition("=")
    if not sign or not adapter or not location:
        raise UsageError(f"--source {said!r} is not NAME=LOCATION", "for example --source reco=/data/ReCo")
    if "://" not in location:
        location = str(Path(location).absolute())
    return CollectionSettings(adapter=adapter, location=location)


def _listing_digest(pairs: Path) -> str | None:
    """SHA-256 of a pairs list and of the sizes and times of the files it names; None where there is no list.

    A list or a clip that changed is curated anew.
    """
    listing = pairs / "pairs.csv" if pairs.is_dir() else pairs
    if not listing.is_file():
        return None
    content = listing.read_bytes()
    seen = hashlib.sha256(content)
    for cell in sorted(set(re.split(rb"[,;\r\n]", content))):
        name = cell.strip(b' "').decode("utf-8", "replace")
        if "." in name and "\0" not in name and len(name) < 1024:
            file = listing.parent / name
            if file.is_file():
                known = file.stat()
                seen.update(f"{name}:{known.st_size}:{known.st_mtime_ns}".encode())
    return seen.hexdigest()


def _apply(values: dict[str, Any], override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise UsageError(f"override {override!r} is not KEY=VALUE", "for example --set curation.min_score=5")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    holder: Any = values
    *parents, last = path.split(".")
    for name in parents:
        holder = _inside(holder, name, path)
    if isinstance(holder, list):
        holder[_position(holder, last, path)] = value
    elif not isinstance(holder, dict):
        raise UsageError(f"override {path!r}: there are no settings below {parents[-1]!r}", "")
    elif last not in holder and parents[-1:] not in (["floors"], ["ceilings"], ["mix"]):
        raise UsageError(f"override {path!r}: no setting {last!r}", f"settings here: {', '.join(holder)}")
    else:
        holder[last] = value


def _inside(holder: Any, name: str, path: str) -> Any:
    if isinstance(holder, list):
        return holder[_position(holder, name, path)]
    if isinstance(holder, dict) and name in holder:
        return holder[name]
    known = ", ".join(holder) if isinstance(holder, dict) else "none"
    raise UsageError(f"override {path!r}: no setting {name!r}", f"settings here: {known}")


def _position(items: list[Any], name: str, path: str) -> int:
    """A list's item by number, or by its `name` (stages.stage1.steps=20)."""
    for index, item in enumerate(items):
        if name == str(index) or (isinstance(item, dict) and item.get("name") == name):
            return index
    names = ", ".join(item["name"] if isinstance(item, dict) else str(index) for index, item in enumerate(items))
    raise UsageError(f"override {path!r}: no item {name!r}", f"items here: {names}")
