"""One `ask` at work: a background thread whose event loop does all the talking, threads that encode pictures, and what
is known of the server.

What is under way is bounded: requests by `Patience.concurrency`, and pictures that wait to be encoded by UNENCODED
questions, beyond which the caller's thread waits before it draws another.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kiwi.services.answering import Answering
from kiwi.services.cache import ReplyCache
from kiwi.services.endpoint import Endpoint
from kiwi.services.errors import ServiceError
from kiwi.services.http import Answer, Connection, Later, Refusal
from kiwi.services.patience import Patience
from kiwi.services.questions import Failure, Picture, Question, Reply, Usage
from kiwi.services.replies import excerpt
from kiwi.services.wire import Call, Completion, read_completion

THREADS = 3  # for encoding, and for the cache's file
BODY_THREADS = 1  # of their own: a question whose turn has come must not wait behind pictures of later ones
UNENCODED = 8
REFUSED_AT_FIRST = 32

T = TypeVar("T")


@dataclass(frozen=True)
class Probe:
    """A question that a server must answer well before it is trusted with others; never taken from the cache.

    `verdict` gets its reply and says what is wrong, and what to do; or None.
    """

    question: Question
    verdict: Callable[[Reply], tuple[str, str] | None]


@dataclass
class Standing:
    """What is known of a server, from one `ask` to the next.

    Attributes:
        trusted: models that it serves, and that passed the probe.
        answered: requests that it answered.
        one_at_a_time: it does not give several answers to one request.
    """

    probe: Probe | None = None
    usage: Usage = field(default_factory=Usage)
    trusted: set[str] = field(default_factory=set)
    answered: int = 0
    one_at_a_time: bool = False


class Session:
    """The threads and connections of one `ask`. `close` ends them all.

    `broken` is why the task is going to fail, from the moment on that this is known.
    """

    def __init__(self, endpoint: Endpoint, patience: Patience, cache: ReplyCache | None, standing: Standing) -> None:
        self._endpoint, self._patience, self._cache, self.standing = endpoint, patience, cache, standing
        self.broken: ServiceError | None = None
        self._workers = ThreadPoolExecutor(THREADS, "kiwi-pictures")
        self._bodies = ThreadPoolExecutor(BODY_THREADS, "kiwi-bodies")
        self._unencoded = threading.BoundedSemaphore(UNENCODED)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kiwi-requests", daemon=True)
        self._thread.start()
        self._connection, self._slots, self._look = self._run(self._open()).result()

    def submit(self, question: Question) -> Future[Reply]:
        """Starts on a question. Waits while too many pictures wait to be encoded."""
        self._unencoded.acquire()
        return self._run(self._answer(question, self._workers.submit(self._encode, question)))

    def close(self) -> None:
        """Cancels what is under way and ends the threads.

        A stream that was left unfinished is closed when it is collected, which may be at the interpreter's end, where
        background threads stand still, or on the very thread that would have to be waited for. Neither is waited for.
        """
        if sys.is_finalizing() or threading.current_thread() is self._thread:
            for threads in (self._workers, self._bodies):
                threads.shutdown(wait=False, cancel_futures=True)
            self._loop.call_soon_threadsafe(self._loop.stop)
            return
        self._run(self._shut()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._workers.shutdown()
        self._bodies.shutdown()
        self._loop.close()

    async def complete(self, call: Call) -> tuple[Completion | Refusal, bool]:
        """The completion of a call, from the cache or from the server, and whether it was cached."""
        key, kept = await self._in_worker(self._kept, call) if self._cache is not None else ("", None)
        if kept is not None:
            self.standing.usage.cached += 1
            return kept, True
        async with self._slots:
            self._check_not_broken()
            await self._trust(call.question.model)
            said = await self._post(call)
        if isinstance(said, Refusal):
            self._count_refusal(said)
        elif self._cache is not None:
            # shielded: what was answered is kept, also when the task fails meanwhile
            await asyncio.shield(self._loop.run_in_executor(self._workers, self._cache.put, key, said))
        return said, False

    async def _open(self) -> tuple[Connection, asyncio.Semaphore, asyncio.Lock]:
        connection = Connection(self._endpoint, self._patience.concurrency, self._patience.timeout)
        return connection, asyncio.Semaphore(self._patience.concurrency), asyncio.Lock()

    async def _shut(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connection.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _in_worker(self, work: Callable[..., T], *arguments: Any) -> T:
        return await self._loop.run_in_executor(self._workers, work, *arguments)

    def _encode(self, question: Question) -> tuple[bytes, ...]:
        try:
            return jpegs(question)
        finally:
            self._unencoded.release()

    def _kept(self, call: Call) -> tuple[str, Completion | None]:
        """The call's key, and what the cache holds for it."""
        if self._cache is None:
            return "", None
        key = call.key()
        return key, self._cache.get(key)

    async def _answer(self, question: Question, encoded: Future[tuple[bytes, ...]]) -> Reply:
        try:
            pictures = await asyncio.wrap_future(encoded)
        except ValueError as error:
            return Reply(failure=Failure("picture", str(error)))
        try:
            return await Answering(question, pictures, self.complete, self.standing).reply()
        except ServiceError as error:
            self.broken = self.broken or error
            raise

    async def _post(self, call: Call) -> Completion | Refusal:
        """Asks the server, as often as patience allows."""
        body = await self._loop.run_in_executor(self._bodies, call.body)
        usage = self.standing.usage

        async def once() -> Answer[Completion] | Refusal | Later:
            usage.requests += 1
            outcome = await self._connection.exchange("POST", "chat/completions", body)
            if not isinstance(outcome, Answer):
                return outcome
            try:
                return Answer(read_completion(outcome.value))
            except ValueError as error:
                return Later(str(error))

        outcome = await self._patiently(once)
        if isinstance(outcome, Refusal):
            return outcome
        self.standing.answered += 1
        usage.prompt_tokens += outcome.value.tokens.prompt
        usage.completion_tokens += outcome.value.tokens.completion
        return outcome.value

    async def _patiently(
        self, once: Callable[[], Coroutine[Any, Any, Answer[T] | Refusal | Later]]
    ) -> Answer[T] | Refusal:
        """Tries until something other than Later comes of it. Raises ServiceError where patience ends."""
        attempt = 1
        while True:
            outcome = await once()
            if not isinstance(outcome, Later):
                return outcome
            never_there = outcome.unreachable and not self.standing.trusted
            wait = None if never_there else self._patience.wait(attempt, outcome.retry_after)
            if wait is None:
                raise self._given_up(outcome, attempt)
            attempt += 1
            self.standing.usage.retried += 1
            await asyncio.sleep(wait)

    def _given_up(self, outcome: Later, attempts: int) -> ServiceError:
        asked = f", which asks to wait {excerpt(outcome.retry_after)}" if outcome.retry_after else ""
        tries = f", after {attempts} tries" if attempts > 1 else ""
        remedy = "fewer at once (curation.service.concurrency), or more time; what was answered is kept"
        if outcome.unreachable:
            remedy = f"start the server, or set {self._endpoint.variable}; what was answered is kept"
        return self._connection.broken(f"{outcome.detail}{asked}{tries}", remedy)

    async def _trust(self, model: str) -> None:
        """Looks at the server once: does it serve this model, and does it pass the probe?"""
        async with self._look:
            if model in self.standing.trusted:
                return
            self._check_not_broken()
            try:
                await self._check_served(model)
                if self.standing.probe is not None and self.standing.probe.question.model == model:
                    await self._check_probe(self.standing.probe)
            except ServiceError as error:
                self.broken = error
                raise
            self.standing.trusted.add(model)

    def _check_not_broken(self) -> None:
        """Questions that wait are not asked any more once the task is to fail."""
        if self.broken is not None:
            raise self.broken

    async def _check_served(self, model: str) -> None:
        """Raises ServiceError with the models that are served, where this one is not among them. A server that
        answers something other than a list of models is taken at its word."""
        outcome = await self._patiently(lambda: self._connection.exchange("GET", "models"))
        served = _names(outcome.value) if isinstance(outcome, Answer) else None
        if served is not None and model not in served:
            listed = ", ".join(sorted(served)[:20]) or "nothing"
            said = f"model {excerpt(model)} is not served; served: {listed}"
            raise self._connection.broken(said, "set the stage's `model` to one of them, or serve it under this name")

    async def _check_probe(self, probe: Probe) -> None:
        async def uncached(call: Call) -> tuple[Completion | Refusal, bool]:
            return await self._post(call), False

        pictures = await self._in_worker(jpegs, probe.question)
        wrong = probe.verdict(await Answering(probe.question, pictures, uncached, self.standing).reply())
        if wrong is not None:
            raise self._connection.broken(*wrong)

    def _count_refusal(self, refusal: Refusal) -> None:
        """A refusal is one request's failure; a server that refuses all of them is set up wrongly."""
        usage = self.standing.usage
        usage.refused += 1
        if self.standing.answered == 0 and usage.refused >= REFUSED_AT_FIRST:
            said = f"it refused the first {usage.refused} requests ({refusal.detail})"
            remedy = "ask for less (image_pixels, max_tokens), or serve the model with a longer context"
            raise self._connection.broken(said, remedy)


def jpegs(question: Question) -> tuple[bytes, ...]:
    """The question's pictures, in order, encoded."""
    return tuple(part.jpeg() for part in question.parts if isinstance(part, Picture))


def _names(data: bytes) -> set[str] | None:
    """The models that a server lists; None where it answers something else."""
    try:
        return {str(entry["id"]) for entry in json.loads(data)["data"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
