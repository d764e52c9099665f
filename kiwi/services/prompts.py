"""Prompts: text files of a package or of a folder of one's own, and the words that are put into their places."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kiwi import storage
from kiwi.errors import UsageError
from kiwi.storage import StorageError


def read_prompts(own: str | None, packaged: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The text of each NAME.txt: from the folder `own` where one is given, else from `packaged`.

    Raises UsageError where a file is missing, empty or no UTF-8.
    """
    folder = own if own is not None else str(packaged)
    listed = ", ".join(f"{name}.txt" for name in names)
    texts = {}
    for name in names:
        path = storage.join(folder, f"{name}.txt")
        try:
            texts[name] = storage.read_bytes(path).decode("utf-8-sig").strip()
        except StorageError as error:
            raise UsageError(f"prompt {error.message}", f"a folder of prompts holds {listed}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"prompt {path} is no UTF-8 ({error.reason})", "save it as UTF-8") from error
        if not texts[name]:
            raise UsageError(f"prompt {path} is empty", "write what the model is to be asked")
    return texts


def filled(prompt: str, words: Mapping[str, str]) -> str:
    """`prompt` with each <name> of `words` put in place, all at once: what is put in is never looked at again."""
    places = re.compile("|".join(re.escape(f"<{name}>") for name in words))
    return places.sub(lambda found: words[found.group()[1:-1]], prompt)
