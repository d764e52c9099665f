"""Scores of a listed benchmark, in the form of every scores.json: the model's, a copy's and the champion's.

Without a ground truth there are no figures beside the judge's marks: no PSNR, no accuracy, no controls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kiwi.benchmark.edits import RESULT
from kiwi.benchmark.gallery import Exhibit, choose_by_score, show
from kiwi.benchmark.judges import judge_of
from kiwi.benchmark.judging import FORMAT, failed, judge_into
from kiwi.benchmark.listed import Listed, ListedSample, Opened, open_sample
from kiwi.benchmark.listed_edits import kept_edit, listed_folder
from kiwi.benchmark.rubric import Frames, Judge, JudgeView, MeasurementError, check_edit
from kiwi.benchmark.run import CANDIDATE, CHAMPION, benchmark_folder
from kiwi.benchmark.samples import BenchmarkError
from kiwi.benchmark.scores import Outcome, averaged, beside, champion_side, mean_of, of_kind, per_sample, recorded
from kiwi.configuration import RunConfiguration
from kiwi.workspace import read_json, write_json

COPY = "copy_source"
Edits = Callable[[ListedSample, Opened], Frames | None]


def judge_listed(
    configuration: RunConfiguration, listed: Listed, *, decides: bool = False
) -> tuple[dict[str, Any], Path]:
    """Judges the edits of a list; writes `benchmark/NAME/scores.json` and returns it with its path.

    `decides`: these are the run's own scores, which are registered and which the gate looks at.

    The copy of the source is judged as an edit like any other. edits.json gets the best, the median and the worst
    edit of each kind as files to look at.

    Raises:
        BenchmarkError: a judge that needs a ground truth, or no (complete) edits of this list. ServiceError: the
            judge's server cannot be used; what it answered is kept.
    """
    needs_no_truth(configuration, listed)
    judge = judge_of(configuration)
    edits = recorded_edits(configuration, listed)
    judged = {
        model["role"]: _judged(judge, listed, model["name"], _by(configuration, model)) for model in edits["models"]
    }
    candidate, champion = judged[CANDIDATE], judged.get(CHAMPION)
    copied = _judged(judge, listed, COPY, lambda _, opened: opened.source)
    about = edits["champion"]
    if about is not None and about["recorded"] is not None and about["recorded"].get("judge") != judge.name:
        unmeasured = f"its recorded scores are of the judge {about['recorded'].get('judge')}"
        about = about | {"recorded": None, "unmeasured": unmeasured}
    scores = {
        "format": FORMAT,
        "benchmark": listed.name,
        "revision": listed.revision,
        "key": edits["key"],
        "judge": judge.name,
        **averaged(candidate),
        "per_kind": {kind: of_kind(candidate, kind) for kind in listed.kinds},
        "learning": {},
        "controls": {},
        "stages": {},
        "baselines": {COPY: beside(candidate, copied)},
        "champion": champion_side(about, champion, candidate),
        "judging": judge.spent(),
        "failures": [each for outcome in (*judged.values(), copied) for each in outcome.failures],
        "excluded": edits["excluded"],
        "per_sample": per_sample(candidate, champion, recorded(about)),
    }
    home = listed_folder(configuration, listed)
    write_json(home / "scores.json", scores)
    shown = edits | {"samples": _exhibited(configuration, listed, edits, candidate)}
    write_json(home / "edits.json", shown)
    if decides:
        write_json(benchmark_folder(configuration) / "edits.json", shown)
        write_json(benchmark_folder(configuration) / "scores.json", scores)
    return scores, home / "scores.json"


def needs_no_truth(configuration: RunConfiguration, listed: Listed) -> None:
    """Raises BenchmarkError where the configuration's judge cannot do without a ground truth."""
    judge = judge_of(configuration)
    if judge.exact:
        remedy = "add --judge mllm; for the gate, --set benchmark.judge=mllm"
        raise BenchmarkError(f"{listed.name} has no ground truth, which {judge.name} needs", remedy)


def recorded_edits(configuration: RunConfiguration, listed: Listed) -> dict[str, Any]:
    """edits.json of a list. Raises BenchmarkError where there is none, or it is of another list."""
    path = listed_folder(configuration, listed) / "edits.json"
    remedy = f"make them, all shards: `kiwi bench run --benchmark {listed.name}={listed.location}`"
    if not path.exists():
        raise BenchmarkError(f"{listed.name}: there are no edits of this list, or not yet all", remedy)
    edits: dict[str, Any] = read_json(path)
    if edits["revision"] != listed.revision:
        said = f"{path} is of benchmark {edits['revision']}, and the list is {listed.revision} now"
        raise BenchmarkError(f"{said}: no edits of it", remedy)
    return edits


def _by(configuration: RunConfiguration, model: Mapping[str, Any]) -> Edits:
    return lambda sample, opened: kept_edit(configuration, model, sample)


def _judged(judge: Judge, listed: Listed, name: str, edits: Edits) -> Outcome:
    outcome = Outcome([], judge.exact)
    return judge_into(outcome, judge, _views(listed, outcome, name, edits), name)


def _views(listed: Listed, outcome: Outcome, name: str, edits: Edits) -> Iterator[tuple[str, JudgeView]]:
    for sample in listed.samples:
        outcome.samples.append(sample)
        try:
            opened = open_sample(listed, sample)
            edit = check_edit(opened.source, edits(sample, opened))
        except MeasurementError as failure:
            outcome.failures.append(failed(name, sample.sample_id, RESULT, failure))
            continue
        said = sample.entry.instruction
        yield (
            sample.sample_id,
            JudgeView(opened.source, edit, opened.reference, sample.rubric, said, None, None, sample.category),
        )


def _exhibited(
    configuration: RunConfiguration, listed: Listed, edits: Mapping[str, Any], candidate: Outcome
) -> list[dict[str, Any]]:
    """The samples of edits.json with their overall, what failed, and for the chosen ones files to look at."""
    kinds = {sample.sample_id: sample.kind for sample in listed.samples}
    overall = {name: round(mean_of(scores), 4) for name, scores in candidate.scores.items()}
    picks = choose_by_score(kinds, overall)
    chosen = {
        sample.sample_id.partition("_")[0]: _exhibit(configuration, listed, edits["models"], sample)
        for sample in listed.samples
        if sample.sample_id in picks
    }
    shown = show(listed_folder(configuration, listed) / "gallery", chosen, configuration.threads)
    home = benchmark_folder(configuration)
    failures = {each["id"]: each["reason"] for each in candidate.failures}
    rows = []
    for row in edits["samples"]:
        name = str(row["id"])
        files = {
            what: path.relative_to(home).as_posix() for what, path in shown.get(name.partition("_")[0], {}).items()
        }
        found = {"pick": picks.get(name), "files": files, "failure": failures.get(name)}
        rows.append(row | found | ({"overall": overall[name]} if name in overall else {}))
    return rows


def _exhibit(
    configuration: RunConfiguration, listed: Listed, models: Sequence[Mapping[str, Any]], sample: ListedSample
) -> Exhibit:
    opened = open_sample(listed, sample)
    clips = {"source": opened.source}
    for model in models:
        edit = kept_edit(configuration, model, sample)
        if edit is not None and edit.ndim == opened.source.ndim:
            clips[{CANDIDATE: "result", CHAMPION: "champion"}[model["role"]]] = edit
    return Exhibit(clips, opened.fps, opened.reference)
