"""The command that does a run again: the preset, and whatever else was set."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError

ELSEWHERE = ("workspace", "tracking_uri", "source.listing_sha256", "store", "threads", "seed")  # options of their own


def run_command(configuration: RunConfiguration) -> str:
    """`kiwi run` with the options that give this configuration; the preset alone where it is not known here."""
    words = ["kiwi", "run", "--preset", configuration.preset]
    if configuration.source.pairs:
        words += ["--pairs", configuration.source.pairs]
    for each in configuration.source.collections:
        words += ["--source", f"{each.adapter}={each.location}"]
    if configuration.seed:
        words += ["--seed", str(configuration.seed)]
    for path, value in _set(configuration):
        words += ["--set", f"{path}={_text(value)}"]
    return shlex.join([*words, "--workdir", configuration.workspace])


def _text(value: Any) -> str:
    """A value as `--set` reads it back: plain text where that is not mistaken for JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value, ensure_ascii=False)


def _set(configuration: RunConfiguration) -> list[tuple[str, Any]]:
    """The settings that differ from the preset's."""
    from kiwi.presets import build

    sources = [f"{each.adapter}={each.location}" for each in configuration.source.collections]
    try:
        preset = build(
            configuration.preset,
            workspace=configuration.workdir,
            tracking_uri=configuration.tracking_uri,
            pairs=Path(configuration.source.pairs) if configuration.source.pairs else None,
            collections=sources,
            seed=configuration.seed,
            threads=configuration.threads,
        )
    except KiwiError:
        return []
    now, before = configuration.model_dump(mode="json"), preset.model_dump(mode="json")
    return [(path, value) for path, value in _differences(before, now) if path not in ELSEWHERE]


def _differences(before: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if before == now or where in ELSEWHERE:
        return
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys() and "." not in "".join(now):
        for key in now:
            yield from _differences(before[key], now[key], f"{where}.{key}" if where else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (was, value) in enumerate(zip(before, now, strict=True)):
            yield from _differences(was, value, f"{where}.{index}")
    else:
        yield where, now
