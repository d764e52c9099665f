"""Judges the edits of the last benchmark run and writes scores.json. Nothing is edited again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kiwi.benchmark.edits import RESULT, Request, read_edits
from kiwi.benchmark.metrics import measure
from kiwi.benchmark.rubric import Frames, Judge, MeasurementError, check_edit, judge_view
from kiwi.benchmark.run import CANDIDATE, CHAMPION, STAGE, batches_of, benchmark_folder, judge_named
from kiwi.benchmark.samples import BenchmarkError, BenchmarkSample, HeldOut, load_held_out
from kiwi.benchmark.scores import (
    Outcome,
    averaged,
    champion_side,
    controls,
    first_of_each_kind,
    learning,
    of_kind,
    per_sample,
)
from kiwi.configuration import RunConfiguration
from kiwi.workspace import Workspace, read_json, write_json

if TYPE_CHECKING:
    from kiwi.tracking import TaskRun


def judge_edits(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """Judges the edits of the workspace's last benchmark run and writes scores.json; returns it.

    Nothing is edited again: the lossless edits are read back. A sample whose edit is missing, misshapen or cannot be
    measured lowers `coverage` and stands in `failures`; means are over the others.

    Raises:
        BenchmarkError: no benchmark was run here, or its samples or judge are no longer the configuration's.
    """
    judge = judge_named(configuration.benchmark.judge)
    pointer = benchmark_folder(configuration) / "edits.json"
    if not pointer.exists():
        raise BenchmarkError(f"{pointer} is missing: no edits to judge", "run the benchmark first")
    edits = read_json(pointer)
    path = Workspace.of(configuration).benchmark(edits["key"]) / "scores.json"
    held_out = load_held_out(configuration)
    if (held_out.revision, judge.name) != (edits["revision"], edits["judge"]):
        raise BenchmarkError(
            f"{pointer} is of benchmark {edits['revision']} for {edits['judge']}, "
            f"the configuration asks for {held_out.revision} and {judge.name}",
            "run the benchmark again",
        )
    if path.exists():
        task.note("reused")
        scores: dict[str, Any] = read_json(path)
    else:
        scores = _scores(configuration, task, held_out, judge, edits)
        write_json(path, scores)
    write_json(benchmark_folder(configuration) / "scores.json", scores)
    task.metrics(flat(scores))
    return scores


def _scores(
    configuration: RunConfiguration, task: TaskRun, held_out: HeldOut, judge: Judge, edits: Mapping[str, Any]
) -> dict[str, Any]:
    outcomes: dict[tuple[str, str], Outcome] = {}
    for place, model in enumerate(edits["models"]):
        found = read_edits(batches_of(configuration, held_out, model))
        outcomes[model["role"], model["name"]] = judged(judge, found, model["name"])
        task.progress(place + 1, len(edits["models"]) + 1, "models", model["name"])
    candidate = next(outcome for (role, _), outcome in outcomes.items() if role == CANDIDATE)
    copied = judged(judge, ((_as_is(each), each.source) for each in held_out.samples), "copy_source")
    champion = next((outcome for (role, _), outcome in outcomes.items() if role == CHAMPION), None)
    few = configuration.benchmark.stage_samples_per_kind
    stages = {name: outcome for (role, name), outcome in outcomes.items() if role == STAGE}
    last = configuration.stages[-1].name
    failures = [failure for outcome in (*outcomes.values(), copied) for failure in outcome.failures]
    task.progress(len(edits["models"]) + 1, len(edits["models"]) + 1, "models", "scored")
    return {
        "revision": held_out.revision,
        "key": edits["key"],
        "judge": judge.name,
        **averaged(candidate),
        "per_kind": {kind: of_kind(candidate, kind) for kind in held_out.kinds},
        "learning": learning(candidate),
        "controls": controls(candidate),
        "stages": {
            **{name: _both(outcome) for name, outcome in stages.items()},
            last: _both(first_of_each_kind(candidate, few)),
        },
        "baselines": {"copy_source": averaged(copied)},
        "champion": champion_side(edits["champion"], champion),
        "failures": failures,
        "excluded": edits["excluded"],
        "per_sample": per_sample(candidate, champion),
    }


def _both(outcome: Outcome) -> dict[str, Any]:
    return learning(outcome) | averaged(outcome)


def _as_is(sample: BenchmarkSample) -> Request:
    return Request(sample, RESULT, sample.prompt, sample.reference)


def judged(judge: Judge, edits: Iterable[tuple[Request, Frames | None]], model: str) -> Outcome:
    """Judges results and measures results and controls. What cannot be is listed with its typed reason."""
    outcome = Outcome([])
    for request, edit in edits:
        sample = request.sample
        try:
            made = check_edit(sample.source, edit)
            outcome.figures[request.arm, sample.sample_id] = measure(sample, made)
            if request.arm == RESULT:
                outcome.scores[sample.sample_id] = judge_view(judge, sample.view(made))
        except MeasurementError as unmeasured:
            failure = {"model": model, "id": sample.sample_id, "arm": request.arm}
            outcome.failures.append(failure | {"reason": str(unmeasured.reason), "detail": unmeasured.message})
        if request.arm == RESULT:
            outcome.samples.append(sample)
    return outcome


def flat(scores: Mapping[str, Any]) -> dict[str, float]:
    """The figures of scores.json that a tracking run shows, under dotted names."""
    said: dict[str, float] = {}
    for name in ("overall", "overall_sample_weighted", "overall_reference", "coverage"):
        if scores[name] is not None:
            said[f"benchmark.{name}"] = scores[name]
    for block in ("criteria", "learning"):
        said |= {f"benchmark.{block}.{name}": value for name, value in scores[block].items()}
    copied = scores["baselines"]["copy_source"]["overall"]
    return said if copied is None else said | {"benchmark.copy_source.overall": copied}
