"""The raters' page in a real Chromium, headless, with real clicks and keys, against the real command.

Needs `chromium` (or KIWI_CHROMIUM) and the package websocket-client; skipped with the reason where one is absent.
"""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kiwi.media import encode_video, png_bytes
from tests.integration.chromium import Browser, Page, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SAMPLES, FRAMES, FPS = 6, 24, 8.0
HOSTILE = "<img src=x onerror=\"window.hacked=1\"></script><script>window.hacked=1</script>{{7*7}} & 'quote'"


def ready(page: Page) -> str:
    """Waits until a pair can be voted on; returns its token."""
    return str(page.wait("document.body.dataset.ready"))


def join(page: Page, link: str, name: str) -> None:
    page.go(link)
    page.wait("!document.getElementById('welcome').hidden")
    page.click("#name")
    page.write(name)
    page.click("#start")
    ready(page)


def vote(page: Page, how: Callable[[], None]) -> None:
    """Votes on the pair in view and waits for what comes next."""
    token = ready(page)
    how()
    page.wait(
        f"(document.body.dataset.ready && document.body.dataset.ready !== {json.dumps(token)})"
        "|| !document.getElementById('done').hidden"
    )


def progress(page: Page) -> str:
    return str(page.value("document.getElementById('count').textContent"))


class Server:
    """The command itself, as a user starts it; it can be killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.arguments = ["--study", str(folder), "--json", *options]
        self.process: subprocess.Popen[str] | None = None
        self.port = "0"

    def start(self, *edits: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "kiwi", "bench", "prefer", *edits, "--port", self.port, *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr is not None
            raise AssertionError(self.process.stderr.read())
        said: dict[str, Any] = json.loads(line)
        address = said["url"] or next(iter(said["raters"].values()))
        self.port = address.split(":")[2].split("/")[0]
        return said

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def write_edits(folder: Path, shade: int, prompt: str, size: tuple[int, int], sources: bool) -> str:
    """A folder of edits with edits.csv: a bright square that moves over a shade."""
    folder.mkdir()
    height, width = size
    fields = ["id", "edit_video", "src_video", "prompt", "ref_image", "kind"]
    with (folder / "edits.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, fields)
        table.writeheader()
        for number in range(SAMPLES):
            frames = np.full((FRAMES, height, width, 3), (shade, 90 + 15 * number, 120), np.uint8)
            for place, frame in enumerate(frames):
                at = (width - height // 4) * place // FRAMES
                frame[height // 3 : height // 2, at : at + height // 4] = 240
            encode_video(folder / f"{number}.mp4", frames, FPS)
            row = {"id": f"s{number}", "edit_video": f"{number}.mp4", "kind": f"kind{number % 2}"}
            if sources:
                encode_video(folder / f"source{number}.mp4", frames[:, :, ::-1], FPS)
                (folder / "reference.png").write_bytes(png_bytes(frames[0, :, : height // 2]))
                said = {"src_video": f"source{number}.mp4", "prompt": f"{prompt} {number}"}
                row |= said | ({"ref_image": "reference.png"} if number % 2 else {})
            table.writerow(row)
    return str(folder)


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
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("edits")
    size = (180, 320)
    return [
        write_edits(home / name, shade, HOSTILE, size, name == "one") for name, shade in (("one", 30), ("two", 200))
    ]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[Server, dict[str, Any]]]]:
    """Starts the command on a study in tmp_path; it is ended after the test."""
    started: list[Server] = []

    def starting(edits: list[str], *options: str) -> tuple[Server, dict[str, Any]]:
        server = Server(tmp_path / "study", *options)
        started.append(server)
        return server, server.start(*edits)

    yield starting
    for server in started:
        server.kill()


def results(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "kiwi", "bench", "prefer", "--study", str(folder), "--results", "--json"]
    said: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return said


def exported(folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "kiwi", "bench", "prefer", "--study", str(folder), "--json"]
    out = folder / "votes.jsonl"
    subprocess.run([*command, "--export", str(out)], check=True, capture_output=True)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_rater_votes_by_mouse_and_by_keys_to_the_end_and_the_votes_are_kept_as_given(
    start: Any, page: Page, folders: list[str], tmp_path: Path
) -> None:
    _, said = start(folders, "--raters", "1", "--attention-share", "0")
    join(page, said["url"], "Anna")
    assert progress(page) == f"0 of {SAMPLES}"
    vote(page, lambda: page.click("[data-choice=left]"))
    vote(page, lambda: page.click("[data-choice=both_bad]"))
    vote(page, lambda: page.key("ArrowRight"))
    vote(page, lambda: page.key("3"))
    vote(page, lambda: page.key("ArrowDown"))
    assert progress(page) == f"5 of {SAMPLES}"
    vote(page, lambda: page.key("1"))
    page.wait("!document.getElementById('done').hidden")
    rows = exported(tmp_path / "study")
    assert [row["choice"] for row in rows] == ["left", "both_bad", "right", "tie", "both_bad", "left"]
    assert all(row["rater"] == "Anna" and row["seconds"] > 0 for row in rows)
    assert page.troubles == []


def test_an_instruction_with_markup_is_shown_as_text_and_runs_nothing(
    start: Any, page: Page, folders: list[str]
) -> None:
    _, said = start(folders, "--raters", "1")
    join(page, said["url"], "Anna")
    shown = page.value("document.getElementById('prompt').textContent")
    assert shown.startswith(HOSTILE)
    assert page.value("document.getElementById('prompt').children.length") == 0
    assert page.value("typeof window.hacked") == "undefined"
    # Were markup to get in all the same, the page's policy would not run it.
    page.value("document.getElementById('prompt').innerHTML = document.getElementById('prompt').textContent")
    page.value("new Promise((done) => setTimeout(done, 300))")
    assert page.value("typeof window.hacked") == "undefined"


def test_the_page_tells_nothing_of_whose_edit_is_where(start: Any, page: Page, folders: list[str]) -> None:
    edits = [f"secretmodel{number}={folder}" for number, folder in enumerate(folders)]
    _, said = start(edits, "--raters", "1", "--attention-share", "0.5")
    join(page, said["url"], "Anna")
    for _ in range(4):
        vote(page, lambda: page.key("1"))
        answer = page.value(
            "fetch('/api/next', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{}'})"
            ".then((said) => said.text())"
        )
        everything = answer + page.value("document.documentElement.outerHTML")
        for word in ("secretmodel", "damaged", "same|", "flipped", "attention"):
            assert word not in everything.lower()


def test_both_edits_and_the_source_start_stop_seek_and_step_together(
    start: Any, page: Page, folders: list[str]
) -> None:
    _, said = start(folders, "--raters", "1", "--attention-share", "0")
    join(page, said["url"], "Anna")
    times = "kiwi.playback.videos.map((video) => video.currentTime)"
    page.wait(f"{times}.every((time) => time > 0.3)")
    drifts = [page.value("kiwi.playback.drift") for _ in range(20)]
    assert float(np.median(drifts)) < 2 / FPS
    page.key(" ")
    page.wait("kiwi.playback.videos.every((video) => video.paused && !video.seeking)")
    held = page.value(times)
    assert max(held) - min(held) < 1e-3
    page.key(".")
    page.wait("kiwi.playback.videos.every((video) => !video.seeking)")
    stepped = page.value(times)
    assert max(stepped) - min(stepped) < 1e-3
    page.value("kiwi.playback.seek(1.5)")
    page.wait(f"{times}.every((time) => Math.abs(time - 1.5) < 1e-3)")
    page.key("s")
    assert page.value("kiwi.playback.videos.map((video) => video.playbackRate)") == [0.5, 0.5, 0.5]
    page.click("#play")
    page.wait("kiwi.playback.videos.every((video) => !video.paused)")


def test_a_step_is_one_frame_forward_or_back_and_stays_in_the_clip(start: Any, page: Page, folders: list[str]) -> None:
    _, said = start(folders, "--raters", "1", "--attention-share", "0")
    join(page, said["url"], "Anna")
    page.key(" ")
    page.value("kiwi.playback.seek(1.09)")

    def shown() -> list[int]:
        page.wait("kiwi.playback.videos.every((video) => video.paused && !video.seeking)")
        return [int(time * FPS + 1e-3) for time in page.value("kiwi.playback.videos.map((video) => video.currentTime)")]

    frames = [shown()]
    for key in "..,,,":
        page.key(key)
        frames.append(shown())
    assert frames == [[frame] * 3 for frame in (8, 9, 10, 9, 8, 7)]
    page.value("kiwi.playback.seek(9)")  # the end
    page.key(",")
    assert shown() == [FRAMES - 2] * 3
    page.key(".")
    page.key(".")
    assert shown() == [FRAMES - 1] * 3


def test_help_by_mouse_or_key_gives_the_keys_back_when_it_closes(start: Any, page: Page, folders: list[str]) -> None:
    _, said = start(folders, "--raters", "1", "--attention-share", "0")
    join(page, said["url"], "Anna")
    for opening in (lambda: page.click("#help"), lambda: page.key("?")):
        for closing in ("Enter", "Escape"):
            opening()
            page.wait("document.getElementById('helping').open")
            page.key(closing)
            page.wait("!document.getElementById('helping').open")
            page.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            playing = page.value("kiwi.playback.wanted")
            page.key(" ")
            page.wait(f"kiwi.playback.wanted === {json.dumps(not playing)}")
            assert not page.value("document.getElementById('helping').open")
    vote(page, lambda: page.key("ArrowUp"))


def test_the_next_pair_is_loaded_while_one_is_looked_at(start: Any, page: Page, folders: list[str]) -> None:
    _, said = start(folders, "--raters", "1", "--attention-share", "0")
    join(page, said["url"], "Anna")
    names = (
        "performance.getEntriesByType('resource').map((each) => each.name).filter((name) => name.includes('/media/'))"
    )
    page.wait(f"new Set({names}).size >= 6")
    shown = page.value("[...document.querySelectorAll('video')].map((video) => video.src)")
    assert len(shown) == 3
    assert len(set(page.value(names)) - set(shown)) >= 3


def test_a_vote_can_be_taken_back_and_given_again(start: Any, page: Page, folders: list[str], tmp_path: Path) -> None:
    _, said = start(folders, "--raters", "1", "--attention-share", "0")
    join(page, said["url"], "Anna")
    first = page.value("document.getElementById('prompt').textContent")
    vote(page, lambda: page.key("1"))
    assert page.value("document.getElementById('prompt').textContent") != first
    vote(page, lambda: page.key("u"))
    assert page.value("document.getElementById('prompt').textContent") == first
    assert progress(page) == f"0 of {SAMPLES}"
    vote(page, lambda: page.click("[data-choice=tie]"))
    assert [row["choice"] for row in exported(tmp_path / "study")] == ["tie"]
    assert results(tmp_path / "study")["undone"] == 1


def test_a_killed_server_and_a_new_tab_go_on_where_the_rater_was(
    start: Any, page: Page, folders: list[str], tmp_path: Path
) -> None:
    server, said = start(folders, "--raters", "1", "--attention-share", "0")
    join(page, said["url"], "Anna")
    vote(page, lambda: page.key("1"))
    vote(page, lambda: page.key("2"))
    shown = page.value("document.getElementById('prompt').textContent")
    server.kill()
    page.key("3")  # a vote while the server is away is kept by the page, and sent again
    page.wait("document.getElementById('status').textContent.includes('Not saved yet')")
    server.start()
    page.wait(f"document.getElementById('count').textContent === '3 of {SAMPLES}'", 40)
    page.go("about:blank")
    page.go(said["url"].split("/join")[0])
    ready(page)
    assert progress(page) == f"3 of {SAMPLES}"
    assert page.value("document.getElementById('prompt').textContent") != shown
    assert [row["choice"] for row in exported(tmp_path / "study")] == ["left", "right", "tie"]


def test_a_raters_own_link_brings_them_back_in_another_browser(
    start: Any, browser: Browser, folders: list[str]
) -> None:
    _, said = start(folders, "--raters", "anna,ben", "--attention-share", "0")
    assert said["url"] is None
    one, other, stranger = Page(browser), Page(browser), Page(browser)
    one.go(said["raters"]["anna"])
    vote(one, lambda: one.key("1"))
    other.go(said["raters"]["anna"])
    ready(other)
    assert progress(other).startswith("1 of ")
    assert "rater=" not in other.value("location.href")
    stranger.go(said["raters"]["anna"].split("/join")[0])
    stranger.wait("!document.getElementById('no-access').hidden")


def test_two_raters_see_each_comparison_with_its_sides_exchanged(
    start: Any, browser: Browser, folders: list[str], tmp_path: Path
) -> None:
    _, said = start(folders, "--raters", "2", "--attention-share", "0.25")
    pages = {name: Page(browser) for name in ("Anna", "Ben")}
    for name, page in pages.items():
        join(page, said["url"], name)
    for page in pages.values():
        while page.value("document.getElementById('done').hidden"):
            vote(page, lambda page=page: page.key("2"))
    rows = [row for row in exported(tmp_path / "study") if row["kind"] == "pair"]
    assert Counter(row["rater"] for row in rows) == {"Anna": SAMPLES, "Ben": SAMPLES}
    sides = Counter((row["sample"], row["left"]) for row in rows)
    assert set(sides.values()) == {1}
    assert len(sides) == 2 * SAMPLES


@pytest.mark.parametrize("words", [0, 8], ids=["short", "long"])
@pytest.mark.parametrize("size", [(390, 844), (1280, 800)], ids=["phone", "desktop"])
@pytest.mark.parametrize("shape", [(180, 320), (256, 256), (320, 180)], ids=["wide", "square", "upright"])
def test_everything_a_rater_needs_fits_the_window(
    words: int, size: tuple[int, int], shape: tuple[int, int], start: Any, page: Page, tmp_path: Path
) -> None:
    prompt = "Replace the parked car by a red bicycle that leans against the wall, " + words * "and leave it there, "
    folders = [
        write_edits(tmp_path / name, shade, prompt, shape, name == "a") for name, shade in (("a", 30), ("b", 200))
    ]
    _, said = start(folders, "--raters", "1", "--attention-share", "0")
    page.size(*size)
    join(page, said["url"], "Anna")
    assert page.value("document.documentElement.scrollWidth") <= size[0]
    edges = page.value(
        "['#left', '#right', ...['left', 'right', 'tie', 'both_bad'].map((each) => `[data-choice=${each}]`)]"
        ".map((each) => { const box = document.querySelector(each).getBoundingClientRect();"
        "return [box.left, box.top, box.right, box.bottom] })"
    )
    for left, top, right, bottom in edges:
        assert min(left, top, size[0] - right, size[1] + 1 - bottom) >= 0
    buttons = page.value(
        "[...document.querySelectorAll('#vote button')].map((each) => each.getBoundingClientRect().height)"
    )
    assert min(buttons) >= 44  # a thumb's width


def test_clips_are_for_raters_only_and_come_in_ranges(
    start: Any, page: Page, folders: list[str], tmp_path: Path
) -> None:
    _, said = start(folders, "--raters", "1")
    site = said["url"].split("/join")[0]
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    clip = f"{site}/media/{study['samples'][0]['source']['file']}"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(clip)
    join(page, said["url"], "Anna")
    got = page.value(
        f"fetch({json.dumps(clip)}, {{headers: {{Range: 'bytes=10-19'}}}}).then(async (said) =>"
        "[said.status, said.headers.get('content-range'), (await said.arrayBuffer()).byteLength])"
    )
    assert (got[0], got[1].partition("/")[0], got[2]) == (206, "bytes 10-19", 10)
