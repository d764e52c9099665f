"""The web server of a study: a page for raters, their assignments and votes, and the clips, for those who may."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kiwi.benchmark.preference.assigning import Aim, Progress, flipped, next_item, progress
from kiwi.benchmark.preference.signing import Signer
from kiwi.benchmark.preference.study import ClipFile, Study
from kiwi.benchmark.preference.votes import Assignment, Choosing, Rater, VoteStore, VotingError

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {
    "app.js": "text/javascript",
    "playback.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
AHEAD = 2  # the pair in view, and the next one, which the page loads meanwhile
BODY_LIMIT = 4096
COOKIE_SECONDS = 180 * 86_400
WRONG_TOKEN_DELAY = 0.5
RATER_NAME = re.compile(r"[^\W_][\w .'-]{0,39}")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
STATUS = {"unassigned": 403, "bad_vote": 400, "name_taken": 409, "full": 403, "stale": 409, "already_voted": 409}

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Access:
    """Who may come in. `hosts`: the names by which the server may be called (None: any), against DNS rebinding.

    `public`: the name and port of the address that raters see, where a proxy stands before this server.
    `named`: raters with links of their own, the only ones then; empty where whoever has the study's link may join.
    """

    hosts: frozenset[str] | None = LOOPBACK
    public: str = ""
    secure: bool = False
    named: tuple[str, ...] = ()


@dataclass(frozen=True)
class Desk:
    """Everything the server works with."""

    study: Study
    folder: Path
    store: VoteStore
    signer: Signer
    aim: Aim
    access: Access

    @property
    def cookie(self) -> str:
        return f"kiwi_{self.study.study_id[:12]}"

    def link_key(self, rater: Rater) -> str:
        """What a rater's own link holds; it brings them back on any device."""
        return f"{rater.rater_id}.{self.signer.sign('rater', self.study.study_id, rater.rater_id)}"

    def rater_of(self, key: str) -> Rater | None:
        """The rater whose key this is, if it is signed."""
        rater_id, _, signature = key.partition(".")
        if not self.signer.signed("rater", self.study.study_id, rater_id, signature=signature):
            return None
        return self.store.rater(rater_id)

    def visitor_key(self) -> str:
        """The cookie of someone who has the study's link and has not joined yet."""
        return f"visitor.{self.signer.sign('visitor', self.study.study_id)}"

    def vote_token(self, rater: Rater, assignment: Assignment) -> str:
        """What lets this rater vote on this assignment, and nobody on anything else."""
        parts = (assignment.assignment_id, str(assignment.round))
        return ".".join((*parts, self.signer.sign("vote", self.study.study_id, rater.rater_id, *parts)))

    def assignment_of(self, rater: Rater, token: str) -> tuple[str, int]:
        """(assignment, round) of a vote's token. Raises VotingError where this rater was not given it."""
        parts = token.split(".")
        if len(parts) != 3 or not self.signer.signed(
            "vote", self.study.study_id, rater.rater_id, parts[0], parts[1], signature=parts[2]
        ):
            raise VotingError("unassigned", "this pair was not given to this rater", "load the page again")
        return parts[0], int(parts[1])


def application(desk: Desk) -> Starlette:
    """The web application of a study."""

    def door(answer: Callable[[Desk, Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def opened(request: Request) -> Response:
            try:
                return await answer(desk, request)
            except VotingError as error:
                return _refusal(STATUS[error.code], error.code, error.message)

        return opened

    app = Starlette(
        routes=[
            Route("/", door(_page)),
            Route("/join", door(_join)),
            Route("/page/{name}", door(_page_file)),
            Route("/media/{name}", door(_media)),
            Route("/api/rater", door(_new_rater), methods=["POST"]),
            Route("/api/next", door(_next), methods=["POST"]),
            Route("/api/vote", door(_vote), methods=["POST"]),
            Route("/api/undo", door(_undo), methods=["POST"]),
        ]
    )
    app.add_middleware(_Guard, access=desk.access)
    return app


class _Guard:
    """Refuses calls by a foreign name and posts from a foreign page; puts the protecting headers on every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        refused = self._refused(Request(scope))
        await (refused or self.app)(scope, receive, sending)

    def _refused(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if self.access.hosts is not None and _hostname(host) not in self.access.hosts:
            return _refusal(
                421, "wrong_host", "this server is not called so; kiwi bench prefer --public-url says its name"
            )
        if request.method == "POST":
            origin = request.headers.get("origin")
            if origin is not None and urlsplit(origin).netloc not in (host, self.access.public or host):
                return _refusal(403, "wrong_origin", "votes come from the study's own page")
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return _refusal(415, "not_json", "send JSON")
        return None


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _refusal(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": code, "message": message}, status)


async def _page(desk: Desk, request: Request) -> Response:
    return FileResponse(PAGE / "index.html", media_type="text/html", headers={"Cache-Control": "no-store"})


async def _page_file(desk: Desk, request: Request) -> Response:
    name = request.path_params["name"]
    if name not in PAGE_FILES:
        return PlainTextResponse("no such file", 404)
    return FileResponse(PAGE / name, media_type=PAGE_FILES[name], headers={"Cache-Control": "no-cache"})


async def _join(desk: Desk, request: Request) -> Response:
    """A link with the study's token, or a rater's own: keeps a cookie and goes to the page, without the secret."""
    home = RedirectResponse("/", 303, headers={"Cache-Control": "no-store"})
    key = request.query_params.get("rater", "")
    if key and await run_in_threadpool(desk.rater_of, key) is not None:
        _remember(desk, home, key)
        return home
    if not key and desk.signer.admits(request.query_params.get("token", "")) and not desk.access.named:
        if await _rater(desk, request) is None:
            _remember(desk, home, desk.visitor_key())
        return home
    await anyio.sleep(WRONG_TOKEN_DELAY)  # guessing takes its time
    return RedirectResponse("/#refused", 303)


def _remember(desk: Desk, response: Response, key: str) -> None:
    secure = desk.access.secure
    response.set_cookie(desk.cookie, key, COOKIE_SECONDS, path="/", httponly=True, samesite="lax", secure=secure)


async def _rater(desk: Desk, request: Request) -> Rater | None:
    return await run_in_threadpool(desk.rater_of, request.cookies.get(desk.cookie, ""))


async def _media(desk: Desk, request: Request) -> Response:
    """A clip or a picture, with ranges, for raters only."""
    name = request.path_params["name"]
    if await _rater(desk, request) is None:
        return _refusal(401, "no_access", "open your link first")
    if name not in desk.study.media:
        return PlainTextResponse("no such file", 404)
    kind = "video/mp4" if name.endswith(".mp4") else "image/png"
    headers = {"Cache-Control": "private, max-age=86400, immutable"}
    return FileResponse(desk.folder / "media" / name, media_type=kind, headers=headers)


async def _body(request: Request) -> Mapping[str, Any]:
    """The JSON object of a request. Raises VotingError for what is none, or too long."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > BODY_LIMIT:
            raise VotingError("bad_vote", "the request is too long")
    try:
        said = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise VotingError("bad_vote", "the request is no JSON") from error
    if not isinstance(said, dict):
        raise VotingError("bad_vote", "the request is no JSON object")
    return said


async def _new_rater(desk: Desk, request: Request) -> Response:
    """Joins under a name. Someone who has joined stays who they are."""
    said = await _body(request)
    rater = await _rater(desk, request)
    if rater is None:
        if desk.access.named or request.cookies.get(desk.cookie, "") != desk.visitor_key():
            return _refusal(401, "no_access", "open the study's link first")
        name = " ".join(str(said.get("name", "")).split())
        if not RATER_NAME.fullmatch(name):
            raise VotingError("bad_vote", "a name has 1 to 40 letters, digits, spaces, dots and hyphens")
        rater = await run_in_threadpool(desk.store.join, name, desk.aim.raters)
    response = JSONResponse({"name": rater.name})
    _remember(desk, response, desk.link_key(rater))
    return response


async def _next(desk: Desk, request: Request) -> Response:
    """The rater's open assignments, the first one to be voted on now, with the progress."""
    said = await _body(request)
    rater = await _rater(desk, request)
    if rater is None:
        joined = request.cookies.get(desk.cookie, "") == desk.visitor_key() and not desk.access.named
        return _refusal(401, "no_name" if joined else "no_access", "join first" if joined else "open your link first")
    return JSONResponse(await run_in_threadpool(_view, desk, rater, bool(said.get("beyond"))))


async def _vote(desk: Desk, request: Request) -> Response:
    """Keeps a vote, once; answers with what comes next."""
    said = await _body(request)
    rater = await _rater(desk, request)
    if rater is None:
        return _refusal(401, "no_access", "open your link first")
    token, choice, seconds = said.get("token"), said.get("choice"), said.get("seconds")
    if not isinstance(token, str) or not isinstance(choice, str):
        raise VotingError("bad_vote", "a vote has a token and a choice")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < 1e9:
        raise VotingError("bad_vote", "a vote has the seconds it took")
    assignment, round_ = desk.assignment_of(rater, token)
    new = await run_in_threadpool(desk.store.vote, rater.rater_id, assignment, round_, choice, seconds)
    view = await run_in_threadpool(_view, desk, rater, bool(said.get("beyond")))
    return JSONResponse({"recorded": new, **view})


async def _undo(desk: Desk, request: Request) -> Response:
    """Takes the last vote back and shows its pair again."""
    said = await _body(request)
    rater = await _rater(desk, request)
    if rater is None:
        return _refusal(401, "no_access", "open your link first")
    undone = await run_in_threadpool(desk.store.undo, rater.rater_id)
    return JSONResponse({"undone": undone, **await run_in_threadpool(_view, desk, rater, bool(said.get("beyond")))})


def _view(desk: Desk, rater: Rater, beyond: bool) -> dict[str, Any]:
    """What the page shows a rater: pairs without any word of whose edits they are, or that one is a check."""
    study, aim, signer = desk.study, desk.aim, desk.signer

    def choose(choosing: Choosing) -> tuple[str, str, bool] | None:
        item = next_item(study, aim, signer, rater.rater_id, choosing.mine, choosing.taken, beyond)
        if item is None:
            return None
        return item.item_id, item.kind, flipped(study, signer, item, choosing.issued.get(item.item_id, 0))

    opened, voted, choosing = desk.store.open_assignments(rater.rater_id, AHEAD, choose)
    far: Progress = progress(study, aim, signer, rater.rater_id, choosing.mine, voted, choosing.taken, beyond)
    return {
        "rater": {"name": rater.name, "link": f"/join?rater={desk.link_key(rater)}"},
        "progress": asdict(far),
        "pairs": [_pair(desk, rater, assignment) for assignment in opened if assignment.item_id in study.items],
    }


def _pair(desk: Desk, rater: Rater, assignment: Assignment) -> dict[str, Any]:
    item = desk.study.items[assignment.item_id]
    left, right = (item.second, item.first) if assignment.flipped else (item.first, item.second)
    reference = item.sample.reference
    return {
        "token": desk.vote_token(rater, assignment),
        "prompt": item.sample.prompt,
        "source": _clip(item.sample.source),
        "reference": f"/media/{reference}" if reference else None,
        "left": _clip(left),
        "right": _clip(right),
    }


def _clip(clip: ClipFile) -> dict[str, Any]:
    return {"url": f"/media/{clip.file}", "width": clip.width, "height": clip.height, "fps": clip.fps}


def serve(desk: Desk, listening: socket.socket) -> None:
    """Serves until it is interrupted. Addresses are not logged: they hold the raters' keys."""
    import uvicorn

    configuration = uvicorn.Config(
        application(desk), log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    uvicorn.Server(configuration).run(sockets=[listening])
