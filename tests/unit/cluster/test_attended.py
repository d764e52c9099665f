"""A node goes on as long as its launcher waits, and saves and ends when nobody does any more."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kiwi.cluster import attended, following_jobs
from kiwi.cluster.attended import LOST, command, run, touch

# A training: it says that it began, and at SIGTERM that it saved.
TRAINING = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def save(*_):
    (folder / "saved").touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
(folder / "began").touch()
while True:
    time.sleep(0.01)
"""


@pytest.fixture
def sign(tmp_path):
    file = tmp_path / ".locks" / "kiwi-stage1-0.waiting"
    touch(file)
    return file


def hours_ago(file: Path) -> None:
    then = time.time() - 7200
    os.utime(file, (then, then))


def test_a_nodes_exit_code_is_its_commands(sign):
    assert run(sign, [sys.executable, "-c", "import sys; sys.exit(3)"], poll=0.01) == 3
    assert run(sign, [sys.executable, "-c", ""], poll=0.01) == 0


def test_a_node_that_nobody_waits_for_any_more_saves_and_ends(sign, tmp_path, monkeypatch, capfd):
    class Watched(subprocess.Popen):
        def wait(self, timeout=None):
            if (tmp_path / "began").exists():
                hours_ago(sign)  # the launcher was killed two hours ago
            return super().wait(timeout)

    monkeypatch.setattr(attended.subprocess, "Popen", Watched)
    assert run(sign, [sys.executable, "-c", TRAINING, str(tmp_path)], poll=0.02) == LOST
    assert (tmp_path / "saved").exists()
    assert "nobody waits" in capfd.readouterr().out


def test_a_node_that_is_restarted_when_nobody_waits_starts_nothing(sign, tmp_path):
    hours_ago(sign)
    assert run(sign, [sys.executable, "-c", TRAINING, str(tmp_path)]) == LOST
    assert not (tmp_path / "began").exists()


def test_a_node_goes_on_while_its_launcher_comes_back_again_and_again(sign, monkeypatch):
    """Half an hour passes at each look at the clock but a moment, and the launcher touches the file in between."""
    now = [time.time()]
    monkeypatch.setattr(attended.time, "time", lambda: now[0])
    waited_for = attended._watch(sign, lost=1800)
    for _ in range(5):
        now[0] += 1700
        assert waited_for()
        os.utime(sign, (now[0], now[0]))
    now[0] += 1801
    assert not waited_for()


def test_a_volume_that_does_not_answer_is_no_news(sign, monkeypatch):
    now = [time.time()]
    monkeypatch.setattr(attended.time, "time", lambda: now[0])
    waited_for = attended._watch(sign, lost=1800)
    assert waited_for()
    sign.unlink()
    now[0] += 1700
    assert waited_for()
    unseen = attended._watch(sign, lost=1800)
    now[0] += 1700
    assert unseen(), "before the file is seen for the first time, the time counts from the start"
    now[0] += 200
    assert not unseen()


def test_a_sign_that_cannot_be_given_is_said_and_ends_no_launcher(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    touch(tmp_path / "file" / "sign")
    assert "the nodes end" in capsys.readouterr().out


def test_sigterm_is_passed_on_so_that_the_node_saves(sign, tmp_path):
    inner = [sys.executable, "-c", TRAINING, str(tmp_path)]
    node = subprocess.Popen(command(sign, inner))
    while not (tmp_path / "began").exists():
        assert node.poll() is None
        time.sleep(0.01)
    node.send_signal(signal.SIGTERM)
    assert node.wait() == 1
    assert (tmp_path / "saved").exists()


def test_the_launcher_gives_its_sign_before_there_is_a_job_and_at_every_wait(kubernetes, fake_kubernetes):
    from kiwi.cluster.train_jobs import Placement, train_job

    placement = Placement("kiwi-training", 2, 1, "kiwi:0123456", {}, {}, [])
    body, signs = train_job("kiwi-stage1-0", "kiwi", "stage1", ["python"], placement), []

    def attend():
        signs.append(len(fake_kubernetes.jobs))

    def ends(seconds):
        fake_kubernetes.set("kiwi-stage1-0", "Complete", "JobsCompleted")

    following_jobs.follow(kubernetes, body, lambda: True, lambda line: None, ends, attend=attend)
    assert signs == [0, 1], "once before the job, once while it was waited for"


def test_a_command_that_a_signal_ended_has_the_exit_code_that_a_shell_gives_it(sign):
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run(sign, [sys.executable, "-c", killed], poll=0.01) == 128 + signal.SIGKILL


def test_a_sigterm_that_comes_while_the_command_is_being_started_reaches_it(sign, monkeypatch):
    class Started(subprocess.Popen):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(attended.subprocess, "Popen", Started)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # else the test's own process would end
    try:
        said = run(sign, [sys.executable, "-c", "import time; time.sleep(30)"], poll=0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert said == 128 + signal.SIGTERM


def test_a_volume_that_does_not_answer_at_first_ends_no_node(sign, monkeypatch):
    real = Path.stat

    def stale(path, **how):
        if path == sign:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path, **how)

    monkeypatch.setattr(Path, "stat", stale)
    assert run(sign, [sys.executable, "-c", "import sys; sys.exit(3)"], poll=0.01) == 3
