"""A run that is stopped leaves its report and summary; being stopped again, or a fault of theirs, ends it at once."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kiwi.configuration import RunConfiguration
from kiwi.runs import claim
from kiwi.workspace import read_json

REPOSITORY = Path(__file__).resolve().parents[3]
STOPPED = """
import sys, time
from pathlib import Path
from kiwi import runs
from kiwi.cli import run
from kiwi.configuration import RunConfiguration

configuration = RunConfiguration.parse(Path(sys.argv[1]).read_text())
def drawing(configuration):  # stands for a page with many large clips
    print("drawing", flush=True)
    time.sleep(600)
if sys.argv[2] == "slow":
    runs.close_stopped_run = drawing
run.DRAWING_SECONDS = float(sys.argv[3])
with run._stopped_by_signals(), runs.claim(configuration, "local") as attempt:
    runs.record_end(attempt.workspace, "interrupted")
    run._draw_so_far(attempt, Path(sys.argv[4]))
    print("went on", flush=True)
"""


def stopped(configuration: RunConfiguration, how: str, seconds: float, summary: Path) -> subprocess.Popen[str]:
    said = configuration.workdir.parent / "said.json"
    said.write_text(configuration.canonical())
    return subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(said), how, str(seconds), str(summary)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_stopped_run_leaves_its_page_and_its_summary_where_they_were_asked_for(
    configuration: RunConfiguration, tmp_path: Path
) -> None:
    asked = tmp_path / "out" / "summary.json"
    process = stopped(configuration, "as it is", 60, asked)
    out, err = process.communicate(timeout=60)
    assert "went on" in out, err
    page = configuration.workdir / "report" / "index.html"
    assert str(page) in err
    assert "The run was stopped before any task began" in page.read_text()
    assert read_json(asked) == read_json(configuration.workdir / "summary.json")
    assert read_json(asked)["run"]["status"] == "interrupted"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_stop_does_not_wait_for_the_page(
    configuration: RunConfiguration, tmp_path: Path, signum: signal.Signals
) -> None:
    process = stopped(configuration, "slow", 600, tmp_path / "summary.json")
    assert process.stdout is not None
    assert process.stdout.readline() == "drawing\n"
    process.send_signal(signum)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "went on" not in out
    with claim(configuration, "local") as again:
        assert again.kind == "resumed"


def test_a_page_that_takes_too_long_is_left_and_said(configuration: RunConfiguration, tmp_path: Path) -> None:
    process = stopped(configuration, "slow", 0.2, tmp_path / "summary.json")
    out, err = process.communicate(timeout=30)
    assert "went on" in out
    assert "was not drawn within 0.2 s" in err


TOO_LONG = """
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
import kiwi.tracking
from kiwi import runs
from kiwi.cli import run

def drawing(configuration):  # stands for clips that are decoded side by side
    with ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, 600)
runs.close_stopped_run = drawing
kiwi.tracking.send = lambda configuration, status: print("sent", flush=True)
run.DRAWING_SECONDS = 0.2
run._stop(SimpleNamespace(id="one", configuration=None, workspace=SimpleNamespace(report=Path("report"))), None)
"""
HUNG_UP = """
import subprocess, sys
from pathlib import Path
from kiwi import runs
from kiwi.cli import run
from kiwi.configuration import RunConfiguration

def start(attempt, image):  # stands for the pipeline's process
    run.log_file(attempt).parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(["sleep", "600"], start_new_session=True)
run._start = start
configuration = RunConfiguration.parse(Path(sys.argv[1]).read_text())
with run._stopped_by_signals(), runs.claim(configuration, "local") as attempt:
    run.conduct(attempt, None, False)
"""
IGNORED = """
import os, signal
from kiwi.cli import run
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with run._stopped_by_signals():
    os.kill(os.getpid(), signal.SIGHUP)
    print("goes on")
"""


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_clips_that_are_still_decoded_when_the_time_is_up_hold_nothing_up():
    done = python(TOO_LONG)
    assert done.returncode == 130
    assert "sent" in done.stdout
    assert "was not drawn within 0.2 s" in done.stderr


def test_a_run_goes_on_after_a_hangup_that_its_starter_had_ignored():
    assert python(IGNORED).stdout == "goes on\n"


def test_a_run_whose_terminal_was_closed_leaves_its_report_and_is_marked_as_stopped(configuration):
    said = configuration.workdir.parent / "said.json"
    said.write_text(configuration.canonical())
    child, terminal = pty.fork()
    if child == 0:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, "-c", HUNG_UP, str(said)], environment)
    shown = b""
    while b"\x1b[?25l" not in shown:  # the table, which hides the cursor
        shown += os.read(terminal, 1024)
    record = configuration.workdir / "run.json"
    os.close(terminal)
    os.waitpid(child, 0)
    assert json.loads(record.read_text())["status"] == "interrupted"
    assert (configuration.workdir / "report" / "index.html").exists()
