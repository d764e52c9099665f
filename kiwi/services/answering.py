"""One question on its way to `n` answers that can be used: asked at once, and again from other seeds where need be.

All `n` are asked for in one request: vLLM gives its k-th answer the seed + k, and reads the pictures once. A server
that gives fewer is asked for the rest, with the seeds that come next; one that refuses `n` is asked one by one from
then on.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from kiwi.services.http import Refusal
from kiwi.services.questions import Encoded, Failure, Question, Reply, Tokens, Usage
from kiwi.services.replies import UnusableReplyError, excerpt, parse_reply
from kiwi.services.wire import Call, Choice, Completion

REPLY_TRIES = 3
RETRY_TEMPERATURE = 0.7  # at temperature 0 another seed would say the same again

Complete = Callable[[Call], Coroutine[Any, Any, tuple[Completion | Refusal, bool]]]


class Habits(Protocol):
    """What is learned of a server while it answers."""

    usage: Usage
    one_at_a_time: bool


class Answering:
    """The state of one question: what could be used so far, and how often something could not."""

    def __init__(self, question: Question, pictures: tuple[Encoded, ...], complete: Complete, habits: Habits) -> None:
        self._question, self._pictures, self._complete, self._habits = question, pictures, complete, habits
        self._texts: list[str] = []
        self._values: list[Any] = []
        self._tokens = Tokens()
        self._cached = True
        self._received = 0
        self._tries = 0
        self._wrong = ""

    async def reply(self) -> Reply:
        """The answers; after REPLY_TRIES replies that cannot be used, the failure, and never a part of them."""
        wanted = self._question.n
        while len(self._texts) < wanted and self._tries < REPLY_TRIES:
            said = await self._asked(self._call())
            if isinstance(said, Refusal):
                return Reply(failure=Failure("refused", said.detail), tokens=self._tokens)
            self._take(said)
        if len(self._texts) < wanted:
            self._habits.usage.unusable += 1
            detail = f"{REPLY_TRIES} replies could not be used, the last one: {self._wrong}"
            return Reply(failure=Failure("unusable", detail), tokens=self._tokens, cached=self._cached)
        return Reply(tuple(self._texts), tuple(self._values), None, self._tokens, self._cached)

    async def _asked(self, call: Call) -> Completion | Refusal:
        said, cached = await self._complete(call)
        if isinstance(said, Refusal) and call.n > 1:  # perhaps it is `n` that it does not take
            said, cached = await self._complete(Call(call.question, call.pictures, 1, call.seed, call.temperature))
            self._habits.one_at_a_time |= not isinstance(said, Refusal)
        self._cached &= cached
        return said

    def _call(self) -> Call:
        question = self._question
        missing = 1 if self._habits.one_at_a_time else question.n - len(self._texts)
        temperature = max(question.temperature, RETRY_TEMPERATURE) if self._tries else question.temperature
        return Call(question, self._pictures, missing, question.seed + self._received, temperature)

    def _take(self, said: Completion) -> None:
        self._tokens += said.tokens
        choices = said.choices[: self._question.n - len(self._texts)]
        self._received += max(1, len(choices))
        failed = not choices
        self._wrong = self._wrong if choices else "no answer at all"
        for choice in choices:
            try:
                self._values.append(_value(choice, self._question))
                self._texts.append(choice.text)
            except UnusableReplyError as error:
                self._wrong, failed = str(error), True
        self._tries += failed


def _value(choice: Choice, question: Question) -> Any:
    """The answer as the schema has it. Raises UnusableReplyError."""
    cut = f"cut off after {question.max_tokens} tokens: " if choice.finish == "length" else ""
    if not choice.text.strip():
        raise UnusableReplyError(f"{cut}it is empty")
    if question.schema is None:
        if cut:
            raise UnusableReplyError(f"{cut}{excerpt(choice.text)}")
        return choice.text
    try:
        return parse_reply(choice.text, question.schema)
    except UnusableReplyError as error:
        raise UnusableReplyError(f"{cut}{error}") from error
