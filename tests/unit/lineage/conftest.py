"""DVC without waiting for its imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kiwi.lineage import process

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """As subprocess.run, but DVC is a fork of a process that has imported it: the same DVC on the same folder, with
    the same words, and not ended with its parent."""
    said = tmp_path_factory.mktemp("dvc") / "said"
    program = [sys.executable, str(Path(__file__).with_name("dvc_forks.py"))]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as dvc:
        assert dvc.stdin is not None
        assert dvc.stdout is not None

        def run(command: list[str], *, cwd: Path, env: dict[str, str], **more: Any) -> subprocess.CompletedProcess[str]:
            start = [sys.executable, "-c", process._DVC, str(os.getpid())]
            if command[: len(start)] != start:
                return subprocess.run(command, cwd=cwd, env=env, **more)
            job = {"arguments": command[len(start) :], "folder": str(cwd), "environment": env, "out": str(said)}
            print(json.dumps(job), file=dvc.stdin, flush=True)
            code = int(dvc.stdout.readline())
            words = [said.with_suffix(f".{name}").read_text() for name in ("stdout", "stderr")]
            return subprocess.CompletedProcess(command, code, *words)

        yield run
        dvc.stdin.close()


@pytest.fixture(scope="module", autouse=True)
def quick_dvc(forks: Run) -> Iterator[None]:
    """DVC's processes are forks, but for who asks for real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "subprocess", SimpleNamespace(run=forks))
        yield


@pytest.fixture
def real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC as users have it."""
    monkeypatch.setattr(process, "subprocess", subprocess)
