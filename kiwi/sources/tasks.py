"""The sources' words for an edit in the one taxonomy, and a keyword heuristic for pairs that come without a word."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator

from kiwi.dataset.schema import Task

GUESSED = "keyword_heuristic"
Kind = tuple[str, Task]  # the source's own word, and the task it means
KindOf = Callable[[str], Kind]  # of an instruction

TASKS = {
    "global_style": Task.GLOBAL_STYLE,
    "style": Task.GLOBAL_STYLE,
    "background_change": Task.BACKGROUND_CHANGE,
    "background_reference": Task.BACKGROUND_CHANGE,
    "background_swap": Task.BACKGROUND_CHANGE,
    "background": Task.BACKGROUND_CHANGE,
    "change_background": Task.BACKGROUND_CHANGE,
    "local_change": Task.LOCAL_CHANGE,
    "subject_reference": Task.LOCAL_CHANGE,
    "subject": Task.LOCAL_CHANGE,
    "replace": Task.LOCAL_CHANGE,
    "object_swap": Task.LOCAL_CHANGE,
    "attribute_modification": Task.LOCAL_CHANGE,
    "change_local": Task.LOCAL_CHANGE,
    "transform_local": Task.LOCAL_CHANGE,
    "change_color": Task.LOCAL_CHANGE,
    "change_object": Task.LOCAL_CHANGE,
    "replace_object": Task.LOCAL_CHANGE,
    "change_haircut": Task.LOCAL_CHANGE,
    "local_remove": Task.LOCAL_REMOVE,
    "remove": Task.LOCAL_REMOVE,
    "removal": Task.LOCAL_REMOVE,
    "remove_object": Task.LOCAL_REMOVE,
    "local_add": Task.LOCAL_ADD,
    "add": Task.LOCAL_ADD,
    "addition": Task.LOCAL_ADD,
    "add_object": Task.LOCAL_ADD,
}

# In order: the first that fits decides. "Replace the background" is a background change, not a local one.
_KEYWORDS: tuple[tuple[Task, frozenset[str], tuple[str, ...]], ...] = tuple(
    (task, frozenset(word for word in words if " " not in word), tuple(word for word in words if " " in word))
    for task, words in (
        (
            Task.GLOBAL_STYLE,
            (
                "style",
                "aesthetic",
                "cartoon",
                "anime",
                "grayscale",
                "sepia",
                "black and white",
                "watercolor",
                "watercolour",
            ),
        ),
        (Task.BACKGROUND_CHANGE, ("background", "backdrop", "scenery")),
        (Task.LOCAL_REMOVE, ("remove", "delete", "erase", "get rid of", "take away")),
        (Task.LOCAL_ADD, ("add", "insert", "place", "put", "overlay")),
        (
            Task.LOCAL_CHANGE,
            ("replace", "change", "turn", "make", "swap", "recolor", "recolour", "convert", "transform", "dress"),
        ),
    )
)
_WORD = re.compile(r"\w+")
_APART = {ord(sign): " " for sign in string.punctuation if sign != "_"}
_LOCAL = frozenset({Task.LOCAL_REMOVE, Task.LOCAL_ADD, Task.LOCAL_CHANGE})
_LOOKED_AT = 2000  # characters of an instruction that the heuristic looks at
_NAMES_A_REFERENCE = re.compile(
    r"\b(reference|(given|provided|attached|shown|this|second|in the)\s+(image|picture|photo))\b",
    re.IGNORECASE,
)


def task_of(edit_type: str) -> Task:
    """The source's own word for an edit in our taxonomy; a word that is not known is OTHER."""
    return TASKS.get(re.sub(r"[\s\-]+", "_", edit_type.strip().lower()), Task.OTHER)


def guess_task(prompt: str) -> Task:
    """A keyword heuristic for pairs that come without an edit type. It reads no meaning: OTHER where nothing fits."""
    return next(_named(prompt), Task.OTHER)


def _named(prompt: str) -> Iterator[Task]:
    """The tasks whose words an instruction holds, in the order of precedence."""
    text = prompt[:_LOOKED_AT].lower()
    found = text.translate(_APART).split() if text.isascii() else _WORD.findall(text)  # split is the faster by far
    words, text = set(found), ""
    for task, single, phrases in _KEYWORDS:
        if not single.isdisjoint(words):
            yield task
        elif phrases:
            text = text or f" {' '.join(found)} "
            if any(f" {phrase} " in text for phrase in phrases):
                yield task


def names_a_reference(prompt: str) -> bool:
    """Whether an instruction points at a picture, so that it alone does not say what to make."""
    return bool(_NAMES_A_REFERENCE.search(prompt, 0, _LOOKED_AT))


def declared(word: str) -> KindOf:
    """All pairs are of the source's one `word`."""
    kind = (word, task_of(word))
    return lambda prompt: kind


def guessed(prompt: str) -> Kind:
    """Of a source that has no word: the heuristic's, and it is called so."""
    task = guess_task(prompt)
    return f"{GUESSED}:{task}", task


def guessed_local(prompt: str) -> Kind:
    """Of a source that says that the edit is local but not which: removed or added by keyword, else changed."""
    task = next((task for task in _named(prompt) if task in _LOCAL), Task.LOCAL_CHANGE)
    return f"{GUESSED}:{task}", task


def guessed_swap(prompt: str) -> Kind:
    """Of a source that mixes swapped objects and swapped backgrounds: by whether the instruction says background."""
    task = Task.BACKGROUND_CHANGE if guess_task(prompt) is Task.BACKGROUND_CHANGE else Task.LOCAL_CHANGE
    return f"{GUESSED}:{task}", task
