"""The live view: what it makes of the tasks' records."""

import io

from rich.console import Console

from kiwi.cli.live import lines, table
from kiwi.presets import build
from kiwi.tracking import TaskRecord


def configuration(tmp_path):
    return build("tiny", workspace=tmp_path, tracking_uri="sqlite:///x")


def of(name, rows):
    return next(line for line in rows if line.name == name)


def record(name, shard=None, status="finished", start=100.0, end=110.0, done=50, total=50, **more):
    progress = {"done": done, "total": total, "unit": "rows", "note": ""}
    return TaskRecord(name, shard, status, start, end, 1, progress, **more)


def test_shards_are_taken_together(tmp_path):
    rows = lines([record("score", 0), record("score", 1, "running", 104.0, None, 25, 50)], configuration(tmp_path))
    score = of("score", rows)
    assert (score.state, score.done, score.total) == ("running", 75, 100)


def test_a_stage_is_not_done_before_its_last_shard_began(tmp_path):
    rows = lines([record("ingest", 0), record("ingest", 1), record("score", 0)], configuration(tmp_path))
    assert of("ingest", rows).state == "finished"
    assert of("ingest", rows).seconds == 10.0
    assert of("score", rows).state == "running"


def test_tasks_to_come_are_pending_and_only_the_verdict_that_ran_is_shown(tmp_path):
    rows = lines([record("hold")], configuration(tmp_path))
    assert of("train_stage3", rows).state == "pending"
    assert [line.name for line in rows if line.name in ("promote", "hold")] == ["hold"]


def test_losses_rates_and_errors_are_drawn(tmp_path):
    records = [
        record("train_stage1", curves={"loss": [(1, 0.9), (2, 0.25)]}),
        record("judge", status="failed", error="KiwiError: no edits [at all]"),
    ]
    console = Console(file=io.StringIO(), width=160)
    console.print(table(lines(records, configuration(tmp_path)), 65.0))
    drawn = console.file.getvalue()
    assert "loss 0.2500" in drawn
    assert "KiwiError: no edits [at all]" in drawn
    assert "1:05" in drawn
