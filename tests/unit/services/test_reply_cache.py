"""Kept replies: nothing is asked twice, damage is a miss, and processes do not get in each other's way."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from kiwi import storage
from kiwi.services import Patience, Picture, Question, ServiceError, VlmClient
from kiwi.services.cache import ReplyCache
from kiwi.services.endpoint import Endpoint
from kiwi.services.questions import Encoded, Tokens
from kiwi.services.wire import Call, Choice, Completion
from tests.unit.services.scripted_server import MODEL, Said, chat, error, serving

ADDRESS = "memory://replies-of-a-test"


class Mark(BaseModel):
    mark: int


class Other(BaseModel):
    mark: int
    more: int = 0


def completion(text: str) -> Completion:
    return Completion((Choice(text, "stop"),), Tokens(3, 4))


def client_at(address: str, cache: Path | str) -> VlmClient:
    return VlmClient(lambda: Endpoint(address), Patience(concurrency=4, first_wait=0.01), str(cache))


def marks(client: VlmClient, questions: list[Question]) -> list[int]:
    return [reply.values[0].mark for reply in client.ask(questions)]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A folder, or an address (fsspec's memory file system in place of S3; tests/integration has the real one)."""
    if request.param == "folder":
        yield str(tmp_path / "cache")
        return
    import fsspec

    yield ADDRESS
    fsspec.filesystem("memory").rm("/", recursive=True)


both = pytest.mark.parametrize("place", ["folder", "address"], indirect=True)


@both
def test_a_task_that_runs_again_asks_nothing_and_needs_no_server(place: str) -> None:
    questions = [Question((f"{n}",), MODEL, Mark) for n in range(10)]
    with serving(lambda body: chat('{"mark": 5}')) as server:
        assert marks(client_at(server.address, place), questions) == [5] * 10
        address = server.address
    again = client_at(address, place)
    replies = list(again.ask(questions))
    assert [reply.values[0].mark for reply in replies] == [5] * 10
    assert all(reply.cached for reply in replies)
    assert replies[0].tokens == Tokens(100, 10)
    assert (again.usage.requests, again.usage.cached, again.usage.prompt_tokens) == (0, 10, 0)


@pytest.mark.parametrize(
    "other",
    [
        Question(("a", Picture(np.zeros((4, 4, 3), np.uint8))), "another", Mark),
        Question(("b", Picture(np.zeros((4, 4, 3), np.uint8))), MODEL, Mark),
        Question(("a", Picture(np.full((4, 4, 3), 9, np.uint8))), MODEL, Mark),
        Question((Picture(np.zeros((4, 4, 3), np.uint8)), "a"), MODEL, Mark),
        Question(("a", Picture(np.zeros((4, 4, 3), np.uint8))), MODEL, Other),
        Question(("a", Picture(np.zeros((4, 4, 3), np.uint8))), MODEL, Mark, temperature=0.1),
        Question(("a", Picture(np.zeros((4, 4, 3), np.uint8))), MODEL, Mark, seed=1),
        Question(("a", Picture(np.zeros((4, 4, 3), np.uint8))), MODEL, Mark, max_tokens=99),
        Question(("a", Picture(np.zeros((4, 4, 3), np.uint8))), MODEL, Mark, n=2),
        Question(("a", Picture(np.zeros((4, 4, 3), np.uint8))), MODEL, Mark, system="be brief"),
    ],
)
def test_whatever_differs_in_a_question_is_asked_anew(other: Question, tmp_path: Path) -> None:
    question = Question(("a", Picture(np.zeros((4, 4, 3), np.uint8))), MODEL, Mark)
    with serving(lambda body: chat(*['{"mark": 5}'] * body.get("n", 1))) as server:
        list(client_at(server.address, tmp_path).ask([question, question, other]))
        assert len({json.dumps(body, sort_keys=True) for body in server.seen}) == 2
        list(client_at(server.address, tmp_path).ask([question, other]))
        assert len(server.seen) <= 3


def test_a_key_is_what_it_was_when_replies_of_earlier_versions_were_kept() -> None:
    question = Question(("what is it?", Picture(np.zeros((4, 4, 3), np.uint8))), "model", None, seed=5)
    key = Call(question, (Encoded.of(b"jpeg"),), 2, 7, 0.5).key()
    assert key == "7b8c734f1192c186b7f6977510a7fc747279771c9da66c797d954df9f55b4d6f"


def test_unusable_replies_are_kept_too_so_that_a_better_parser_may_read_them(tmp_path: Path) -> None:
    question = Question(("a",), MODEL, Mark)
    with serving(lambda body: chat("mark: five")) as server:
        first = list(client_at(server.address, tmp_path).ask([question]))
        second = list(client_at(server.address, tmp_path).ask([question]))
        assert len(server.seen) == 3
    assert first[0].failure == second[0].failure
    assert second[0].cached


def test_refusals_are_not_kept(tmp_path: Path) -> None:
    said: list[Said] = [error(400, "too long"), chat('{"mark": 1}')]
    with serving(lambda body: said.pop(0)) as server:
        replies = [next(client_at(server.address, tmp_path).ask([Question(("a",), MODEL, Mark)])) for _ in range(2)]
    assert [reply.failure is None for reply in replies] == [False, True]


@both
def test_a_damaged_entry_is_a_miss(place: str) -> None:
    cache = ReplyCache(place, "n")
    for key in "abc":
        cache.put(key, completion(key))
    cache.close()
    if storage.is_remote(place):
        (name,) = storage.list_files(f"{place}/n")
        lines = gzip.decompress(storage.read_bytes(f"{place}/n/{name}")).decode().splitlines()
        lines[1] = lines[1][:7]
        storage.write_bytes(f"{place}/n/{name}", gzip.compress("\n".join(lines).encode()))
        storage.write_bytes(f"{place}/n/broken.jsonl.gz", b"\x1f\x8b no gzip")
        storage.write_bytes(f"{place}/n/cut.jsonl.gz", gzip.compress(b"x" * 1000)[:20])
        storage.write_bytes(f"{place}/n/readme.txt", b"hello")
    else:
        with sqlite3.connect(Path(place) / "replies.sqlite") as connection:
            connection.execute("UPDATE replies SET completion = '[1, 2' WHERE key = 'b'")
    cache = ReplyCache(place, "n")
    assert [cache.get(key) for key in "abcd"] == [completion("a"), None, completion("c"), None]
    cache.put("b", completion("again"))
    assert cache.get("b") == completion("again")
    cache.close()
    assert ReplyCache(place, "n").get("b") == completion("again")


@pytest.mark.parametrize("damage", ["no database", "cut"])
def test_a_damaged_file_is_left_behind_and_work_goes_on(damage: str, tmp_path: Path) -> None:
    cache = ReplyCache(str(tmp_path), "n")
    for number in range(500):
        cache.put(f"{number:064d}", completion("x" * 200))
    cache.close()
    path = tmp_path / "replies.sqlite"
    data = path.read_bytes()
    path.write_bytes(
        b"no database at all" * 999 if damage == "no database" else data[:4096] + b"\xff" * (len(data) - 4096)
    )
    cache = ReplyCache(str(tmp_path), "n")
    assert cache.get(f"{7:064d}") is None
    cache.put("a", completion("kept"))
    cache.close()
    assert ReplyCache(str(tmp_path), "n").get("a") == completion("kept")


def test_a_folder_that_cannot_be_written_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ServiceError, match="replies cannot be kept"):
        ReplyCache(str(tmp_path / "file" / "cache"), "n")


def put_many(place: str, writer: int) -> None:
    cache = ReplyCache(place, "n")
    for number in range(200):
        cache.put(f"{writer}-{number}", completion(f"{number}"))
        cache.put("shared", completion(f"{writer}"))
    cache.close()


def test_several_processes_write_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=put_many, args=(str(tmp_path), writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    cache = ReplyCache(str(tmp_path), "n")
    assert all(
        cache.get(f"{writer}-{number}") == completion(f"{number}") for writer in range(4) for number in range(200)
    )


def test_an_address_gets_few_files_and_none_is_written_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(storage, "list_files", lambda folder: [])
    monkeypatch.setattr(storage, "write_bytes", lambda path, data: written.append(path))
    cache = ReplyCache(ADDRESS, "score-1")
    for number in range(2500):
        cache.put(f"{number}", completion(f"{number}"))
    cache.flush()
    cache.flush()
    assert len(written) == len(set(written)) == 3
    assert all(path.startswith(f"{ADDRESS}/score-1/") for path in written)


def test_threads_that_fill_a_segment_at_the_same_moment_write_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store so slow, and a lock after which threads change so often, that others put while one finds it full."""
    sizes: list[int] = []
    monkeypatch.setattr(storage, "list_files", lambda folder: [])
    monkeypatch.setattr(
        storage, "write_bytes", lambda path, data: sizes.append(len(gzip.decompress(data).splitlines()))
    )
    monkeypatch.setattr("kiwi.services.cache.SEGMENT", 10)
    cache = ReplyCache(ADDRESS, "n")
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: cache.put(f"{number}", completion(f"{number}")), range(2000)))
    finally:
        sys.setswitchinterval(before)
    cache.flush()
    assert sizes == [10] * 200


def test_replies_of_a_segment_that_could_not_be_written_are_written_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(storage, "list_files", lambda folder: [])

    def away(path: str, data: bytes) -> None:
        raise storage.StorageError("the store is away")

    cache = ReplyCache(ADDRESS, "n")
    cache.put("a", completion("a"))
    monkeypatch.setattr(storage, "write_bytes", away)
    with pytest.raises(storage.StorageError):
        cache.flush()
    monkeypatch.setattr(storage, "write_bytes", lambda path, data: written.append(data))
    cache.put("b", completion("b"))
    cache.flush()
    assert [json.loads(line)[0] for line in gzip.decompress(written[0]).decode().splitlines()] == ["a", "b"]
