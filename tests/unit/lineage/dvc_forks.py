"""Runs DVC commands as forks of one process that has imported DVC: of a run's second, four fifths are importing.

Reads {"arguments", "folder", "environment", "out"} line by line, and answers each with the exit code. What a command
says is in OUT.stdout and OUT.stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any

# What `dvc add`, `push` and `pull` import when they run.
LATER = (
    "dvc.commands.add", "dvc.commands.data_sync", "dvc.data_cloud", "dvc.dirs", "dvc.lock", "dvc.repo.index",
    "dvc.repo.artifacts", "dvc.repo.graph", "dvc.repo.metrics", "dvc.repo.params", "dvc.repo.plots", "dvc.repo.pull",
    "dvc.repo.push", "dvc.scm", "dvc_data.index.checkout", "dvc_data.index.fetch", "dvc_data.index.push", "diskcache",
    "dulwich.wildmatch", "networkx", "psutil", "pygit2", "rich.console", "rich.table", "ruamel.yaml", "sqlite3",
    "zc.lockfile",
)  # fmt: skip


def forked(job: dict[str, Any]) -> int:
    """The number of a fork that runs a command and ends with its exit code."""
    child = os.fork()
    if child:
        return child
    status = 255
    try:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{job['out']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.environ.clear()
        os.environ.update(job["environment"])
        os.chdir(job["folder"])
        status = main(job["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    from dvc.cli import main
    from dvc.cli.parser import get_main_parser

    get_main_parser()
    for module in LATER:
        importlib.import_module(module)
    for line in sys.stdin:
        print(os.waitstatus_to_exitcode(os.waitpid(forked(json.loads(line)), 0)[1]), flush=True)
