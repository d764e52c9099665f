"""CI's stage of images and containers (infra/ci/containers.py): when it skips, when it fails, what it leaves behind.

The engines here are FAKES, shell scripts and processes that answer as one would: the real one is what the stage
itself installs, which takes root and a quarter of an hour.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.ci import containers as stage

# A FAKE engine that has every image it is asked about.
ENGINE = """#!/bin/sh
case "$*" in
    info*) echo {root} ;;
    "image ls"*) cat {images} ;;
    "image rm"*) echo "$@" >> {removed} ;;
esac
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose programs a test names; nothing outside its folder is touched."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(stage, "PLACE", tmp_path / "place")
    monkeypatch.setattr(stage, "ROOM", 0)
    monkeypatch.setattr(sys, "argv", ["containers.py"])
    monkeypatch.setattr(os, "getuid", lambda: 0)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def program(machine: Path, name: str, text: str) -> None:
    file = machine / "bin" / name
    file.write_text(text)
    file.chmod(0o755)


@pytest.fixture
def checkout(machine, monkeypatch):
    """A checkout with a build and a test that pass, on a machine with a FAKE engine."""
    for name, text in {
        "infra/images/Dockerfile": "ARG BASE=python:3.11-slim-bookworm\n",
        "infra/images/build.py": "print('built')\n",
        "tests/integration/test_images.py": "def test_it():\n    pass\n",
        "tests/integration/test_docker_backend.py": "def test_it():\n    pass\n",
        "tests/integration/conftest.py": "import pytest\ndef pytest_collection_modifyitems(items):\n"
        "    for item in items:\n        item.add_marker(pytest.mark.services)\n",
    }.items():
        (machine / name).parent.mkdir(parents=True, exist_ok=True)
        (machine / name).write_text(text)
    files = {"root": machine, "images": machine / "images.txt", "removed": machine / "removed.txt"}
    (machine / "images.txt").write_text("kiwi-cpu:0123456\n")
    program(machine, "docker", ENGINE.format(**files))
    monkeypatch.setenv("PATH", f"{machine / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(stage, "ROOT", machine)
    monkeypatch.setattr(stage, "source_tag", lambda: "89abcde")
    return machine


def ended(capfd) -> tuple[int, str]:
    """The stage's exit code and what it said."""
    try:
        stage.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    return code, capfd.readouterr().out


def test_without_root_the_stage_says_so_and_skips(machine, monkeypatch, capfd):
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    code, said = ended(capfd)
    assert code == 0
    assert "SKIPPED, no engine answers, and only root can install" in said


def test_a_second_run_at_the_same_time_skips(machine, capfd):
    with stage.alone():
        code, said = ended(capfd)
    assert code == 0
    assert "SKIPPED, another run of this stage" in said


def test_an_engine_that_does_not_answer_in_time_is_ended(machine, monkeypatch):
    monkeypatch.setenv("PATH", f"{machine / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    program(machine, "docker", "#!/bin/sh\nexit 1\n")
    # A FAKE that never gets as far as writing its number down where `clear` would find it.
    program(machine, "dockerd", f"#!/bin/sh\necho $$ > {machine}/number\nexec sleep 600\n")
    stage.PLACE.mkdir()
    with pytest.raises(stage.StepError, match="does not start"):
        stage.start(stage.Clock(minutes=0.02))
    number = int((machine / "number").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_without_room_the_stage_says_so_and_installs_nothing(machine, monkeypatch, capfd):
    monkeypatch.setattr(stage, "ROOM", 1e18)
    program(machine, "apt-get", "#!/bin/sh\necho called > called.txt\nexit 1\n")
    code, said = ended(capfd)
    assert code == 0
    assert "SKIPPED" in said
    assert "images and runs need 1000000000" in said
    assert "apt-get" not in said


def test_packages_that_cannot_be_installed_are_a_reason_to_skip(machine, capfd, monkeypatch):
    monkeypatch.setattr(stage, "POLICY", machine / "policy")
    program(machine, "apt-get", "#!/bin/sh\necho no mirror answers\nexit 100\n")
    code, said = ended(capfd)
    assert code == 0
    assert "SKIPPED, `apt-get -qq" in said
    assert "no mirror answers" in said
    assert not (machine / "policy").exists(), "the machine's services may start again"


def test_an_engine_that_does_not_start_is_a_reason_to_skip_and_leaves_nothing(machine, capfd):
    program(machine, "setpriv", '#!/bin/sh\nshift 2\nexec "$@"\n')
    program(machine, "dockerd", "#!/bin/sh\necho this kernel has no cgroups\nexit 1\n")
    program(machine, "debootstrap", "#!/bin/sh\n")
    program(machine, "docker", "#!/bin/sh\nexit 1\n")
    code, said = ended(capfd)
    assert code == 0
    assert "SKIPPED, the engine does not start: this kernel has no cgroups" in said
    assert not stage.PLACE.exists()


def test_images_that_are_built_and_pass_their_tests_pass(checkout, capfd):
    code, said = ended(capfd)
    assert code == 0, said
    assert "passed" in said


def test_a_test_that_passes_at_the_second_try_passes(checkout, capfd):
    flaky = "from pathlib import Path\ndef test_it():\n    there = Path('tried').exists()\n    Path('tried').touch()\n"
    (checkout / "tests/integration/test_images.py").write_text(flaky + "    assert there\n")
    code, said = ended(capfd)
    assert code == 0, said
    assert "what failed is tried once more" in said


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("infra/images/build.py", "import sys\nsys.exit('no such package')\n", "build.py"),
        ("tests/integration/test_images.py", "def test_it():\n    assert False\n", "pytest"),
        (
            "tests/integration/test_images.py",
            "import pytest\ndef test_it():\n    pytest.skip('no')\n",
            "1 tests were sk",
        ),
    ],
    ids=["build", "test", "skipped test"],
)
def test_a_build_or_a_test_that_fails_or_is_skipped_fails_the_stage(checkout, capfd, file, text, why):
    (checkout / file).write_text(text)
    code, said = ended(capfd)
    assert code == 1
    assert "FAILED" in said
    assert why in said.partition("FAILED")[2]
    assert not (checkout / "removed.txt").exists(), "nothing was made"


def test_a_build_that_does_not_end_fails_the_stage(checkout, capfd, monkeypatch):
    (checkout / "infra/images/build.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(sys, "argv", ["containers.py", "--minutes", "0"])
    code, said = ended(capfd)
    assert code == 1
    assert "did not end in" in said


def test_images_that_were_there_stay_and_those_that_were_made_go(checkout, capfd):
    made = "kiwi-cpu:0123456\\nkiwi-cpu:89abcde\\nother:latest\\n"
    (checkout / "infra/images/build.py").write_text(f"open('images.txt', 'w').write('{made}')\n")
    assert ended(capfd)[0] == 0
    assert (checkout / "removed.txt").read_text() == "image rm --force kiwi-cpu:89abcde\n"


def test_an_engine_that_goes_away_hides_no_failure(checkout, capfd):
    (checkout / "infra/images/build.py").write_text("import os\nos.remove('bin/docker')\nraise SystemExit(1)\n")
    code, said = ended(capfd)
    assert code == 1
    assert "FAILED" in said
    assert "its images were not removed" in said


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    started = f"import subprocess, time; p = subprocess.Popen(['sleep', '600']); open({str(tmp_path / 'pid')!r}, 'w')"
    with pytest.raises(stage.StepError, match="did not end"):
        stage.run([sys.executable, "-c", f"{started}.write(str(p.pid)); time.sleep(600)"], 2.0, {})
    child = Path(f"/proc/{(tmp_path / 'pid').read_text()}/cmdline")
    by_then(lambda: not child.exists() or b"sleep" not in child.read_bytes(), "it still runs")


def test_what_a_killed_run_left_is_cleared_and_another_program_of_that_number_is_not(machine, monkeypatch):
    stage.PLACE.mkdir()
    pid_file = stage.PLACE / "dockerd.pid"
    wait = "import time; time.sleep(600)"
    engine = subprocess.Popen([sys.executable, "-c", wait, str(pid_file)])
    pid_file.write_text(str(engine.pid))
    by_then(lambda: stage.engine_pid() == engine.pid, "a process has its words a moment after it starts")
    stage.clear()
    assert engine.wait(timeout=30) != 0
    assert not stage.PLACE.exists()

    stage.PLACE.mkdir()
    other = subprocess.Popen([sys.executable, "-c", wait])
    pid_file.write_text(str(other.pid))
    stage.clear()
    try:
        assert other.poll() is None
        assert not stage.PLACE.exists()
    finally:
        other.kill()
        other.wait()


def by_then(condition, what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)
