"""Asks an OpenAI-compatible server many questions at once and yields the replies in the questions' order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from kiwi.services.cache import ReplyCache
from kiwi.services.endpoint import Endpoint
from kiwi.services.garbage import older_objects_left_out
from kiwi.services.patience import Patience
from kiwi.services.questions import Question, Reply, Usage
from kiwi.services.session import Probe, Session, Standing

LOOK_AHEAD = 4  # a slow head of the line holds nothing up until so many times the concurrency wait behind it


class VlmClient:
    """Asks one server. Nothing is contacted, opened or read from the environment before the first question.

    A server is looked at once, before the first request that the cache does not answer: does it serve the model, and
    does it pass the probe? So a task whose replies are all kept needs no server.

    Args:
        endpoint: says where the server is.
        cache: where replies are kept; None keeps none.
        namespace: see ReplyCache.
    """

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        patience: Patience,
        cache: str | None = None,
        namespace: str = "replies",
        probe: Probe | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._patience = patience
        self._cache_place = (cache, namespace)
        self._cache: ReplyCache | None = None
        self._standing = Standing(probe)

    @property
    def usage(self) -> Usage:
        """Requests and tokens so far."""
        return self._standing.usage

    def ask(self, questions: Iterable[Question]) -> Iterator[Reply]:
        """One reply for each question, in order; questions are drawn lazily, on this thread.

        Raises:
            UsageError: no address is set.
            ServiceError: the server cannot be used, or was not to be had in all tries.
        """
        window = LOOK_AHEAD * self._patience.concurrency
        waiting: deque[Future[Reply]] = deque()
        drawn, more = iter(questions), True
        with self._session() as session:
            while waiting or (more and session.broken is None):
                while more and len(waiting) < window and session.broken is None:
                    question = next(drawn, None)
                    if question is None:
                        more = False
                    else:
                        waiting.append(session.submit(question))
                        del question  # and with it its pictures, once they are sent
                if waiting:
                    yield waiting.popleft().result()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """What one `ask` needs, closed whatever ends it. Replies that came are kept, also when it fails."""
        place, namespace = self._cache_place
        if place is not None and self._cache is None:
            self._cache = ReplyCache(place, namespace)
        session = Session(self._endpoint(), self._patience, self._cache, self._standing)
        try:
            with older_objects_left_out():
                yield session
        finally:
            session.close()
            if self._cache is not None:
                self._cache.flush()
