"""A training that is killed at random moments has, once it is through, the losses of one that was not, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_trainings_killed_at_20_random_moments_resume_to_the_uninterrupted_losses(tmp_path: Path) -> None:
    program = Path(__file__).with_name("killed_trainings.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "20", "5"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kills"] >= 20
    assert len({step for step in said["resumed"] if step}) >= 3, f"resumed from few steps: {said['resumed']}"
    assert len(said["whole"]) == 24
    assert all(losses == said["whole"] for losses in said["trained"])
    assert set(said["codes"]) <= {0, 143}
    assert 143 in said["codes"]
