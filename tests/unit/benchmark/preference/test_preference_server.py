"""The server over real HTTP: who gets in, what is refused, and that votes cannot be forged or repeated."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from kiwi.benchmark.preference.assigning import Aim
from kiwi.benchmark.preference.server import Access, Desk, application
from kiwi.benchmark.preference.signing import Signer
from kiwi.benchmark.preference.study import Study
from kiwi.benchmark.preference.votes import VoteStore


class Visitor:
    """A browser as far as the server can tell: keeps cookies, follows no redirect by itself."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie = ""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {"Cookie": self.cookie, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if method == "POST":
            sent.setdefault("Content-Type", "application/json")
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode() if method == "POST" else None
        connection.request(method, path, data, sent)
        answer = connection.getresponse()
        content = answer.read()
        said = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        if "set-cookie" in said:
            self.cookie = said["set-cookie"].partition(";")[0]
        if said.get("content-type") == "application/json":
            return answer.status, json.loads(content), said
        return answer.status, content, said

    def join(self, desk: Desk, name: str) -> dict[str, Any]:
        assert self.ask("GET", f"/join?token={desk.signer.token}")[0] == 303
        assert self.ask("POST", "/api/rater", {"name": name})[0] == 200
        return self.next()

    def next(self) -> dict[str, Any]:
        status, said, _ = self.ask("POST", "/api/next")
        assert status == 200
        return dict(said)

    def vote(self, token: str, choice: str = "left", seconds: float = 1.0) -> tuple[int, Any]:
        return self.ask("POST", "/api/vote", {"token": token, "choice": choice, "seconds": seconds})[:2]


Serving = Callable[..., tuple[Desk, Callable[[], Visitor]]]


@pytest.fixture
def serving(make_study: Callable[..., Study], signer: Signer, tmp_path: Path) -> Iterator[Serving]:
    """Serves a study; returns its desk and a maker of visitors. Several may run in one test."""
    running: list[tuple[uvicorn.Server, threading.Thread, VoteStore]] = []

    def serve(
        access: Access | None = None, study: Study | None = None, raters: int = 3, secret: Signer = signer
    ) -> Any:
        study = study or make_study()
        (tmp_path / "media").mkdir(exist_ok=True)
        for name in study.media:
            (tmp_path / "media" / name).write_bytes(bytes(range(200)))
        store = VoteStore(str(tmp_path / "votes.db"), study.study_id)
        desk = Desk(study, tmp_path, store, secret, Aim(raters, 2), access or Access())
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application(desk), log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread, store))
        port = listening.getsockname()[1]
        return desk, lambda: Visitor(port)

    yield serve
    for server, thread, store in running:
        server.should_exit = server.force_exit = True  # open connections are not waited for
        thread.join()
        store.close()


def test_without_the_link_nothing_is_told_and_no_vote_is_taken(serving: Serving, monkeypatch: Any) -> None:
    monkeypatch.setattr("kiwi.benchmark.preference.server.WRONG_TOKEN_DELAY", 0)
    desk, visitor = serving()
    stranger = visitor()
    clip = next(iter(desk.study.media))
    assert stranger.ask("GET", f"/media/{clip}")[0] == 401
    assert stranger.ask("POST", "/api/next")[1]["error"] == "no_access"
    assert stranger.ask("POST", "/api/rater", {"name": "eve"})[0] == 401
    assert stranger.vote("anything")[0] == 401
    assert stranger.ask("GET", "/join?token=wrong")[2]["location"] == "/#refused"
    assert stranger.cookie == ""
    assert desk.store.raters() == []


def test_a_forged_cookie_or_key_is_nobody(serving: Serving, monkeypatch: Any) -> None:
    monkeypatch.setattr("kiwi.benchmark.preference.server.WRONG_TOKEN_DELAY", 0)
    desk, visitor = serving()
    anna = visitor()
    anna.join(desk, "anna")
    name, _, key = anna.cookie.partition("=")
    rater, _, signature = key.partition(".")
    for forged in (f"{rater}.{'0' * len(signature)}", f"{rater}.", rater, f"{'0' * 32}.{signature}", "ü.é"):
        eve = visitor()
        eve.cookie = f"{name}={forged}".encode().decode("latin-1")
        assert eve.ask("POST", "/api/next")[0] == 401
        assert eve.ask("GET", "/join?rater=" + forged.encode().hex())[2]["location"] == "/#refused"


def test_a_new_token_makes_old_links_and_cookies_void(serving: Serving) -> None:
    desk, visitor = serving()
    anna = visitor()
    anna.join(desk, "anna")
    _, later = serving(secret=Signer(b"other" * 7, "another-token-now"))
    again = later()
    again.cookie = anna.cookie
    assert again.ask("POST", "/api/next")[0] == 401


def test_a_vote_needs_the_token_of_a_pair_that_was_given_to_this_rater(serving: Serving) -> None:
    desk, visitor = serving()
    anna, ben = visitor(), visitor()
    pairs = anna.join(desk, "anna")["pairs"]
    ben.join(desk, "ben")
    token = pairs[0]["token"]
    assignment, round_, signature = token.split(".")
    forged = [
        f"{assignment}.{round_}.{'0' * len(signature)}",
        f"{'0' * 32}.{round_}.{signature}",
        f"{assignment}.7.{signature}",
        f"{pairs[1]['token'].split('.')[0]}.{round_}.{signature}",
        "",
        "....",
    ]
    for each in forged:
        assert anna.vote(each)[0] == 403
    assert ben.vote(token)[0] == 403  # signed, and someone else's
    assert desk.store.votes() == []
    assert anna.vote(token)[0] == 200


def test_a_repeated_vote_changes_nothing_and_says_so(serving: Serving) -> None:
    desk, visitor = serving()
    anna = visitor()
    token = anna.join(desk, "anna")["pairs"][0]["token"]
    first, again = anna.vote(token), anna.vote(token)
    assert (first[1]["recorded"], again[1]["recorded"]) == (True, False)
    assert first[1]["pairs"] == again[1]["pairs"]
    assert anna.vote(token, "right")[1]["error"] == "already_voted"
    assert len(desk.store.votes()) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"choice": "left", "seconds": 1},
        {"token": "TOKEN", "choice": "best", "seconds": 1},
        {"token": "TOKEN", "choice": ["left"], "seconds": 1},
        {"token": "TOKEN", "choice": "left", "seconds": -1},
        {"token": "TOKEN", "choice": "left", "seconds": "1"},
        {"token": "TOKEN", "choice": "left", "seconds": True},
        {"token": "TOKEN", "choice": "left"},
        b"[1, 2]",
        b"no json",
        b"[" * 4000,
        b'{"token": "' + b"x" * 5000 + b'"}',
        b'{"token": "TOKEN", "choice": "left", "seconds": NaN}',
    ],
    ids=str,
)
def test_what_is_no_vote_is_refused_without_harm(body: Any, serving: Serving) -> None:
    desk, visitor = serving()
    anna = visitor()
    token = anna.join(desk, "anna")["pairs"][0]["token"]
    sent = body.replace(b"TOKEN", token.encode()) if isinstance(body, bytes) else {**body}
    if isinstance(sent, dict) and "token" in sent:
        sent["token"] = token
    status, said, _ = anna.ask("POST", "/api/vote", sent)
    assert (status, said["error"]) == (400, "bad_vote")
    assert desk.store.votes() == []


def test_another_sites_page_cannot_vote_for_a_rater(serving: Serving) -> None:
    desk, visitor = serving()
    anna = visitor()
    token = anna.join(desk, "anna")["pairs"][0]["token"]
    vote = {"token": token, "choice": "left", "seconds": 1}
    assert anna.ask("POST", "/api/vote", vote, Origin="https://evil.example")[0] == 403
    assert anna.ask("POST", "/api/vote", vote, Content_Type="text/plain")[0] == 415
    assert anna.ask("POST", "/api/vote", vote, Origin=f"http://127.0.0.1:{anna.port}")[0] == 200


def test_a_name_that_points_here_does_not_open_a_loopback_server(serving: Serving) -> None:
    _, visitor = serving()
    assert visitor().ask("GET", "/", Host="evil.example")[0] == 421
    assert visitor().ask("GET", "/", Host="localhost:1")[0] == 200
    _, others = serving(access=Access(hosts=None))
    assert others().ask("GET", "/", Host="kiwi.example")[0] == 200


def test_the_public_address_of_a_proxy_may_post(serving: Serving) -> None:
    access = Access(hosts=frozenset({"127.0.0.1"}), public="prefer.example", secure=True)
    desk, visitor = serving(access=access)
    anna = visitor()
    _, _, said = anna.ask("GET", f"/join?token={desk.signer.token}")
    assert "secure" in said["set-cookie"].lower()
    assert anna.ask("POST", "/api/rater", {"name": "anna"}, Origin="https://prefer.example")[0] == 200


def test_cookies_are_out_of_scripts_reach_and_addresses_lose_their_secret(serving: Serving) -> None:
    desk, visitor = serving()
    status, _, said = visitor().ask("GET", f"/join?token={desk.signer.token}")
    assert (status, said["location"]) == (303, "/")
    assert {"httponly", "samesite=lax"} <= {part.strip().lower() for part in said["set-cookie"].split(";")}


def test_every_answer_forbids_foreign_scripts_frames_and_guessed_types(serving: Serving) -> None:
    _, visitor = serving()
    for path in ("/", "/page/app.js", "/media/nothing", "/nowhere"):
        said = visitor().ask("GET", path)[2]
        policy = said["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert said["x-content-type-options"] == "nosniff"
        assert said["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/media/..%2fsecret.json", "/media/secret.json", "/page/..%2fserver.py", "/page/x"])
def test_only_the_studys_own_files_are_served(path: str, serving: Serving, tmp_path: Path) -> None:
    desk, visitor = serving()
    (tmp_path / "secret.json").write_text("secret")
    (tmp_path / "media" / "secret.json").write_text("secret")
    anna = visitor()
    anna.join(desk, "anna")
    assert anna.ask("GET", path)[0] == 404


def test_clips_come_in_ranges(serving: Serving) -> None:
    desk, visitor = serving()
    anna = visitor()
    anna.join(desk, "anna")
    clip = f"/media/{next(iter(desk.study.media))}"
    status, content, said = anna.ask("GET", clip, Range="bytes=20-29")
    assert (status, content, said["content-range"]) == (206, bytes(range(20, 30)), "bytes 20-29/200")
    assert anna.ask("GET", clip, Range="bytes=900-")[0] == 416
    assert anna.ask("GET", clip)[1] == bytes(range(200))


@pytest.mark.parametrize("name", ["", " ", "<b>eve</b>", "=cmd()", "x" * 41, "-dash", "a\nb\x00"])
def test_names_that_could_do_harm_are_refused(name: str, serving: Serving) -> None:
    desk, visitor = serving()
    anna = visitor()
    anna.ask("GET", f"/join?token={desk.signer.token}")
    assert anna.ask("POST", "/api/rater", {"name": name})[0] == 400
    assert desk.store.raters() == []


def test_a_name_is_nobody_elses_and_the_number_of_raters_is_kept(serving: Serving) -> None:
    desk, visitor = serving(raters=2)
    anna, other = visitor(), visitor()
    anna.join(desk, "Zoë O'Neil")
    other.ask("GET", f"/join?token={desk.signer.token}")
    assert other.ask("POST", "/api/rater", {"name": "zoë o'neil"})[1]["error"] == "name_taken"
    other.join(desk, "ben")
    third = visitor()
    third.ask("GET", f"/join?token={desk.signer.token}")
    assert third.ask("POST", "/api/rater", {"name": "carl"})[1]["error"] == "full"
    # Who has joined cannot join again under another name.
    assert anna.ask("POST", "/api/rater", {"name": "second"})[1]["name"] == "Zoë O'Neil"


def test_with_named_raters_the_studys_token_lets_nobody_in(serving: Serving, monkeypatch: Any) -> None:
    monkeypatch.setattr("kiwi.benchmark.preference.server.WRONG_TOKEN_DELAY", 0)
    desk, visitor = serving(access=Access(named=("anna",)))
    eve, anna = visitor(), visitor()
    assert eve.ask("GET", f"/join?token={desk.signer.token}")[2]["location"] == "/#refused"
    anna.ask("GET", f"/join?rater={desk.link_key(desk.store.invite('anna'))}")
    assert anna.next()["rater"]["name"] == "anna"


def test_an_undone_votes_old_token_is_void_and_the_new_one_counts(serving: Serving) -> None:
    desk, visitor = serving()
    anna = visitor()
    token = anna.join(desk, "anna")["pairs"][0]["token"]
    anna.vote(token)
    status, said, _ = anna.ask("POST", "/api/undo")
    assert (status, said["undone"], said["progress"]["done"]) == (200, True, 0)
    assert anna.vote(token)[1]["error"] == "stale"
    assert anna.vote(said["pairs"][0]["token"], "tie")[1]["recorded"]
    assert [vote.choice for vote in desk.store.votes()] == ["tie"]


def test_what_the_page_is_told_names_no_set_and_no_check(serving: Serving, make_study: Callable[..., Study]) -> None:
    desk, visitor = serving(study=make_study(attention_share=0.5), raters=1)
    anna = visitor()
    view = anna.join(desk, "anna")
    while view["pairs"]:
        said = json.dumps(view)
        assert not any(word in said for word in ("model0", "model1", "same", "damaged", 'pair"', "kind"))
        view = anna.vote(view["pairs"][0]["token"])[1]
    kinds = {vote.kind for vote in desk.store.votes()}
    assert kinds == {"pair", "same", "damaged"}
