"""`kiwi run --backend kfp` against the fake pipelines server: what is submitted, and how its end is told."""

from __future__ import annotations

import pytest

from kiwi.cli.following import follow
from kiwi.errors import KiwiError


def _started(fake, **said):
    fake.runs["id-1"] = {"run_id": "id-1", "display_name": "end_to_end-demo", **said}


def test_a_run_is_followed_through_its_states_to_its_end(cluster, fake, capsys):
    _started(fake)
    states = iter(["RUNNING", "RUNNING", "SUCCEEDED"])
    waited = []

    def pause(seconds):
        waited.append(seconds)
        fake.runs["id-1"]["state"] = next(states)

    assert follow(cluster, "id-1", pause) == "SUCCEEDED"
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert len(waited) == 3


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "SKIPPED"])
def test_a_run_that_did_not_succeed_ends_the_waiting(cluster, fake, state):
    _started(fake, state=state)
    assert follow(cluster, "id-1", pause=lambda seconds: pytest.fail("it has ended")) == state


def test_a_run_that_was_deleted_is_no_success(cluster, fake):
    with pytest.raises(KiwiError, match="id-1"):
        follow(cluster, "id-1", pause=lambda seconds: None)
