"""Judges the edits of the last benchmark run and writes scores.json. Nothing is edited again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi.benchmark.edits import RESULT, Request, read_recorded
from kiwi.benchmark.judges import judge_of
from kiwi.benchmark.judging import FORMAT, failed, judge_into
from kiwi.benchmark.listed import load_listed
from kiwi.benchmark.listed_scores import judge_listed
from kiwi.benchmark.metrics import measure
from kiwi.benchmark.rubric import FailedMeasurement, Frames, Judge, JudgeView, MeasurementError, check_edit
from kiwi.benchmark.run import CANDIDATE, CHAMPION, STAGE, batches_of, benchmark_folder
from kiwi.benchmark.samples import BenchmarkError, BenchmarkSample, HeldOut, load_held_out
from kiwi.benchmark.scores import (
    Outcome,
    averaged,
    beside,
    champion_side,
    controls,
    first_of_each_kind,
    learning,
    of_kind,
    per_sample,
    recorded,
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
    if configuration.benchmark.listed is not None:
        scores = _listed(configuration, configuration.benchmark.listed)
        task.metrics(flat(scores))
        return scores
    judge = judge_of(configuration)
    edits, held_out = _edits(configuration)
    if judge.name != edits["judge"]:
        raise BenchmarkError(
            f"the edits were made to be judged by {edits['judge']}, the configuration asks for {judge.name}",
            "run the benchmark again, or only judge again: `kiwi bench judge --judge NAME`",
        )
    path = Workspace.of(configuration).benchmark(edits["key"]) / "scores.json"
    kept = _written(path)
    if kept is not None and any(each["reason"] == FailedMeasurement.EDIT_MISSING for each in kept["failures"]):
        kept = None  # the edits that were lost may have been made again
    if kept is not None:
        task.note("reused")
    scores = kept or _scores(configuration, task, held_out, judge, edits)
    if kept is None:
        write_json(path, scores)
    write_json(benchmark_folder(configuration) / "scores.json", scores)
    task.metrics(flat(scores))
    return scores


def _listed(configuration: RunConfiguration, said: str) -> dict[str, Any]:
    """The scores of the list that the configuration names, as the run's own."""
    return judge_listed(configuration, load_listed(configuration, said), decides=True)[0]


def judge_again(configuration: RunConfiguration, task: TaskRun) -> tuple[dict[str, Any], Path]:
    """Lets the configuration's judge, another one than the run's, judge the edits that are there.

    What the run decided on stays: the scores are written to `judged/NAME.json` beside scores.json; returns them and
    that path. A champion that did not edit here has no scores of this judge. Raises as `judge_edits` does.
    """
    judge = judge_of(configuration)
    edits, held_out = _edits(configuration)
    if edits["champion"] is not None and edits["champion"]["recorded"] is not None:
        unmeasured = f"its recorded scores are of the judge {edits['judge']}"
        edits = edits | {"champion": edits["champion"] | {"recorded": None, "unmeasured": unmeasured}}
    scores = _scores(configuration, task, held_out, judge, edits)
    name = re.sub(r"[^\w.-]+", "-", judge.name)
    path = benchmark_folder(configuration) / "judged" / f"{name}-{edits['key']}.json"
    write_json(path, scores)
    return scores, path


def _edits(configuration: RunConfiguration) -> tuple[dict[str, Any], HeldOut]:
    """edits.json of the last run, and its samples. Raises BenchmarkError where there is none or they are others."""
    pointer = benchmark_folder(configuration) / "edits.json"
    if not pointer.exists():
        raise BenchmarkError(f"{pointer} is missing: no edits to judge", "run the benchmark first")
    edits: dict[str, Any] = read_json(pointer)
    held_out = load_held_out(configuration)
    if held_out.revision != edits["revision"]:
        raise BenchmarkError(
            f"{pointer} is of benchmark {edits['revision']}, the configuration asks for {held_out.revision}",
            "run the benchmark again",
        )
    return edits, held_out


def _written(path: Path) -> dict[str, Any] | None:
    """The scores at `path`; None where there are none, or an earlier version of this file wrote them."""
    if not path.exists():
        return None
    scores: dict[str, Any] = read_json(path)
    return scores if scores.get("format") == FORMAT else None


def _scores(
    configuration: RunConfiguration, task: TaskRun, held_out: HeldOut, judge: Judge, edits: Mapping[str, Any]
) -> dict[str, Any]:
    outcomes: dict[tuple[str, str], Outcome] = {}
    for place, model in enumerate(edits["models"]):
        found = read_recorded(batches_of(configuration, held_out, model), model["files"])
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
        "format": FORMAT,
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
        "baselines": {"copy_source": beside(candidate, copied)},
        "champion": champion_side(edits["champion"], champion, candidate),
        "judging": judge.spent(),
        "failures": failures,
        "excluded": edits["excluded"],
        "per_sample": per_sample(candidate, champion, recorded(edits["champion"])),
    }


def _both(outcome: Outcome) -> dict[str, Any]:
    return learning(outcome) | averaged(outcome)


def _as_is(sample: BenchmarkSample) -> Request:
    return Request(sample, RESULT, sample.prompt, sample.reference)


def judged(judge: Judge, edits: Iterable[tuple[Request, Frames | MeasurementError]], model: str) -> Outcome:
    """Judges results and measures results and controls. What cannot be is listed with its typed reason."""
    outcome = Outcome([], judge.exact)
    return judge_into(outcome, judge, _views(edits, outcome, model), model)


def _views(
    edits: Iterable[tuple[Request, Frames | MeasurementError]], outcome: Outcome, model: str
) -> Iterator[tuple[str, JudgeView]]:
    """What the judge is to see of each result; notes on the way what is measured of results and controls."""
    for request, edit in edits:
        sample = request.sample
        if request.arm == RESULT:
            outcome.samples.append(sample)
        try:
            if isinstance(edit, MeasurementError):
                raise edit
            made = check_edit(sample.source, edit)
            outcome.figures[request.arm, sample.sample_id] = measure(sample, made)
        except MeasurementError as unmeasured:
            outcome.failures.append(failed(model, sample.sample_id, request.arm, unmeasured))
            continue
        if request.arm == RESULT:
            yield sample.sample_id, sample.view(made)


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
