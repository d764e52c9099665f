"""The run report in a real Chromium, headless: on a desk and on a phone, light and dark, without a network, by keys.

Needs `chromium` (or KIWI_CHROMIUM) and the package websocket-client; skipped with the reason where one is absent. The
run is made up (tests/unit/reports/conftest.py); its clips are real files. KIWI_SCREENSHOTS=FOLDER keeps pictures.
"""

from __future__ import annotations

import base64
import functools
import http.server
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kiwi.configuration import GateSettings
from kiwi.reports import ONE_FILE, write_report
from kiwi.tracking import silent
from kiwi.workspace import read_json, write_json
from tests.integration.chromium import Browser, Page, missing
from tests.unit.reports.conftest import MadeUpRun

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

ATTACK = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>{{7*7}}'
LONG = "supercalifragilistic" * 8
PLAYING = "[...document.querySelectorAll('video')].filter((each) => !each.paused)"
FRAME = """<!doctype html><body style="margin:0"><iframe id="f" sandbox="allow-scripts"
style="width:100%;height:780px;border:0"></iframe><script>
fetch("page.html").then((got) => got.text()).then((text) => { document.getElementById("f").srcdoc = text; });
</script>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    made = Browser()
    yield made
    made.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    made = Page(browser)
    yield made
    browser.call("Target.disposeBrowserContext", browserContextId=made.context)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that waits for approvals, with markup and long words wherever people write."""
    os.environ.pop("KIWI_RUN_ID", None)
    gate = GateSettings(approvals=2, approvers=("Ada", ATTACK))
    run = MadeUpRun(tmp_path_factory.mktemp("report") / "workspace", gate=gate).everything()
    waits = {"for": "approvals", "why": "kiwi-edit-tiny version 2 has 1 of 2 approvals (Ada)"}
    model = {"name": "kiwi-edit-tiny", "version": "2", "aliases": ["challenger"], "waits": waits}
    write_json(run.root / "model.json", model)
    edits = read_json(run.root / "benchmark" / "edits.json")
    for place, sample in enumerate(edits["samples"]):
        sample["prompt"] = (ATTACK, LONG, sample["prompt"])[place % 3]
    write_json(run.root / "benchmark" / "edits.json", edits)
    scores = read_json(run.root / "benchmark" / "scores.json")
    scores["failures"] = [{"id": ATTACK, "reason": "reply_invalid", "detail": f"{ATTACK} {LONG}"}]
    write_json(run.root / "benchmark" / "scores.json", scores)
    return write_report(run.configuration, silent()).parent


def opened(page: Page, path: Path) -> None:
    page.go(f"file://{path}")
    page.wait("document.readyState === 'complete' && !!document.querySelector('h1')")


@pytest.mark.parametrize("name", ["index.html", ONE_FILE, "dataset.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_fits_the_window_and_complains_of_nothing(
    page: Page, folder: Path, width: int, scheme: str, name: str
) -> None:
    page.size(width, 844, scheme)
    opened(page, folder / name)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("typeof window.hacked") == "undefined"
    assert page.troubles == []
    shade = page.value("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)[0]")
    assert (shade > 128) == (scheme == "light")
    if place := os.environ.get("KIWI_SCREENSHOTS"):
        size = page.value("[document.documentElement.clientWidth, Math.min(document.body.scrollHeight, 6000)]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        shot = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        Path(place, f"{Path(name).stem}-{width}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))


@pytest.mark.parametrize("name", ["index.html", ONE_FILE, "dataset.html"])
def test_on_paper_nothing_is_cut_off_or_dark(page: Page, folder: Path, name: str) -> None:
    page.size(718, 1000)  # A4 within a browser's margins
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.call("Emulation.setEmulatedMedia", media="print", features=dark)
    opened(page, folder / name)
    cut = page.value(
        "[...document.querySelectorAll('main *:not(.sr):not(.sr *)')].filter((each) => each.clientWidth"
        "&& getComputedStyle(each).overflowX !== 'visible' && each.scrollWidth > each.clientWidth + 1)"
        ".map((each) => `${each.tagName}.${each.className}: ${each.textContent.slice(0, 40)}`)"
    )
    assert cut == []
    assert page.value("document.documentElement.scrollWidth") <= 718
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.value("getComputedStyle(document.body).color.match(/[0-9]+/g).map(Number)[0]") < 64


def test_markup_that_people_wrote_is_shown_as_text(page: Page, folder: Path) -> None:
    opened(page, folder / "index.html")
    assert page.value("[...document.querySelectorAll('.prompt')].some((each) => each.textContent.startsWith('<img'))")
    assert page.value("document.querySelectorAll('.prompt *, .unjudged img, .reasons li *').length") == 0
    # Were markup to get in all the same, the page's policy would not run it.
    page.value("document.querySelector('.prompt').innerHTML = '<img src=data:, onerror=\"window.hacked=1\">'")
    page.value("new Promise((done) => setTimeout(done, 300))")
    assert page.value("typeof window.hacked") == "undefined"


def test_few_cards_play_at_once_and_only_those_in_view(page: Page, folder: Path) -> None:
    page.size(1280, 1200)
    opened(page, folder / "index.html")
    assert page.value(f"{PLAYING}.length") == 0
    page.value("document.getElementById('gallery').scrollIntoView()")
    page.wait(f"{PLAYING}.length > 0")
    page.value("new Promise((done) => setTimeout(done, 500))")
    assert page.value(f"new Set({PLAYING}.map((each) => each.closest('[data-card]'))).size") <= 3
    page.value("scrollTo(0, 0)")
    page.wait(f"{PLAYING}.length === 0")


def test_a_reader_who_wants_little_motion_sees_none_until_they_ask(page: Page, folder: Path) -> None:
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    opened(page, folder / "index.html")
    page.value("document.querySelector('#gallery .card').scrollIntoView({block: 'center'})")
    page.value("new Promise((done) => setTimeout(done, 700))")
    assert page.value(f"{PLAYING}.length") == 0
    page.click("#gallery .card .play")
    page.wait(f"{PLAYING}.length > 0")


def test_every_clip_has_its_first_frame_and_can_be_played_by_keys(page: Page, folder: Path) -> None:
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    opened(page, folder / "index.html")
    assert page.value("[...document.querySelectorAll('a[data-clip]')].every((each) => each.querySelector('img[src]'))")
    assert page.value("[...document.querySelectorAll('video')].every((each) => each.poster)")
    page.value("document.querySelector('#gallery .card .play').focus()")
    page.key(" ")
    page.wait(f"{PLAYING}.length > 0")
    page.key(" ")
    page.wait(f"{PLAYING}.length === 0")


def test_what_is_wider_than_a_phone_can_be_reached_by_keys(page: Page, folder: Path) -> None:
    page.size(390, 844)
    opened(page, folder / "index.html")
    boxes = "[...document.querySelectorAll('.scroll, .cards, nav')]"
    wide = f"{boxes}.filter((each) => each.scrollWidth > each.clientWidth + 1)"
    page.wait(f"{wide}.length > 0 && {wide}.every((each) => each.tabIndex === 0)")


def test_without_script_every_clip_is_still_a_link_to_it(page: Page, folder: Path) -> None:
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.go(f"file://{folder / 'index.html'}")
    page.call("DOM.enable")
    links: list[int] = []
    deadline = time.monotonic() + 20
    while len(links) < 18 and time.monotonic() < deadline:
        time.sleep(0.1)
        links = found_without_script(page, "#gallery a.clip[href$='.mp4'] img")
    assert len(links) >= 18


def found_without_script(page: Page, selector: str) -> list[int]:
    try:
        root = page.call("DOM.getDocument", depth=0)["root"]["nodeId"]
        found: list[int] = page.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"]
    except AssertionError:  # the page is changing
        return []
    return found


def test_the_one_file_works_in_a_frame_as_kubeflows_page_shows_it(page: Page, folder: Path, tmp_path: Path) -> None:
    """The frame is as in KFP's HTMLViewer: srcdoc, scripts allowed, an origin of its own."""
    shutil.copyfile(folder / ONE_FILE, tmp_path / "page.html")
    (tmp_path / "index.html").write_text(FRAME, encoding="utf-8")
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page.size(1280, 800)
    page.go(f"http://127.0.0.1:{server.server_port}/index.html")
    assert "passed the gate" in within(page, "document.querySelector('h1')?.textContent")
    within(page, "(document.querySelector('nav a[href=\"#gallery\"]').click(), scrollY > 500)")
    within(page, f"{PLAYING}.length > 0")
    assert page.value("location.pathname") == "/index.html"
    server.shutdown()


def within(page: Page, expression: str, seconds: float = 20) -> Any:
    """The first true value of an expression in the page's frame."""
    deadline = time.monotonic() + seconds
    found = None
    while not found and time.monotonic() < deadline:
        time.sleep(0.1)
        frames = page.call("Page.getFrameTree")["frameTree"].get("childFrames")
        if frames:
            world = page.call("Page.createIsolatedWorld", frameId=frames[0]["frame"]["id"])["executionContextId"]
            answer = page.call("Runtime.evaluate", expression=expression, contextId=world, returnByValue=True)
            found = answer["result"].get("value")
    assert found, f"never true in the frame: {expression}"
    return found


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
