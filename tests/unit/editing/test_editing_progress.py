"""How far an edit is, where stderr is no terminal."""

from __future__ import annotations

import pytest

from kiwi.cli.editing_progress import PlainProgress


def told(capsys: pytest.CaptureFixture[str], seconds: float, total: int) -> list[str]:
    """What is said of `total` steps that take `seconds` each. The clock is a fake: a real one would take minutes."""
    now = 0.0
    progress = PlainProgress("editing", lambda: now)
    for done in range(1, total + 1):
        progress(done, total)
        now += seconds
    return capsys.readouterr().err.splitlines()


def test_a_slow_edit_says_how_far_it_is_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, 5.0, 1000)
    assert len(said) == 499
    assert said[0] == "editing: 0%, 83:05 left"
    assert said[249] == "editing: 50%, 41:35 left"


def test_a_fast_edit_says_it_at_every_tenth_and_a_short_one_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, 0.25, 100)
    shares = [int(line.removeprefix("editing: ").split("%")[0]) for line in said]
    assert [share // 10 for share in shares] == list(range(1, 10))
    assert told(capsys, 0.01, 100) == []
