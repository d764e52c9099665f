"""A dataset build that is killed with SIGKILL at random moments gives, once it is through, the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_builds_killed_at_50_random_moments_resume_to_the_uninterrupted_bytes(tmp_path: Path) -> None:
    program = Path(__file__).with_name("killed_builds.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "50", "7"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kills"] >= 50
    assert len(said["fell_in"]) >= 5, f"the kills fell in few stages: {said['fell_in']}"
    assert set(said["built"]) == {said["whole"]}
