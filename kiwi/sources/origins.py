"""What the paths of the known collections tell: the dataset and licence a pair comes from, and its kind of edit.

RefVIE and the authors' training lists mix the collections; their paths keep the collections' own folders.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from kiwi.sources.tasks import TASKS, KindOf, declared, guessed, guessed_local, guessed_swap

UNSPECIFIED_LICENSE = "unspecified"


class Origin(NamedTuple):
    """A collection as rows name it, and its licence (SPDX)."""

    dataset: str
    license: str


DITTO = Origin("Ditto-1M", "CC-BY-NC-SA-4.0")
RECO = Origin("ReCo-Data", "CC-BY-NC-SA-4.0")
OPENVE = Origin("OpenVE-3M", "CC-BY-NC-4.0")
GPT_IMAGE_EDIT = Origin("GPT-Image-Edit-1.5M", "CC-BY-4.0")
NHR_EDIT = Origin("NHR-Edit", "Apache-2.0")

_MARKS = (
    (re.compile(r"ditto", re.IGNORECASE), DITTO),
    (re.compile(r"openve", re.IGNORECASE), OPENVE),
    (re.compile(r"reco(?:[-_]?data)?(?:[-_]?\d+)?$", re.IGNORECASE), RECO),
    (re.compile(r"gpt[-_]?(?:image[-_]?)?edit|hqedit$|omniedit$|ultraedit$", re.IGNORECASE), GPT_IMAGE_EDIT),
    (re.compile(r"nhr[-_]?edit", re.IGNORECASE), NHR_EDIT),
)
_OPENVE_WORDS = (
    "background_change",
    "camera_edit",
    "creative_edit",
    "global_style",
    "local_add",
    "local_change",
    "local_remove",
    "subtitle_edit",
    "subtitles_edit",
)


def origin_of(path: str) -> tuple[Origin | None, KindOf]:
    """The collection that a target's path names (None: none that is known) and how its pairs' kinds are told."""
    return _of_folder(tuple(path.split("/")[:-1]))


@lru_cache(maxsize=4096)
def _of_folder(folders: tuple[str, ...]) -> tuple[Origin | None, KindOf]:
    for index, folder in enumerate(folders):
        for mark, origin in _MARKS:
            if mark.match(folder):
                return origin, _KINDS[origin](folders[index:])
    return None, guessed


@lru_cache(maxsize=4096)
def ditto_kind(words: tuple[str, ...]) -> KindOf:
    """By the edited clip's folder, or the listing's name: `global_style1`, `global_freeform2`, `local`, `sim2real`.

    Its local edits are not told apart further; `guessed_local` does, and the rows say that it was a guess.
    """
    for word in words:
        name = re.sub(r"\d+$", "", word.lower())
        if name == "local" or name.startswith("local_"):
            return guessed_local
        for known in ("global_style", "global_freeform", "sim2real"):
            if name.startswith(known):
                return declared(known)
    return guessed


@lru_cache(maxsize=4096)
def openve_kind(words: tuple[str, ...]) -> KindOf:
    """By the category's name, which the lists and the folders bear (`local_add`, `local_add_part2`)."""
    for word in words:
        name = word.lower()
        for known in _OPENVE_WORDS:
            if name.startswith(known):
                return declared(known)
    return guessed


@lru_cache(maxsize=4096)
def reco_kind(words: tuple[str, ...]) -> KindOf:
    """By the task's folder: `add`, `remove`, `replace`, `style`."""
    return next((declared(word) for word in words if word in ("add", "remove", "replace", "style")), guessed)


@lru_cache(maxsize=4096)
def gpt_image_edit_kind(words: tuple[str, ...]) -> KindOf:
    """By subset and task: HQ-Edit has no kinds (guessed); OmniEdit's `swap` holds objects and backgrounds."""
    named = [word.lower() for word in words]
    if "hqedit" in named:
        return guessed
    if "swap" in named:
        return guessed_swap
    known = {*TASKS, "env", "complex-edit", "change_global", "transform_global", "turn", "others"}
    return next((declared(word) for word in named if word in known), guessed)


_KINDS: dict[Origin, Callable[[tuple[str, ...]], KindOf]] = {
    DITTO: ditto_kind,
    OPENVE: openve_kind,
    RECO: reco_kind,
    GPT_IMAGE_EDIT: gpt_image_edit_kind,
    NHR_EDIT: lambda words: guessed,
}
