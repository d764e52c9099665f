"""The client against a scripted server: order, bounds, retries, refusals, secrets, and what stops a task."""

from __future__ import annotations

import base64
import gc
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from pydantic import BaseModel, ConfigDict, Field

from kiwi.errors import UsageError
from kiwi.services import Patience, Picture, Question, ServiceError, VlmClient, endpoint_of, garbage, session
from kiwi.services.endpoint import Endpoint
from kiwi.services.garbage import older_objects_left_out
from kiwi.services.http import AT_ONCE
from kiwi.services.patience import seconds_of
from tests.unit.services.scripted_server import MODEL, Said, chat, error, pictures_of, question_of, serving

KEY = "sk-very-secret-4711"
QUICK = Patience(concurrency=8, timeout=2.0, attempts=3, first_wait=0.01)
RED = np.full((48, 64, 3), (200, 40, 20), np.uint8)


class Mark(BaseModel):
    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})
    mark: int = Field(ge=0, le=10)


def client_at(address: str, patience: Patience = QUICK, cache: Path | None = None, key: str = KEY) -> VlmClient:
    return VlmClient(lambda: Endpoint(address, key), patience, str(cache) if cache else None)


def ask(text: str, **more: Any) -> Question:
    return Question((text,), MODEL, **{"schema": Mark, **more})


def echo(body: dict[str, Any]) -> Said:
    """The number in the question as a mark."""
    return chat(json.dumps({"mark": int(question_of(body).split()[-1])}))


def once_then_echo(first: Said) -> Any:
    """`first` to the first request of each question, then the echo."""
    met: set[str] = set()

    def script(body: dict[str, Any]) -> Said:
        question = question_of(body)
        if question in met:
            return echo(body)
        met.add(question)
        return first

    return script


def test_replies_come_in_the_order_of_the_questions_whatever_order_the_server_answers_in() -> None:
    def script(body: dict[str, Any]) -> Said:
        number = int(question_of(body).split()[-1])
        return chat(json.dumps({"mark": number % 10}), seconds=0.05 if number % 8 == 0 else 0.0)

    with serving(script) as server:
        replies = list(client_at(server.address).ask(ask(f"number {n}") for n in range(40)))
    assert [reply.values[0].mark for reply in replies] == [n % 10 for n in range(40)]
    assert [question_of(body) for body in server.seen] != [f"number {n}" for n in range(40)]


def test_no_more_requests_are_under_way_than_concurrency_allows_and_no_fewer() -> None:
    with serving(lambda body: chat('{"mark": 1}', seconds=0.05)) as server:
        list(client_at(server.address, Patience(concurrency=5)).ask(ask(f"{n}") for n in range(40)))
    assert server.most_at_once == 5


def test_questions_are_drawn_on_the_callers_thread_and_only_so_far_ahead() -> None:
    drawn, threads = [], set()

    def questions() -> Iterator[Question]:
        for number in range(1000):
            drawn.append(number)
            threads.add(threading.current_thread())
            yield ask(f"{number}")

    with serving(lambda body: chat('{"mark": 1}')) as server:
        replies = client_at(server.address, Patience(concurrency=2)).ask(questions())
        next(replies)
        assert len(drawn) <= 4 * 2 + 1
        replies.close()
    assert threads == {threading.current_thread()}


def test_closing_an_unfinished_stream_ends_its_threads() -> None:
    with serving(lambda body: chat('{"mark": 1}', seconds=0.2)) as server:
        before = set(threading.enumerate())
        replies = client_at(server.address).ask(ask(f"{n}") for n in range(100))
        next(replies)
        replies.close()
        left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("kiwi")]
    assert left == []


def test_a_request_holds_model_schema_pictures_and_parameters() -> None:
    question = Question(
        ("first", Picture(RED), "last"), MODEL, Mark, temperature=0.7, seed=5, max_tokens=99, system="be brief"
    )
    with serving(lambda body: chat('{"mark": 3}')) as server:
        (reply,) = client_at(server.address).ask([question])
    (body,) = server.seen
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == (MODEL, 0.7, 5, 99)
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "image_url", "text"]
    assert body["response_format"]["json_schema"]["schema"]["properties"]["mark"]["maximum"] == 10
    assert body["response_format"]["json_schema"]["schema"]["additionalProperties"] is False
    assert "n" not in body
    picture = Pillow.open(io.BytesIO(pictures_of(body)[0]))
    assert (picture.format, picture.size) == ("JPEG", (64, 48))
    assert np.abs(np.asarray(picture).astype(int) - (200, 40, 20)).max() <= 3
    assert server.keys == [f"Bearer {KEY}"]
    assert reply.tokens.prompt == 100


def test_pixels_of_a_picture_are_let_go_once_it_is_encoded() -> None:
    import weakref

    pixels = np.zeros((8, 8, 3), np.uint8)
    gone = weakref.ref(pixels)
    picture = Picture(pixels)
    first = picture.encoded()
    del pixels
    assert gone() is None
    assert picture.encoded() == first


def test_a_body_of_many_large_pictures_arrives_whole_and_once_more_when_it_is_tried_again() -> None:
    grain = np.random.default_rng(0).integers(0, 256, (5, 200, 300, 3), dtype=np.uint8)
    pictures = [Picture(frame) for frame in grain]
    with serving(once_then_echo(error(503))) as server:
        (reply,) = client_at(server.address).ask([Question((*pictures, "number 7"), MODEL, Mark)])
    sent = [picture.encoded().base64 for picture in pictures]
    assert sum(map(len, sent)) > 2 * AT_ONCE
    assert [[base64.b64encode(one) for one in pictures_of(body)] for body in server.seen] == [sent, sent]
    assert reply.values[0].mark == 7


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux alone")
def test_encoding_gives_way_to_requests() -> None:
    niceness = []

    def prepare(pixels: Any) -> Any:
        niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return pixels

    with serving(echo) as server:
        list(client_at(server.address).ask([Question((Picture(RED, prepare), "number 1"), MODEL, Mark)]))
    assert niceness[0] > os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) or niceness == [19]


@pytest.fixture
def nothing_left_out() -> Iterator[None]:
    """As in a process of its own: these tests' process leaves what was imported out of collections from the start."""
    gc.unfreeze()
    garbage._STANDING.theirs = False
    yield
    gc.freeze()


@pytest.mark.usefixtures("nothing_left_out")
def test_what_was_there_before_is_left_out_of_collections_while_questions_are_asked_and_no_longer() -> None:
    with serving(echo) as server:
        replies = client_at(server.address).ask(ask(f"number {n}") for n in range(3))
        next(replies)
        during = gc.get_freeze_count()
        list(replies)
    assert during > 0
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("nothing_left_out")
def test_objects_that_somebody_else_left_out_of_collections_stay_so() -> None:
    with older_objects_left_out():
        pass
    gc.freeze()
    with older_objects_left_out():
        pass
    assert gc.get_freeze_count() > 0


@pytest.mark.usefixtures("nothing_left_out")
def test_of_two_who_ask_at_once_the_first_to_end_takes_nothing_from_the_other() -> None:
    first, second = older_objects_left_out(), older_objects_left_out()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_freeze_count() > 0
    second.__exit__(None, None, None)
    assert gc.get_freeze_count() == 0


def test_pictures_are_encoded_where_a_thread_may_not_be_made_nicer(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(session.os, "setpriority", forbidden)
    with ThreadPoolExecutor(1, initializer=session._give_way) as pool:
        assert pool.submit(len, "one").result() == 3


def test_a_picture_that_does_not_encode_fails_its_question_alone() -> None:
    wrong = Question(("1", Picture(np.zeros((4, 4), np.uint8))), MODEL, Mark)
    with serving(echo) as server:
        replies = list(client_at(server.address).ask([ask("2"), wrong, ask("3")]))
    assert [reply.failure.kind if reply.failure else reply.values[0].mark for reply in replies] == [2, "picture", 3]


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(error(429), id="429"),
        pytest.param(error(429, Retry_After="0"), id="429 with Retry-After"),
        pytest.param(error(500), id="500"),
        pytest.param(error(503), id="503"),
        pytest.param(chat('{"mark": 1}', drop=True), id="a connection that breaks in the middle of the reply"),
        pytest.param(chat('{"mark": 1}', seconds=0.6), id="too slow"),
        pytest.param(Said(b"<html>a gateway's page</html>"), id="no chat completion"),
        pytest.param(Said(b'{"choices": [{"message": {"content": [1]}}]}'), id="content that is no text"),
        pytest.param(Said(b"[" * 200_000), id="JSON nested without end"),
        pytest.param(chat('{"mark": 1, "why": "' + "x" * 5_000_000 + '"}'), id="a body that does not end"),
    ],
)
def test_trouble_of_the_server_is_waited_out(trouble: Said) -> None:
    with serving(once_then_echo(trouble)) as server:
        client = client_at(server.address, Patience(concurrency=4, timeout=0.4, attempts=3, first_wait=0.01))
        replies = list(client.ask([ask("number 4"), ask("number 7")]))
    assert [reply.values[0].mark for reply in replies] == [4, 7]
    assert (client.usage.requests, client.usage.retried) == (4, 2)


def test_retry_after_is_honoured_to_the_second() -> None:
    with serving(once_then_echo(error(429, Retry_After="1"))) as server:
        started = time.monotonic()
        list(client_at(server.address).ask([ask("1")]))
        assert time.monotonic() - started >= 1.0


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    assert seconds_of("12") == 12.0
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert (seconds_of("Wed, 21 Oct 2099 07:28:00 GMT") or 0) > 1e9
    assert seconds_of("soon") is None
    assert seconds_of("-3") is None


@pytest.mark.parametrize("trouble", [error(429), error(500, "out of memory"), chat("{}", seconds=0.5)])
def test_trouble_that_lasts_fails_the_task_and_not_the_row(trouble: Said) -> None:
    with serving(lambda body: trouble) as server:
        client = client_at(server.address, Patience(concurrency=2, timeout=0.2, attempts=3, first_wait=0.01))
        with pytest.raises(ServiceError, match="after 3 tries") as caught:
            list(client.ask([ask("1")]))
    assert server.address in caught.value.message
    assert len(server.seen) == 3


def test_a_server_that_asks_for_more_patience_than_there_is_fails_the_task_at_once() -> None:
    with (
        serving(lambda body: error(429, Retry_After="86400")) as server,
        pytest.raises(ServiceError, match="asks to wait 86400"),
    ):
        list(client_at(server.address).ask([ask("1")]))
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_fails_its_row_with_the_servers_words(status: int) -> None:
    def script(body: dict[str, Any]) -> Said:
        long = "long" in question_of(body)
        return error(status, "maximum context length is 4096 tokens") if long else echo(body)

    with serving(script) as server:
        client = client_at(server.address)
        replies = list(client.ask([ask("1"), ask("long 2"), ask("3")]))
    assert [reply.failure is None for reply in replies] == [True, False, True]
    failure = replies[1].failure
    assert failure is not None
    assert failure.kind == "refused"
    assert "maximum context length" in failure.detail
    assert (len(server.seen), client.usage.refused) == (3, 1)


def test_a_server_that_refuses_everything_fails_the_task() -> None:
    with (
        serving(lambda body: error(400, "unknown field response_format")) as server,
        pytest.raises(ServiceError, match=r"refused the first 3\d requests.*response_format"),
    ):
        list(client_at(server.address).ask(ask(f"{n}") for n in range(100)))
    assert len(server.seen) < 60


@pytest.mark.parametrize(("status", "remedy"), [(401, "KIWI_VLM_API_KEY"), (403, "KIWI_VLM_API_KEY"), (404, "/v1")])
def test_a_server_that_lets_nobody_in_fails_the_task_with_what_to_set(status: int, remedy: str) -> None:
    with (
        serving(lambda body: error(status, f"wrong key {KEY}")) as server,
        pytest.raises(ServiceError, match=f"{status}: wrong key") as caught,
    ):
        list(client_at(server.address).ask([ask("1")]))
    assert remedy in caught.value.remedy
    assert KEY not in str(caught.value)
    assert len(server.seen) == 1


def test_nobody_listening_fails_the_task_without_waiting() -> None:
    with serving(echo) as server:
        address = server.address
    started = time.monotonic()
    with pytest.raises(ServiceError, match="no connection") as caught:
        list(client_at(address, Patience()).ask([ask("1")]))
    assert time.monotonic() - started < 1.0
    assert address in caught.value.message
    assert "KIWI_VLM_BASE_URL" in caught.value.remedy


def test_a_model_that_is_not_served_is_told_before_any_question_with_those_that_are() -> None:
    with (
        serving(echo) as server,
        pytest.raises(ServiceError, match="model missing is not served; served: another, scripted"),
    ):
        list(client_at(server.address).ask([Question(("1",), "missing", Mark)]))
    assert server.seen == []


def test_a_server_that_does_not_list_its_models_is_asked_all_the_same() -> None:
    with serving(echo, models=Said(b'{"hello": 1}')) as server:
        (reply,) = client_at(server.address).ask([ask("4")])
    assert reply.values[0].mark == 4


def test_the_server_is_looked_at_once_for_all_questions() -> None:
    with serving(echo) as server:
        client = client_at(server.address)
        for start in (0, 5):
            list(client.ask(ask(f"{n}") for n in range(start, start + 5)))
        assert server.listed == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("I'm sorry, but I can't assist with that request.", "no JSON"),
        ("", "it is empty"),
        ("  \n\t ", "it is empty"),
        ('{"mark": 11}', "less than or equal to 10"),
        ('{"mark": -1}', "greater than or equal to 0"),
        ('{"mark": "7"}', "valid integer"),
        ('{"mark": true}', "valid integer"),
        ('{"mark": NaN}', "NaN is no number"),
        ('{"mark": 7.5}', "valid integer"),
        ("{}", "mark: Field required"),
        ("[]", "valid dictionary"),
        ("7", "valid dictionary"),
        ('{"mark": 1, "mark": 2}', "a key stands twice"),
        ('```json\n{"mark": 1}\n```\nor\n```json\n{"mark": 2}\n```', "2 fenced blocks"),
        ("\u4e0d\u80fd \U0001f600", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("9" * 10_000, "no JSON"),
        ('{"mark": 1e999}', "mark"),
    ],
)
def test_a_reply_that_cannot_be_used_is_asked_again_from_other_seeds_and_then_fails(said: str, why: str) -> None:
    with serving(lambda body: chat(said)) as server:
        client = client_at(server.address)
        (reply,) = client.ask([ask("1", seed=7)])
    assert reply.failure is not None
    assert reply.failure.kind == "unusable"
    assert why in reply.failure.detail
    assert reply.failure.detail.isascii()
    assert len(reply.failure.detail) < 500
    assert reply.values == ()
    assert [body["seed"] for body in server.seen] == [7, 8, 9]
    assert [body["temperature"] > 0 for body in server.seen] == [False, True, True]
    assert client.usage.unusable == 1


@pytest.mark.parametrize(
    "said",
    [
        '{"mark": 7}',
        ' \n{"mark": 7}\n ',
        '```json\n{"mark": 7}\n```',
        '```\n{"mark": 7}\n```',
        'Here it is:\n```json\r\n{"mark": 7}\r\n```\nAsk again.',
        '<think>perhaps {"mark": 3}</think>{"mark": 7}',
        '{"mark": 7, "why": "\\ud83d\\ude00 \u4e2d"}',
        '{"mark": 7, "why": "half a character \\ud83d"}',
    ],
)
def test_bare_and_fenced_json_is_read(said: str) -> None:
    with serving(lambda body: chat(said)) as server:
        (reply,) = client_at(server.address).ask([ask("1")])
    assert reply.failure is None
    assert reply.values[0].mark == 7


def test_a_second_seed_may_do_what_the_first_did_not() -> None:
    with serving(once_then_echo(chat("no idea"))) as server:
        (reply,) = client_at(server.address).ask([ask("number 5")])
    assert reply.values[0].mark == 5
    assert reply.tokens.prompt == 200


def test_a_reply_that_was_cut_off_says_so() -> None:
    with serving(lambda body: chat('{"mark": ', finish="length")) as server:
        (reply,) = client_at(server.address).ask([ask("1", max_tokens=77)])
    assert reply.failure is not None
    assert "cut off after 77 tokens" in reply.failure.detail


def test_without_a_schema_any_text_is_an_answer() -> None:
    with serving(lambda body: chat("a cat, I think")) as server:
        (reply,) = client_at(server.address).ask([ask("what?", schema=None)])
    assert reply.text == "a cat, I think"
    assert "response_format" not in server.seen[0]


def test_an_ensemble_is_one_request_and_its_unusable_answers_are_asked_for_again() -> None:
    def script(body: dict[str, Any]) -> Said:
        texts = ['{"mark": 1}', "what?", '{"mark": 3}'] if body.get("n") == 3 else ['{"mark": 9}']
        return chat(*texts)

    with serving(script) as server:
        (reply,) = client_at(server.address).ask([ask("1", n=3, seed=10, temperature=0.7)])
    assert [value.mark for value in reply.values] == [1, 3, 9]
    assert [(body.get("n", 1), body["seed"]) for body in server.seen] == [(3, 10), (1, 13)]


def test_a_server_that_gives_one_answer_at_a_time_is_asked_for_the_others() -> None:
    with serving(lambda body: chat(json.dumps({"mark": body["seed"]}))) as server:
        (reply,) = client_at(server.address).ask([ask("1", n=4)])
    assert [value.mark for value in reply.values] == [0, 1, 2, 3]


def test_a_server_that_refuses_ensembles_is_asked_one_by_one() -> None:
    def script(body: dict[str, Any]) -> Said:
        return error(400, "n must be 1") if body.get("n", 1) > 1 else chat(json.dumps({"mark": body["seed"]}))

    with serving(script) as server:
        client = client_at(server.address)
        replies = [reply for text in "12" for reply in client.ask([ask(text, n=3)])]
    assert [[value.mark for value in reply.values] for reply in replies] == [[0, 1, 2]] * 2
    assert sum(body.get("n", 1) > 1 for body in server.seen) == 1


def test_part_of_an_ensemble_is_no_answer() -> None:
    with serving(lambda body: chat('{"mark": 1}', "what?")) as server:
        (reply,) = client_at(server.address).ask([ask("1", n=2)])
        assert reply.values == (reply.values[0], reply.values[1])
    with serving(lambda body: chat("what?") if body["seed"] else chat('{"mark": 1}')) as server:
        (reply,) = client_at(server.address).ask([ask("1", n=2)])
    assert reply.failure is not None
    assert reply.values == ()


def test_the_key_is_in_the_header_and_nowhere_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(lambda body: error(400, f"you sent {KEY}")) as server:
        client = client_at(server.address.replace("//", "//user:hush-hush@"), cache=tmp_path / "cache")
        (reply,) = client.ask([ask("1")])
        with pytest.raises(ServiceError) as caught:
            list(client_at(server.address.replace("//", "//user:hush-hush@") + "/x").ask([Question(("1",), "no")]))
    with serving(echo) as server:
        (good,) = client_at(server.address, cache=tmp_path / "cache").ask([ask("1")])
    assert server.keys == [f"Bearer {KEY}"]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    said = f"{reply} {good} {caplog.text} {client._endpoint()!r} {caught.value}"
    for secret in (KEY, "hush-hush"):
        assert secret not in said
        assert secret.encode() not in written
    assert "***" in str(reply.failure)


def test_what_was_answered_before_trouble_is_not_asked_again(tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Said:
        return error(500) if question_of(body) == "30" else echo(body)

    questions = [ask(f"{n % 10}", seed=n) if n != 30 else ask("30") for n in range(40)]
    with serving(script) as first:
        client = client_at(first.address, Patience(concurrency=1, attempts=1), cache=tmp_path)
        with pytest.raises(ServiceError):
            list(client.ask(questions))
    answered = {body["seed"] for body in first.seen if question_of(body) != "30"}
    with serving(lambda body: chat('{"mark": 4}')) as second:
        replies = list(client_at(second.address, cache=tmp_path).ask(questions))
    assert len(answered) > 3
    assert answered.isdisjoint(body["seed"] for body in second.seen if question_of(body) != "30")
    assert [reply.failure for reply in replies] == [None] * 40


@pytest.mark.parametrize("address", ["", "ftp://host/v1", "host:8000", "http://", "http://host:port/v1", "http://[::1"])
def test_an_address_that_is_none_is_told_by_the_name_of_its_variable(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIWI_VLM_BASE_URL", address)
    with pytest.raises(UsageError, match="KIWI_VLM_BASE_URL"):
        endpoint_of("score")


def test_a_stage_with_an_address_of_its_own_is_not_sent_the_common_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIWI_VLM_BASE_URL", "https://common/v1/")
    monkeypatch.setenv("KIWI_VLM_API_KEY", KEY)
    monkeypatch.setenv("KIWI_VLM_GROUND_BASE_URL", "http://10.0.0.1:8000/v1")
    assert endpoint_of("score") == Endpoint("https://common/v1", KEY, "KIWI_VLM_BASE_URL")
    assert endpoint_of("ground") == Endpoint("http://10.0.0.1:8000/v1", "", "KIWI_VLM_GROUND_BASE_URL")


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://localhost/v1", True),
        ("http://[::1]:9/v1", True),
        ("http://h/v1", False),
    ],
)
def test_no_proxy_stands_before_this_machine(address: str, own: bool) -> None:
    assert Endpoint(address).loopback is own


def test_a_user_and_password_in_the_address_are_sent_where_there_is_no_key() -> None:
    with serving(echo) as server:
        list(client_at(server.address.replace("//", "//user:p%40ss@"), key="").ask([ask("1")]))
    assert server.keys == ["Basic dXNlcjpwQHNz"]


def test_a_proxy_of_the_environment_is_not_asked_for_a_loopback_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(echo) as server:
        (reply,) = client_at(server.address).ask([ask("4")])
    assert reply.values[0].mark == 4


def test_a_server_that_goes_away_for_a_moment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from kiwi.services import http

    exchange, posts = http.Connection.exchange, []

    async def away_once(self: Any, method: str, path: str, body: Any = ()) -> Any:
        posts.extend([path] if method == "POST" else [])
        if len(posts) == 2:
            return http.Later("no connection", unreachable=True)
        return await exchange(self, method, path, body)

    monkeypatch.setattr(http.Connection, "exchange", away_once)
    with serving(echo) as server:
        replies = [reply for n in range(3) for reply in client_at(server.address).ask([ask(f"{n}"), ask(f"{n + 1}")])]
    assert [reply.values[0].mark for reply in replies] == [0, 1, 1, 2, 2, 3]


def test_no_more_questions_are_drawn_once_the_task_is_to_fail() -> None:
    drawn = []

    def questions() -> Iterator[Question]:
        for number in range(10_000):
            drawn.append(number)
            time.sleep(0.01)
            yield ask(f"{number}")

    with serving(lambda body: error(401)) as server, pytest.raises(ServiceError):
        list(client_at(server.address, Patience(concurrency=64)).ask(questions()))
    assert len(drawn) < 150  # of 256 that are drawn ahead


LEFT_OPEN = """
import builtins, sys
from kiwi.services import Patience, Question, VlmClient
from kiwi.services.endpoint import Endpoint
client = VlmClient(lambda: Endpoint(sys.argv[1]), Patience(concurrency=2))
replies = client.ask(Question((str(number),), "scripted") for number in range(100))
next(replies)
builtins.kept_to_the_end = [replies]
print("answered")
"""


def test_a_stream_left_open_does_not_keep_a_process_from_ending() -> None:
    with serving(lambda body: chat("yes", seconds=0.05)) as server:
        command = [sys.executable, "-c", LEFT_OPEN, server.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "answered\n"
