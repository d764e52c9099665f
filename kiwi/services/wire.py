"""The OpenAI chat-completions format: a question as a request body, a body as a completion, and a request's key."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from kiwi.configuration import canonical_json
from kiwi.services.questions import MEDIA_TYPE, Encoded, Question, Tokens

FORMAT = 1  # of the key: raise it where what is sent for a question changes in a way that the key does not see


@dataclass(frozen=True)
class Call:
    """One request to be made of a question: how many answers, and from which seed on."""

    question: Question
    pictures: tuple[Encoded, ...]
    n: int
    seed: int
    temperature: float

    def key(self) -> str:
        """SHA-256 over the model, texts, pictures' bytes, schema and parameters: all that the answer depends on."""
        said = canonical_json([FORMAT, self._body([picture.sha256 for picture in self.pictures])])
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()

    def body(self) -> list[bytes]:
        """JSON in ASCII, the pictures as data addresses; in pieces, so that no picture is copied.

        Pictures are spliced in: base64 needs no escapes, and a JSON encoder would look at every letter of it.
        """
        mark = f"picture-{uuid.uuid4().hex}-"
        said = json.dumps(self._body([f"{mark}{index}" for index in range(len(self.pictures))]), separators=(",", ":"))
        pieces: list[bytes] = []
        rest = said.encode()
        for index, picture in enumerate(self.pictures):
            before, _, rest = rest.partition(f"{mark}{index}".encode())
            pieces += [before, f"data:{MEDIA_TYPE};base64,".encode(), picture.base64]
        return [*pieces, rest]

    def _body(self, pictures: list[str]) -> dict[str, Any]:
        """The request with an address for each picture."""
        question, rest = self.question, iter(pictures)
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": next(rest)}}
            for part in question.parts
        ]
        system = [{"role": "system", "content": question.system}] if question.system else []
        body: dict[str, Any] = {
            "model": question.model,
            "messages": [*system, {"role": "user", "content": content}],
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": question.max_tokens,
        }
        if self.n > 1:
            body["n"] = self.n
        if question.schema is not None:
            name = re.sub(r"[^\w-]", "_", question.schema.__name__)[:64]
            schema = {"name": name, "schema": json_schema(question.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


@cache
def json_schema(schema: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a pydantic class, without the titles and descriptions that only cost tokens."""
    plain: dict[str, Any] = _bare(schema.model_json_schema())
    return plain


def _bare(node: Any) -> Any:
    if isinstance(node, list):
        return [_bare(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if not (key in ("title", "description") and type(value) is str)}
    return {key: _bare(value) for key, value in kept.items()}


class _Message(BaseModel):
    content: Any = None
    refusal: Any = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Counts(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int | None = None


class _Body(BaseModel):
    choices: list[_Choice]
    usage: _Counts | None = None


@dataclass(frozen=True)
class Choice:
    """One answer: its words, and why it ends ("length": it was cut off)."""

    text: str
    finish: str


@dataclass(frozen=True)
class Completion:
    """What a server answered to one request, as it is cached: raw, so that it can be read anew."""

    choices: tuple[Choice, ...]
    tokens: Tokens

    def dump(self) -> str:
        choices = [[choice.text, choice.finish] for choice in self.choices]
        return json.dumps({"choices": choices, "tokens": [self.tokens.prompt, self.tokens.completion]})

    @classmethod
    def load(cls, text: str) -> Completion | None:
        """What `dump` wrote; None for anything else."""
        try:
            said = json.loads(text)
            choices = tuple(Choice(str(words), str(finish)) for words, finish in said["choices"])
            prompt, completion = said["tokens"]
            return cls(choices, Tokens(int(prompt), int(completion)))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


def read_completion(data: bytes) -> Completion:
    """A chat completion's body. Raises ValueError for anything else."""
    try:
        body = _Body.model_validate(json.loads(data))
    except ValidationError as error:
        raise ValueError(f"no chat completion ({error.errors()[0]['msg']})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("no chat completion (no JSON)") from error
    choices = tuple(Choice(_words(choice.message), choice.finish_reason or "") for choice in body.choices)
    counts = body.usage or _Counts()
    return Completion(choices, Tokens(counts.prompt_tokens, counts.completion_tokens or 0))


def _words(message: _Message) -> str:
    """The answer's text, or the refusal's, as proper Unicode: halves of characters become question marks."""
    said = message.content if message.content is not None else message.refusal
    if said is None:
        return ""
    if not isinstance(said, str):
        raise ValueError(f"no chat completion (its content is no text but {type(said).__name__})")
    return said.encode("utf-8", "replace").decode()
