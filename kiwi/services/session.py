"""One `ask` at work: a background thread whose event loop does all the talking, threads that encode pictures, and what
is known of the server.

What is under way is bounded: requests by `Patience.concurrency`, and pictures that wait to be encoded by UNENCODED
questions, beyond which the caller's thread waits before it draws another.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kiwi.services.answering import Answering
from kiwi.services.cache import ReplyCache
from kiwi.services.endpoint import Endpoint
from kiwi.services.errors import ServiceError
from kiwi.services.http import Answer, Connection, Later, Refusal
from kiwi.services.patience import Patience
from kiwi.services.questions import Encoded, Failure, Picture, Question, Reply, Usage
from kiwi.services.replies import excerpt
from kiwi.services.wire import Call, Completion, read_completion

THREADS = 3  # at most, for encoding and for the cache's file; no more than there are cores
GIVE_WAY = 2  # how much nicer these are than the rest: a request that may go must not wait for one far from its turn
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
        self._workers = ThreadPoolExecutor(min(THREADS, _cores()), "kiwi-pictures", _give_way)
        self._unencoded = threading.BoundedSemaphore(UNENCODED)
        self._closed = False
        self._tasks: set[asyncio.Task[Reply]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kiwi-requests", daemon=True)
        self._thread.start()
        self._connection, self._slots, self._look = self._run(self._open()).result()

    def submit(self, question: Question) -> Future[Reply]:
        """Starts on a question. Waits while too many pictures wait to be encoded."""
        self._unencoded.acquire()
        reply: Future[Reply] = Future()
        encoding = self._workers.submit(self._encode, question)
        encoding.add_done_callback(lambda done: self._hand_over(question, done, reply))
        return reply

    def close(self) -> None:
        """Cancels what is under way and ends the threads.

        A stream that was left unfinished is closed when it is collected, which may be at the interpreter's end, where
        background threads stand still, or on the very thread that would have to be waited for. Neither is waited for.
        """
        if sys.is_finalizing() or threading.current_thread() is self._thread:
            self._workers.shutdown(wait=False, cancel_futures=True)
            self._loop.call_soon_threadsafe(self._loop.stop)
            return
        self._run(self._shut()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._workers.shutdown()
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
        self._closed = True
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connection.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _in_worker(self, work: Callable[..., T], *arguments: Any) -> T:
        return await self._loop.run_in_executor(self._workers, work, *arguments)

    def _encode(self, question: Question) -> tuple[Encoded, ...]:
        try:
            return encoded(question)
        finally:
            self._unencoded.release()

    def _hand_over(self, question: Question, encoding: Future[tuple[Encoded, ...]], reply: Future[Reply]) -> None:
        """From a worker to the loop, with the pictures; or the failure to the asker."""
        if encoding.cancelled():
            reply.cancel()
        elif (error := encoding.exception()) is None:
            self._loop.call_soon_threadsafe(self._start, question, encoding.result(), reply)
        elif isinstance(error, ValueError):
            reply.set_result(Reply(failure=Failure("picture", str(error))))
        else:
            reply.set_exception(error)

    def _start(self, question: Question, pictures: tuple[Encoded, ...], reply: Future[Reply]) -> None:
        """On the loop: a task that answers the question, unless nobody waits for it any more."""
        if self._closed:
            reply.cancel()
            return
        task = self._loop.create_task(self._answer(question, pictures))
        self._tasks.add(task)  # a loop holds its tasks weakly
        task.add_done_callback(lambda done: self._settle(done, reply))

    def _settle(self, done: asyncio.Task[Reply], reply: Future[Reply]) -> None:
        self._tasks.discard(done)
        if done.cancelled():
            reply.cancel()
        elif (error := done.exception()) is not None:
            reply.set_exception(error)
        else:
            reply.set_result(done.result())

    def _kept(self, call: Call) -> tuple[str, Completion | None]:
        """The call's key, and what the cache holds for it."""
        if self._cache is None:
            return "", None
        key = call.key()
        return key, self._cache.get(key)

    async def _answer(self, question: Question, pictures: tuple[Encoded, ...]) -> Reply:
        try:
            return await Answering(question, pictures, self.complete, self.standing).reply()
        except ServiceError as error:
            self.broken = self.broken or error
            raise

    async def _post(self, call: Call) -> Completion | Refusal:
        """Asks the server, as often as patience allows."""
        body = call.body()
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

        pictures = await self._in_worker(encoded, probe.question)
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


def encoded(question: Question) -> tuple[Encoded, ...]:
    """The question's pictures, in order."""
    return tuple(part.encoded() for part in question.parts if isinstance(part, Picture))


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _give_way() -> None:
    """Makes this thread nicer, where threads have a niceness of their own and it may be changed."""
    if sys.platform == "linux":
        here = threading.get_native_id()
        with suppress(PermissionError):  # a sandbox may forbid it, and the pictures are wanted all the same
            os.setpriority(os.PRIO_PROCESS, here, min(os.getpriority(os.PRIO_PROCESS, here) + GIVE_WAY, 19))


def _names(data: bytes) -> set[str] | None:
    """The models that a server lists; None where it answers something else."""
    try:
        return {str(entry["id"]) for entry in json.loads(data)["data"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
