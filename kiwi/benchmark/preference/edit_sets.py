"""What is compared: sets of edits, read from a run's work folder or from a folder that lists its files in edits.csv."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kiwi.benchmark.preference.footage import Footage, Opened, Unusable
from kiwi.benchmark.rubric import Frames
from kiwi.benchmark.samples import BenchmarkSample
from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError

LISTING = "edits.csv"
PIXELS = 1280 * 720
_NAME = re.compile(r"[\w][\w .:@+-]{0,59}")


@dataclass(frozen=True)
class Listed:
    """What a set says of a sample before it is opened."""

    kind: str = ""
    prompt: str = ""
    has_source: bool = False


@dataclass(frozen=True)
class EditSet:
    """A model's edits. `origin` identifies their content.

    `open` yields the samples asked for, each with a function that reads it, which may be called in any thread; it takes
    (samples, those of them whose source is not needed).
    """

    name: str
    origin: Mapping[str, Any]
    samples: Mapping[str, Listed]
    open: Callable[[frozenset[str], frozenset[str]], Iterator[tuple[str, Callable[[], Opened | Unusable]]]] = field(
        repr=False
    )


def read_edit_set(spec: str) -> EditSet:
    """The set that `[NAME=]PATH[@MODEL]` names: a run's work folder (MODEL is a stage, default the last one, or
    `champion`), or a folder with edits.csv (`id, edit_video` and optionally `src_video, prompt, ref_image, kind`).

    Raises UsageError for a path or a model that is not there, and for a listing that cannot be used.
    """
    name, equals, rest = spec.partition("=")
    if not equals:
        name, rest = "", spec
    path, model = (Path(rest), "") if Path(rest).exists() else _split_model(rest)
    if not path.is_dir():
        raise UsageError(f"no folder of edits at {path}", "name a run's work folder, or a folder with edits.csv")
    if (path / LISTING).is_file():
        if model:
            raise UsageError(f"{path} lists edits of one model; {model!r} cannot be chosen", "leave out @" + model)
        found = _listed_set(name or path.resolve().name, path)
    else:
        found = _run_set(name, path, model)
    if not _NAME.fullmatch(found.name):
        raise UsageError(
            f"{found.name!r} cannot name a set of edits", "name it NAME=PATH, with letters, digits and . : @ + - in it"
        )
    return found


def _split_model(rest: str) -> tuple[Path, str]:
    path, at, model = rest.rpartition("@")
    return (Path(path), model) if at else (Path(rest), "")


def _run_set(name: str, path: Path, model: str) -> EditSet:
    """The edits that `kiwi bench run` left in a work folder, in its benchmark folder, or in a list's folder there."""
    from kiwi.workspace import read_json

    workdir, record = _places(path)
    if not record.is_file():
        raise UsageError(
            f"no edits in {path}: neither {LISTING} nor benchmark/edits.json is there",
            "`kiwi bench run` makes the edits of a run; edits of another tool are listed in " + LISTING,
        )
    edits = read_json(record)
    models = {each["name"] if each["role"] != "champion" else "champion": each for each in edits["models"]}
    if model and model not in models:
        raise UsageError(f"{path} has no edits of {model!r}", f"it has those of {', '.join(models)}")
    chosen = models[model] if model else edits["models"][0]
    configuration = _configuration(workdir)
    origin = {"revision": edits["revision"], "model": chosen["fingerprint"], "steps": edits["sampling_steps"]}
    samples = _edited_samples(edits["samples"], chosen["at_most"])

    def opened(
        wanted: frozenset[str], sourced: frozenset[str]
    ) -> Iterator[tuple[str, Callable[[], Opened | Unusable]]]:
        if "benchmark" in edits:
            from kiwi.benchmark.preference.list_edits import open_list_edits

            yield from open_list_edits(configuration, edits, chosen, wanted)
            return
        from kiwi.benchmark.edits import RESULT, read_edits
        from kiwi.benchmark.run import batches_of
        from kiwi.benchmark.samples import load_held_out

        held_out = load_held_out(configuration)
        if held_out.revision != edits["revision"]:
            raise UsageError(
                f"the edits of {path} are of benchmark {edits['revision']}, its configuration of {held_out.revision}",
                "run `kiwi bench run` again",
            )
        for request, edit in read_edits(batches_of(configuration, held_out, chosen)):
            sample = request.sample
            if request.arm != RESULT or sample.sample_id not in wanted:
                continue
            yield sample.sample_id, partial(_of_run, sample, edit)

    return EditSet(name or f"{workdir.resolve().name}:{chosen['name']}", origin, samples, opened)


def _places(path: Path) -> tuple[Path, Path]:
    """The work folder, and the edits.json that is meant."""
    if path.resolve().parent.name == "benchmark" and (path / "edits.json").is_file():
        return path.resolve().parent.parent, path / "edits.json"
    workdir = path.parent if path.name == "benchmark" and not (path / "configuration.json").exists() else path
    return workdir, workdir / "benchmark" / "edits.json"


def _of_run(sample: BenchmarkSample, edit: Frames | None) -> Opened | Unusable:
    if edit is None or edit.ndim != 4:
        return Unusable("its edit is missing")
    source, truth = Footage(sample.source, sample.fps), Footage(sample.truth, sample.fps)
    return Opened(Footage(edit, sample.fps), source, sample.reference, truth)


def _edited_samples(rows: list[dict[str, Any]], at_most: int | None) -> dict[str, Listed]:
    """The samples that a model was asked to edit: all, or the first `at_most` of each kind."""
    samples: dict[str, Listed] = {}
    number: Counter[str] = Counter()
    for row in rows:
        number[row["kind"]] += 1
        if at_most is None or number[row["kind"]] <= at_most:
            samples[row["id"]] = Listed(row["kind"], row["prompt"], True)
    return samples


def _configuration(workdir: Path) -> RunConfiguration:
    """The configuration of a run, whose work folder may have been moved since."""
    path = workdir / "configuration.json"
    if not path.is_file():
        raise UsageError(f"no run in {workdir}: configuration.json is missing", "name a run's work folder")
    return RunConfiguration.parse(path.read_text()).model_copy(update={"workspace": str(workdir.absolute())})


def _listed_set(name: str, folder: Path) -> EditSet:
    """The edits that a folder's edits.csv lists; its paths are relative to the folder."""
    rows = _rows(folder / LISTING)
    samples = {
        key: Listed(row.get("kind", ""), row.get("prompt", ""), bool(row.get("src_video"))) for key, row in rows.items()
    }

    def opened(
        wanted: frozenset[str], sourced: frozenset[str]
    ) -> Iterator[tuple[str, Callable[[], Opened | Unusable]]]:
        for key in (key for key in rows if key in wanted):
            yield key, partial(_open_row, folder, rows[key], key not in sourced)

    return EditSet(name, {"listing": _fingerprint(folder, rows)}, samples, opened)


def _rows(path: Path) -> dict[str, dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {"id", "edit_video"} - set(reader.fieldnames or ())
            if missing:
                raise UsageError(f"{path} has no column {', '.join(sorted(missing))}", "it needs id and edit_video")
            listed = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}", "write it as CSV in UTF-8") from error
    rows: dict[str, dict[str, str]] = {}
    for number, row in enumerate(listed, start=2):
        if not row["id"] or len(row["id"]) > 200:
            raise UsageError(f"{path}, line {number}: an id of {len(row['id'])} characters", "give each row its own id")
        if row["id"] in rows:
            raise UsageError(f"{path}, line {number}: id {row['id']!r} occurs twice", "give each row its own id")
        rows[row["id"]] = row
    if not rows:
        raise UsageError(f"{path} lists no edit", "give it a row for each edit")
    return rows


def _inside(folder: Path, name: str) -> Path | None:
    """The path of a listed file, or None where it lies outside the folder or is not there."""
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def _fingerprint(folder: Path, rows: Mapping[str, Mapping[str, str]]) -> str:
    """Hash of the listing with the size and the time of each edit: a changed file is another set."""
    said = hashlib.sha256()
    for key, row in sorted(rows.items()):
        path = _inside(folder, row["edit_video"])
        stat = path.stat() if path else None
        said.update(f"{key}\n{sorted(row.items())}\n{(stat.st_size, stat.st_mtime_ns) if stat else None}\n".encode())
    return said.hexdigest()[:16]


def _open_row(folder: Path, row: Mapping[str, str], with_source: bool) -> Opened | Unusable:
    from kiwi.media import MediaError, decode, decode_image

    paths: dict[str, Path] = {}
    for column in ("edit_video", "src_video", "ref_image"):
        if not row.get(column) or (column == "src_video" and not with_source):
            continue
        path = _inside(folder, row[column])
        if path is None:
            return Unusable(f"{column} {row[column]!r} is not a file in the folder")
        paths[column] = path
    if "edit_video" not in paths:
        return Unusable("no edit_video")
    try:
        clips = {
            column: decode(paths[column], pixel_budget=PIXELS, threads=1)
            for column in ("edit_video", "src_video")
            if column in paths
        }
        reference = decode_image(paths["ref_image"].read_bytes()) if "ref_image" in paths else None
    except MediaError as error:
        return Unusable(error.message)
    footage = {column: Footage(clip.frames, clip.fps or 1.0) for column, clip in clips.items()}
    return Opened(footage["edit_video"], footage.get("src_video"), reference)
