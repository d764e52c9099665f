"""A model's words into values: strictly as the schema says, or not at all. Nothing is guessed, rounded or filled in."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Value = TypeVar("Value", bound=BaseModel)

_FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\r?\n(.*?)\r?\n?[ \t]*```", re.DOTALL)
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
SHOWN = 160


class UnusableReplyError(ValueError):
    """A reply that is not what was asked for; says why, with the reply's beginning."""


def parse_reply(text: str, schema: type[Value]) -> Value:
    """The one JSON value that a reply consists of, bare or in its only fenced block, as `schema`.

    Types are strict: "7" and true are no numbers; NaN, infinities and repeated keys are not JSON. Control characters
    within a text are taken, as vLLM's structured output lets them through. What an answer says beside its one fenced
    block, and what a model thought before answering, is passed over.

    Raises:
        UnusableReplyError: anything else.
    """
    said = _THOUGHT.sub("", text).strip()
    fenced = _FENCE.findall(said)
    if len(fenced) > 1:
        raise UnusableReplyError(f"{len(fenced)} fenced blocks, wanted is one: {excerpt(text)}")
    try:
        value = json.loads(fenced[0] if fenced else said, **_JSON)
        return schema.model_validate(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the reply"
        raise UnusableReplyError(f"{where}: {first['msg']}: {excerpt(text)}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableReplyError(f"no JSON ({error}): {excerpt(text)}") from error


def excerpt(text: str) -> str:
    """The beginning of a text in plain ASCII, fit for a message and a column; "nothing" for a blank one."""
    words = text.strip()
    shown = words[:SHOWN].encode("ascii", "backslashreplace").decode().replace("\n", " ")
    return f"{shown}..." if len(words) > SHOWN else shown or "nothing"


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


_JSON: dict[str, Any] = {"strict": False, "parse_constant": _no_number, "object_pairs_hook": _unique}
