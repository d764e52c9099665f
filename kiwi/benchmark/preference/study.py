"""What a preference study is: its samples, the edits to be compared, and the attention checks, kept in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from kiwi.errors import KiwiError, UsageError
from kiwi.workspace import write_json

FORMAT = "kiwi-preference-1"
Kind = Literal["pair", "same", "damaged"]


@dataclass(frozen=True)
class ClipFile:
    """A clip in the study's media folder. `file` is a hash of its content, so that its name says nothing of it."""

    file: str
    width: int
    height: int
    fps: float
    seconds: float


@dataclass(frozen=True)
class StudySample:
    """One source with its instruction and the edits of all sets; `reference` is a picture's file, or None."""

    sample_id: str
    kind: str
    prompt: str
    source: ClipFile
    edits: dict[str, ClipFile]
    reference: str | None = None


@dataclass(frozen=True)
class Check:
    """An attention check: `good` and `bad` are the same clip (kind "same"), or `bad` is a damaged copy."""

    check_id: str
    kind: Kind
    sample_id: str
    good: ClipFile
    bad: ClipFile


@dataclass(frozen=True)
class Item:
    """Something that a rater can be shown: a comparison of two sets on one sample, or an attention check.

    Unflipped, `first` is on the left. `sets` are the names of the two sets, or ("", "") for a check.
    """

    item_id: str
    kind: Kind
    sample: StudySample
    sets: tuple[str, str]
    first: ClipFile
    second: ClipFile


@dataclass(frozen=True)
class Study:
    """Everything that raters can be asked.

    Attributes:
        study_id: hash of what the study was made from; votes carry it.
        sets: names of the edit sets. inputs: what each was made from.
        attention_share: share of attention checks among what a rater sees.
        excluded: samples left out, each with its reason.
    """

    study_id: str
    sets: tuple[str, ...]
    samples: tuple[StudySample, ...]
    checks: tuple[Check, ...]
    attention_share: float
    inputs: Mapping[str, Any]
    excluded: tuple[dict[str, str], ...] = ()

    @cached_property
    def items(self) -> dict[str, Item]:
        """All comparisons (every two sets on every sample), then all checks, by their ids."""
        found = [
            Item(
                f"{sample.sample_id}|{one}|{other}",
                "pair",
                sample,
                (one, other),
                sample.edits[one],
                sample.edits[other],
            )
            for sample in self.samples
            for one, other in combinations(self.sets, 2)
        ]
        samples = {sample.sample_id: sample for sample in self.samples}
        found += [
            Item(each.check_id, each.kind, samples[each.sample_id], ("", ""), each.good, each.bad)
            for each in self.checks
        ]
        return {item.item_id: item for item in found}

    @cached_property
    def comparisons(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items.values() if item.kind == "pair")

    @cached_property
    def media(self) -> frozenset[str]:
        """The files that raters may fetch; nothing else is served."""
        clips = [clip for sample in self.samples for clip in (sample.source, *sample.edits.values())]
        clips += [clip for check in self.checks for clip in (check.good, check.bad)]
        pictures = [sample.reference for sample in self.samples if sample.reference is not None]
        return frozenset([clip.file for clip in clips] + pictures)


def save_study(folder: Path, study: Study) -> None:
    write_json(folder / "study.json", {"format": FORMAT, **asdict(study)})


def load_study(folder: Path) -> Study:
    """The study of a folder. Raises UsageError where there is none, KiwiError where it is damaged."""
    path = folder / "study.json"
    if not path.is_file():
        raise UsageError(
            f"no preference study in {folder}",
            "make one: kiwi bench prefer EDITS EDITS --study DIR (a run's work folder, or a folder with edits.csv)",
        )
    try:
        said = json.loads(path.read_text())
        if said["format"] != FORMAT:
            raise KiwiError(f"{path} is of format {said['format']!r}, not {FORMAT!r}", "make the study again")
        return Study(
            study_id=said["study_id"],
            sets=tuple(said["sets"]),
            samples=tuple(_sample(each) for each in said["samples"]),
            checks=tuple(_check(each) for each in said["checks"]),
            attention_share=said["attention_share"],
            inputs=said["inputs"],
            excluded=tuple(said["excluded"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise KiwiError(
            f"{path} is damaged ({type(error).__name__}: {error})", "restore it, or delete it and make the study again"
        ) from error


def _sample(said: dict[str, Any]) -> StudySample:
    edits = {name: ClipFile(**clip) for name, clip in said["edits"].items()}
    return StudySample(**{**said, "source": ClipFile(**said["source"]), "edits": edits})


def _check(said: dict[str, Any]) -> Check:
    return Check(**{**said, "good": ClipFile(**said["good"]), "bad": ClipFile(**said["bad"])})
