"""One benchmark run: the candidate, what came before it, and the champion edit the same held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi.benchmark.edits import (
    RESULT,
    Batch,
    Editor,
    edit_held_out,
    plan_batches,
    read_edits,
)
from kiwi.benchmark.gallery import Exhibit, choose, show
from kiwi.benchmark.judges import judge_of
from kiwi.benchmark.metrics import SampleMetrics, measure
from kiwi.benchmark.rubric import Frames, MeasurementError
from kiwi.benchmark.samples import BenchmarkError, HeldOut, load_held_out
from kiwi.configuration import RunConfiguration, digest
from kiwi.errors import KiwiError
from kiwi.hashing import contents_digest, sha256_of
from kiwi.workspace import Workspace, read_json, write_json

if TYPE_CHECKING:
    from kiwi.tracking import TaskRun

Load = Callable[[Path], Editor]
Told = Callable[[int, int], None]  # is told (edits done, in all)
CANDIDATE, STAGE, CHAMPION = "candidate", "stage", "champion"


@dataclass(frozen=True)
class ChampionRef:
    """The registry's champion as the benchmark needs it; the registry's layer is above, so its caller passes this.

    Attributes:
        name, version: the registered model's.
        folder: its model folder, or a function that fetches it (called only if it must edit), or None for neither.
        scores: its recorded scores.json, or None. They count only for the same revision and judge.
    """

    name: str
    version: str
    folder: Path | Callable[[], Path] | None = None
    scores: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ModelUnderTest:
    """One model and how much it is asked: every sample with controls, or the first ones of each kind."""

    role: str
    name: str
    folder: Path
    fingerprint: str
    controls: bool
    at_most: int | None

    def said(self, revision: str) -> dict[str, Any]:
        return {
            "role": self.role,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "controls": self.controls,
            "at_most": self.at_most,
            "shards": f"edits/{self.fingerprint}-{revision}",
        }


def load_pipeline(folder: Path) -> Editor:
    """The editor of a model folder."""
    from kiwi.editing.pipeline import KiwiEditPipeline

    editor: Editor = KiwiEditPipeline.from_pretrained(folder).edit_clips
    return editor


def benchmark_folder(configuration: RunConfiguration) -> Path:
    """Where the results of every benchmark of a workspace lie; paths in edits.json are relative to it."""
    return Workspace.of(configuration).root / "benchmark"


def run_benchmark(
    configuration: RunConfiguration,
    task: TaskRun,
    champion: ChampionRef | None = None,
    *,
    load: Load = load_pipeline,
    told: Told = lambda done, total: None,
) -> dict[str, Any]:
    """Edits all held-out samples and writes edits.json and the gallery; returns {key, revision, samples, edits}.

    The last stage's model edits every sample and its controls, earlier stages the first `stage_samples_per_kind` of
    each kind, and the champion every sample unless its recorded scores are of this revision and judge. Finished
    batches and finished runs are reused.

    Raises:
        BenchmarkError: a stage was not trained, or there are no samples.
        UsageError: an unknown judge.
    """
    judge = judge_of(configuration)
    held_out = load_held_out(configuration)
    models = trained_models(configuration)
    champion_said, champion_model = champion_under_test(champion, held_out.revision, judge.name)
    if champion_model is not None:
        models = [*models, champion_model]
    described = [model.said(held_out.revision) for model in models]
    key = digest(held_out.revision, judge.name, described, champion_said)
    path = Workspace.of(configuration).benchmark(key) / "edits.json"
    edits = _kept(configuration, path)
    if edits is not None:
        task.note("reused")
    else:
        found = _edit_all(configuration, task, held_out, models, champion_said, load, told)
        edits = {
            "revision": held_out.revision,
            "key": key,
            "judge": judge.name,
            "sampling_steps": configuration.benchmark.sampling_steps,
            "models": [
                model.said(held_out.revision) | {"files": kept_files(batch.path for batch in batches)}
                for model, batches in found.planned.items()
            ],
            "champion": found.champion,
            "excluded": list(held_out.excluded),
            "samples": _described(configuration, held_out, found.planned, path.with_name("gallery")),
        }
        if path.exists() and _files(read_json(path)) != _files(edits):
            path.with_name("scores.json").unlink(missing_ok=True)  # of edits that were lost and came out otherwise
        write_json(path, edits)
    write_json(benchmark_folder(configuration) / "edits.json", edits)
    _attach(configuration, task, edits)
    task.params({"benchmark_revision": held_out.revision, "benchmark_key": key, "judge": judge.name})
    root = Workspace.of(configuration).root
    return {
        "key": key,
        "revision": held_out.revision,
        "samples": len(held_out.samples),
        "edits": path.relative_to(root).as_posix(),
    }


def _files(edits: Mapping[str, Any]) -> list[Any]:
    return [model["files"] for model in edits["models"]]


def _kept(configuration: RunConfiguration, path: Path) -> dict[str, Any] | None:
    """edits.json of a finished run; None where there is none, or where one of its files was lost or cut short."""
    if not path.exists():
        return None
    edits: dict[str, Any] = read_json(path)
    home = benchmark_folder(configuration)
    files = [
        (home / model["shards"] / each["file"], each["bytes"]) for model in edits["models"] for each in model["files"]
    ]
    return edits if all(file.exists() and file.stat().st_size == size for file, size in files) else None


def _attach(configuration: RunConfiguration, task: TaskRun, edits: Mapping[str, Any]) -> None:
    """Keeps the candidate's edits, lossless, and the list of all edits with their hashes with the task's MLflow run."""
    home = benchmark_folder(configuration)
    candidate = next(model for model in edits["models"] if model["role"] == CANDIDATE)
    task.artifact(home / candidate["shards"], f"edits/{Path(candidate['shards']).name}")
    task.artifact(home / "edits.json", "edits")


def trained_models(configuration: RunConfiguration) -> list[ModelUnderTest]:
    """The candidate (the last stage's model) first, then the earlier stages' in order.

    Raises BenchmarkError for a stage without a training result or without its checkpoint.
    """
    few = configuration.benchmark.stage_samples_per_kind
    folders = {stage.name: model_folder(configuration, stage.name) for stage in configuration.stages[:-1]}
    earlier = [
        ModelUnderTest(STAGE, name, folder, contents_digest(folder)[:16], False, few)
        for name, folder in folders.items()
    ]
    return [trained_model(configuration, controls=True), *earlier]


def trained_model(configuration: RunConfiguration, *, controls: bool) -> ModelUnderTest:
    """The candidate: the last stage's model. Raises BenchmarkError as `model_folder` does."""
    last = configuration.stages[-1].name
    folder = model_folder(configuration, last)
    return ModelUnderTest(CANDIDATE, last, folder, contents_digest(folder)[:16], controls, None)


def model_folder(configuration: RunConfiguration, stage: str) -> Path:
    """The folder that `KiwiEditPipeline.from_pretrained` loads for a trained stage."""
    root = Workspace.of(configuration).root
    record = root / "training" / f"{stage}.json"
    if not record.exists():
        raise BenchmarkError(f"stage {stage} is not trained: {record} is missing", "train it before the benchmark")
    checkpoint = root / Path(read_json(record)["checkpoint"])  # an absolute path stays as it is
    folder = checkpoint / "model" if (checkpoint / "model").is_dir() else checkpoint
    if not folder.is_dir():
        raise BenchmarkError(f"the checkpoint of stage {stage} is gone: {folder}", "train the stage again")
    return folder


def champion_under_test(
    champion: ChampionRef | None, revision: str, judge: str
) -> tuple[dict[str, Any] | None, ModelUnderTest | None]:
    """What edits.json says of the champion, and the model to edit with where its recorded scores do not compare."""
    if champion is None:
        return None, None
    said: dict[str, Any] = {"name": champion.name, "version": champion.version, "recorded": None, "unmeasured": None}
    recorded = champion.scores
    if recorded is not None and recorded.get("revision") == revision and recorded.get("judge") == judge:
        names = ("revision", "judge", "overall", "overall_sample_weighted", "criteria", "coverage")
        more = ("judge_spread", "per_sample")  # where the record has them, for the comparison sample by sample
        return said | {"recorded": {name: recorded.get(name) for name in (*names, *more)}}, None
    try:
        folder = champion.folder() if callable(champion.folder) else champion.folder
    except KiwiError as error:
        return said | {"unmeasured": f"its files cannot be had: {error.message}"}, None
    if folder is None or not folder.is_dir():
        return said | {"unmeasured": "it has no scores for this benchmark, and its files cannot be had"}, None
    name = f"{champion.name} v{champion.version}"
    return said, ModelUnderTest(CHAMPION, name, folder, contents_digest(folder)[:16], False, None)


def kept_files(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """What edits.json says of files of edits: name, SHA-256 and bytes of each that is there."""
    there = (path for path in paths if path.exists())
    return [{"file": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size} for path in there]


def batches_of(configuration: RunConfiguration, held_out: HeldOut, model: Mapping[str, Any]) -> list[Batch]:
    """The batches of one entry of edits.json's `models`."""
    return plan_batches(
        held_out,
        benchmark_folder(configuration) / model["shards"],
        sampling_steps=configuration.benchmark.sampling_steps,
        controls=model["controls"],
        at_most=model["at_most"],
    )


@dataclass(frozen=True)
class _Edited:
    planned: dict[ModelUnderTest, list[Batch]]
    champion: dict[str, Any] | None


def _edit_all(
    configuration: RunConfiguration,
    task: TaskRun,
    held_out: HeldOut,
    models: list[ModelUnderTest],
    champion: dict[str, Any] | None,
    load: Load,
    told: Told,
) -> _Edited:
    """Makes what is missing. A champion that cannot be run is said to be unmeasured; no other model may fail."""
    planned = {model: batches_of(configuration, held_out, model.said(held_out.revision)) for model in models}
    total = sum(len(batch.requests) for batches in planned.values() for batch in batches)
    done = made = 0
    told(done, total)
    for model in models:
        before = done

        def count(edits: int, name: str = model.name, of: int = total) -> None:
            nonlocal done
            done += edits
            task.progress(done, of, "edits", name)
            told(done, of)

        try:
            steps = configuration.benchmark.sampling_steps
            made += edit_held_out(planned[model], partial(load, model.folder), sampling_steps=steps, progress=count)
        except KiwiError as error:
            if model.role != CHAMPION or champion is None:
                raise
            champion = champion | {"unmeasured": error.message}
            total -= sum(len(batch.requests) for batch in planned.pop(model)) - (done - before)
            task.note(f"the champion cannot be compared: {error.message}")
    task.metrics({"edits": total, "edits_made_now": made})
    return _Edited(planned, champion)


def _described(
    configuration: RunConfiguration,
    held_out: HeldOut,
    planned: Mapping[ModelUnderTest, list[Batch]],
    gallery: Path,
) -> list[dict[str, Any]]:
    """The samples of edits.json, with figures and, for the chosen ones, files to look at."""
    candidate = next(iter(planned))
    figures: dict[str, SampleMetrics] = {}
    failures: dict[str, str] = {}
    for request, edit in read_edits(planned[candidate]):
        if request.arm == RESULT:
            try:
                figures[request.sample.sample_id] = measure(request.sample, edit)
            except MeasurementError as unmeasured:
                failures[request.sample.sample_id] = unmeasured.reason
    picks = choose(held_out.samples, figures, configuration.benchmark.stage_samples_per_kind)
    clips = _clips_of(picks, planned)
    chosen = {
        each.sample_id: Exhibit(
            {"source": each.source, "truth": each.truth, **clips[each.sample_id]}, each.fps, each.reference
        )
        for each in held_out.samples
        if each.sample_id in picks
    }
    shown = show(gallery, chosen, configuration.threads)
    home = benchmark_folder(configuration)
    rows = []
    for sample in held_out.samples:
        name = sample.sample_id
        files = {what: path.relative_to(home).as_posix() for what, path in shown.get(name, {}).items()}
        rows.append(
            {
                "id": name,
                "kind": sample.kind,
                "group": sample.group,
                "rubric": sample.rubric,
                "prompt": sample.prompt,
                "wrong_prompt": sample.wrong_prompt,
                "pick": picks.get(name),
                "files": files,
                "failure": failures.get(name),
                **(figures[name].as_dict() if name in figures else {}),
            }
        )
    return rows


def _clips_of(picks: Mapping[str, str], planned: Mapping[ModelUnderTest, list[Batch]]) -> dict[str, dict[str, Frames]]:
    """Edits of the chosen samples: the result and the champion's of all, each stage's and the controls of some."""
    clips: dict[str, dict[str, Frames]] = {name: {} for name in picks}
    for model, batches in planned.items():
        for request, edit in read_edits(batches):
            name = request.sample.sample_id
            if name not in picks or edit is None or edit.ndim != 4:
                continue
            if model.role == CANDIDATE and (request.arm == RESULT or picks[name] == "best"):
                clips[name][request.arm] = edit
            elif model.role == CHAMPION:
                clips[name]["champion"] = edit
            elif model.role == STAGE and picks[name] == "median":
                clips[name][f"stage_{model.name}"] = edit
    return clips
