"""The benchmark as the gate needs it: the candidate's edits, and the registry's champion's where it has no scores."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kiwi.benchmark.listed import load_listed
from kiwi.benchmark.listed_edits import edit_listed
from kiwi.benchmark.listed_scores import needs_no_truth
from kiwi.benchmark.run import ChampionRef, Told, run_benchmark
from kiwi.configuration import RunConfiguration
from kiwi.registry.versions import ModelVersion, champion, download_model
from kiwi.tracking.server import TrackingError, answers, connect, tracking_uri
from kiwi.workspace import read_json

if TYPE_CHECKING:
    from kiwi.tracking import TaskRun


def benchmark_with_champion(
    configuration: RunConfiguration, task: TaskRun, *, told: Told = lambda done, total: None
) -> dict[str, Any]:
    """Runs the benchmark that the gate is to decide on, with the champion beside the trained model.

    `told` how far it is. Returns as `run_benchmark` or `edit_listed` does.

    Raises:
        TrackingUnavailable: the registry cannot be asked who the champion is.
        BenchmarkError: a stage was not trained, there are no samples, or the judge cannot do without a ground truth.
    """
    if configuration.benchmark.listed is None:
        return run_benchmark(configuration, task, champion_reference(configuration), told=told)
    listed = load_listed(configuration, configuration.benchmark.listed)
    needs_no_truth(configuration, listed)
    return edit_listed(configuration, listed, task, champion_reference(configuration), told=told)


def champion_reference(configuration: RunConfiguration) -> ChampionRef | None:
    """The registry's champion, to be compared with; None where there is none."""
    best = champion(configuration)
    if best is None:
        return None
    version = best.version
    return ChampionRef(
        name=best.name,
        version=version,
        folder=lambda: download_model(configuration, alias_or_version=version),
        scores=_scores(configuration, best),
    )


def _scores(configuration: RunConfiguration, best: ModelVersion) -> dict[str, Any] | None:
    """The champion's recorded scores, with those of each sample where its run still keeps scores.json.

    Without them overalls are still compared; the gate says then that it could not tell how sure the lead is.
    """
    recorded = best.scores
    if recorded is None:
        return None
    from mlflow.artifacts import download_artifacts

    uri = tracking_uri(configuration)
    connect(uri)
    with TemporaryDirectory(prefix="kiwi-scores-") as folder:
        try:
            with answers(uri):
                path = download_artifacts(
                    run_id=best.run_id, artifact_path="scores.json", dst_path=folder, tracking_uri=uri
                )
            whole: dict[str, Any] = read_json(Path(path))
        except (OSError, ValueError, TrackingError):
            return recorded
    names = ("per_sample", "judge_spread")
    return recorded | {name: whole[name] for name in names if name in whole}
