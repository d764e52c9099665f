"""Edits the rows of a CSV, several of one size at once; results.csv says what became of each, and is resumed from.

Every row has a result or a typed failure. A row's key hashes what its edit depends on (the files' contents, the
instruction, the seed, the options, the model), so a row that is done and unchanged is not edited again.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from kiwi import storage
from kiwi.configuration import digest
from kiwi.editing.errors import EditError
from kiwi.editing.files import EditedFile, edit_files
from kiwi.editing.options import SamplingOptions
from kiwi.editing.request import FileRequest, check_request
from kiwi.editing.streams import Progress, StreamEditor
from kiwi.errors import KiwiError, UsageError
from kiwi.hashing import contents_digest
from kiwi.media.limits import MediaError

RESULTS = "results.csv"
REQUIRED = ("video", "prompt")
COLUMNS = (*REQUIRED, "reference", "seed", "out")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Row:
    """A request of the CSV, its paths made whole. `number` counts from 1, the header not included."""

    number: int
    video: str
    prompt: str
    reference: str
    seed: str
    out: str


@dataclass(frozen=True)
class RowResult:
    """A line of results.csv. `status` is done or failed; `reason` is of EditError or MediaError, or "failed".

    `seed` is what was used, and of a failed row what was asked for: blank where nothing was.
    """

    row: int
    video: str
    prompt: str
    reference: str
    seed: str
    out: str
    status: Literal["done", "failed"]
    reason: str = ""
    message: str = ""
    frames: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    audio: str = ""
    key: str = ""


@dataclass(frozen=True)
class BatchSummary:
    """Numbers of rows; `skipped` were done before, and count among `done` too."""

    rows: int
    done: int
    failed: int
    skipped: int


def read_rows(path: Path) -> list[Row]:
    """The requests of a CSV. Raises UsageError for a file that is none, has no rows, or lacks a column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            missing = [name for name in REQUIRED if name not in names]
            if missing:
                raise UsageError(f"{path} has no column {', '.join(missing)}", f"columns: {', '.join(COLUMNS)}")
            rows = [_row(number, said) for number, said in enumerate(reader, 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no readable CSV: {error}", "give a UTF-8 CSV file") from error
    if not rows:
        raise UsageError(f"{path} has no rows", f"one request a row: {', '.join(COLUMNS)}")
    return rows


def edit_batch(
    editor_of: Callable[[], StreamEditor],
    rows: Sequence[Row],
    folder: Path,
    out: Path,
    options: SamplingOptions,
    model_key: str,
    progress: Progress | None = None,
) -> BatchSummary:
    """Edits what is not done yet, writing results.csv in `out` whenever a row is done.

    Args:
        editor_of: loads the model; called only where something is to be done.
        folder: that paths in the rows are relative to.
        model_key: names the model's contents.
    """
    before = {result.row: result for result in read_results(out / RESULTS)}
    results: dict[int, RowResult] = {}
    waiting: list[tuple[Row, FileRequest, str]] = []
    taken: dict[Path, int] = {}
    for row in rows:
        try:
            request = _request(row, folder, out, options.seed, taken)
            key = _key(request, options, model_key)
        except KiwiError as error:
            results[row.number] = _failure(row, error)
            continue
        former = before.get(row.number)
        if former is not None and former.status == "done" and former.key == key and request.out.is_file():
            results[row.number] = former
        else:
            waiting.append((row, request, key))
    skipped = sum(1 for result in results.values() if result.status == "done")
    write_results(out / RESULTS, results)
    if waiting:
        editor = editor_of()
        for number, result in _edited(editor, waiting, progress):
            results[number] = result
            write_results(out / RESULTS, results)
    done = sum(1 for result in results.values() if result.status == "done")
    return BatchSummary(len(rows), done, len(rows) - done, skipped)


def read_results(path: Path) -> list[RowResult]:
    """What a batch wrote before; nothing where it wrote nothing. Raises UsageError for a file of another kind."""
    if not path.exists():
        return []
    kinds = {field.name: str(field.type) for field in fields(RowResult)}
    convert: dict[str, Callable[[str], object]] = {"int": int, "float": float}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                RowResult(**{name: convert.get(kinds[name], str)(said) for name, said in line.items()})  # type: ignore[arg-type]
                for line in csv.DictReader(file)
            ]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UsageError(f"{path} was not written by a batch: {error}", "remove it, or give another --out") from error


def write_results(path: Path, results: dict[int, RowResult]) -> None:
    """Writes atomically, in the order of the rows."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in fields(RowResult)])
    writer.writeheader()
    writer.writerows(asdict(results[number]) for number in sorted(results))
    storage.write_bytes(path, text.getvalue().encode())


def _row(number: int, said: dict[str, str | None]) -> Row:
    return Row(number, *((said.get(name) or "").strip() for name in COLUMNS))


def _request(row: Row, folder: Path, out: Path, seed: int, taken: dict[Path, int]) -> FileRequest:
    """The request of a row, looked at as far as is cheap. Raises EditError."""
    if not row.video:
        raise EditError("no video is named", "fill the column video")
    video = folder / row.video
    if row.seed and not row.seed.lstrip("-").isdigit():
        raise EditError(f"the seed {row.seed!r} is no whole number", "give one, or leave it empty")
    place = out / (row.out or f"{row.number:04d}-{video.stem}{_suffix(video)}")
    if not place.resolve().is_relative_to(out.resolve()):
        raise EditError(f"{row.out} lies outside of {out}", "name a file in the output folder", "bad_output")
    if place.name == RESULTS or taken.setdefault(place.resolve(), row.number) != row.number:
        raise EditError(f"{row.out or place.name} is taken already", "name another file", "bad_output")
    request = FileRequest(
        video, row.prompt, place, folder / row.reference if row.reference else None, int(row.seed) if row.seed else seed
    )
    check_request(request)
    return request


def _suffix(video: Path) -> str:
    """Of the result: stills keep their format, videos become mp4."""
    from kiwi.media.images import is_still_image
    from kiwi.media.stills import STILL_SUFFIXES

    if not video.is_file():
        return ".mp4"
    with video.open("rb") as file:
        still = is_still_image(file.read(32))
    if not still:
        return ".mp4"
    return video.suffix.lower() if video.suffix.lower() in STILL_SUFFIXES else ".png"


def _key(request: FileRequest, options: SamplingOptions, model_key: str) -> str:
    seen = [contents_digest(path)[:16] if path else "" for path in (request.video, request.reference)]
    chosen = asdict(replace(options, seed=request.seed, batch_size=None))
    return digest([*seen, request.prompt, chosen, model_key])


def _edited(
    editor: StreamEditor, waiting: list[tuple[Row, FileRequest, str]], progress: Progress | None
) -> Iterator[tuple[int, RowResult]]:
    """Rows in groups that the model can take together: of one size, with or without a reference."""
    groups: dict[tuple[object, ...], list[tuple[Row, FileRequest, str]]] = defaultdict(list)
    for row, request, key in waiting:
        reel = check_request(request)
        size = editor.pipeline.model_size(reel.height, reel.width)
        groups[size, request.reference is not None, reel.frames].append((row, request, key))
    count = max(1, editor.options.batch_size or 1)
    chunks = [group[first : first + count] for group in groups.values() for first in range(0, len(group), count)]
    finished = 0

    def group_progress(done: int, total: int) -> None:
        if progress is not None:  # rows differ in length, so a row counts as 1,000
            progress(1000 * finished + 1000 * len(chunk) * done // total, 1000 * len(waiting))

    for chunk in chunks:
        for place, outcome in edit_files(editor, [request for _, request, _ in chunk], group_progress):
            row, request, key = chunk[place]
            if isinstance(outcome, KiwiError):
                yield row.number, _failure(row, outcome)
            else:
                yield row.number, _success(row, request, key, outcome)
        finished += len(chunk)


def _success(row: Row, request: FileRequest, key: str, edited: EditedFile) -> RowResult:
    return RowResult(
        row.number, row.video, row.prompt, row.reference, str(request.seed), _named(request.out, row), "done",
        frames=edited.frames, width=edited.width, height=edited.height, fps=round(edited.fps, 6), audio=edited.audio,
        key=key,
    )  # fmt: skip


def _named(out: Path, row: Row) -> str:
    """As the row names it, or the name that it was given."""
    return row.out or out.name


def _failure(row: Row, error: KiwiError) -> RowResult:
    reason = error.reason if isinstance(error, EditError | MediaError) else "failed"
    return RowResult(
        row.number, row.video, row.prompt, row.reference, row.seed, row.out, "failed", reason, error.message
    )
