"""The benchmark as the gate needs it: the candidate's edits, and the registry's champion's where it has no scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiwi.benchmark.run import ChampionRef, run_benchmark
from kiwi.configuration import RunConfiguration
from kiwi.registry.versions import champion, download_model

if TYPE_CHECKING:
    from kiwi.tracking import TaskRun


def benchmark_with_champion(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """Runs the benchmark on the trained model, with the champion beside it. Returns as `run_benchmark` does.

    Raises:
        TrackingUnavailable: the registry cannot be asked who the champion is.
        BenchmarkError: a stage was not trained, or there are no samples.
    """
    best = champion(configuration)
    if best is None:
        return run_benchmark(configuration, task)
    version = best.version
    reference = ChampionRef(
        name=best.name,
        version=version,
        folder=lambda: download_model(configuration, alias_or_version=version),
        scores=best.scores,
    )
    return run_benchmark(configuration, task, reference)
