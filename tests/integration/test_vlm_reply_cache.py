"""Kept replies of a model server on a real S3 service. The model server is scripted; the storage is what is tried."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel

from kiwi import storage
from kiwi.services import Patience, Question, ServiceError, VlmClient
from kiwi.services.endpoint import Endpoint
from tests.unit.services.scripted_server import MODEL, chat, error, question_of, serving

pytestmark = pytest.mark.services


class Mark(BaseModel):
    mark: int


def client_at(address: str, cache: str) -> VlmClient:
    return VlmClient(lambda: Endpoint(address), Patience(concurrency=8, attempts=1), cache, "score-1")


def test_replies_in_s3_serve_the_next_task_and_are_few_objects(bucket: str) -> None:
    cache = storage.join(bucket, "replies")
    questions = [Question((f"{n}",), MODEL, Mark) for n in range(2300)]
    with serving(lambda body: chat(json.dumps({"mark": int(question_of(body))}))) as server:
        list(client_at(server.address, cache).ask(questions))
        again = client_at(server.address, cache)
        replies = list(again.ask(questions))
    assert [reply.values[0].mark for reply in replies] == list(range(2300))
    assert again.usage.requests == 0
    assert len(storage.list_files(cache)) == 3


def test_a_task_that_failed_left_what_was_answered_in_s3(bucket: str) -> None:
    cache = storage.join(bucket, "replies")
    questions = [Question((f"{n}",), MODEL, Mark) for n in range(40)]
    with serving(lambda body: error(500) if question_of(body) == "39" else chat('{"mark": 1}')) as server:
        with pytest.raises(ServiceError):
            list(client_at(server.address, cache).ask(questions))
        again = client_at(server.address, cache)
        with pytest.raises(ServiceError):
            list(again.ask(questions))
    assert again.usage.cached >= 30
