"""The judges, by name."""

from __future__ import annotations

from collections.abc import Callable

from kiwi.benchmark.measured import MeasuredJudge
from kiwi.benchmark.rubric import Judge, OneByOne
from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError
from kiwi.workspace import Workspace


def judge_of(configuration: RunConfiguration) -> Judge:
    """The configuration's judge. Nothing is contacted before it judges.

    Raises UsageError for one that does not exist, or whose rubric texts cannot be read.
    """
    judges: dict[str, Callable[[RunConfiguration], Judge]] = {"measured": _measured, "mllm": _mllm}
    name = configuration.benchmark.judge
    if name not in judges:
        raise UsageError(f"no judge {name!r}", f"judges: {', '.join(judges)}")
    return judges[name](configuration)


def _measured(configuration: RunConfiguration) -> Judge:
    return OneByOne(MeasuredJudge())


def _mllm(configuration: RunConfiguration) -> Judge:
    from kiwi.benchmark.mllm_judge import MllmJudge

    replies = Workspace.of(configuration).root / "benchmark" / "replies"
    return MllmJudge.from_settings(configuration.benchmark, str(replies))
