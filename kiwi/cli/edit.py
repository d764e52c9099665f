"""`kiwi edit`: applies a trained editor to a video, to a still image, or to the rows of a CSV."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi.cli.editing_progress import progress_of
from kiwi.errors import KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi.editing.options import SamplingOptions
    from kiwi.editing.streams import StreamEditor

SAMPLERS = ("euler", "unipc")
STEP_CACHES = ("none", "first_block", "mag", "taylor")
OFFLOADS = ("none", "model")
CHAMPION = "champion"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def edit(
    video: Annotated[Path | None, typer.Argument(help="The video or still image to edit.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The instruction.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the result (mp4; an image for an image; a folder for --batch).")
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="A reference image.")] = None,
    batch: Annotated[
        Path | None, typer.Option(help="A CSV with columns video,prompt[,reference,seed,out] instead of VIDEO.")
    ] = None,
    model: Annotated[str, typer.Option(help="A checkpoint's folder, or an alias or version in the registry.")] = (
        CHAMPION
    ),
    workdir: Annotated[Path, typer.Option(help="The run whose registry is asked.")] = Path("runs/demo"),
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Sampling steps (by default the model's).")] = None,
    sampler: Annotated[str, typer.Option(help=" or ".join(SAMPLERS) + ".")] = "euler",
    step_cache: Annotated[str, typer.Option(help=", ".join(STEP_CACHES) + ": reuse what steps have in common.")] = (
        "none"
    ),
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    size: Annotated[
        int | None, typer.Option(min=16, max=8192, help="Side of the square of pixels that the model sees.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Frames that the model sees at once, rounded to 4k + 1.")
    ] = None,
    overlap: Annotated[int | None, typer.Option(min=0, help="Frames that windows share, at least.")] = None,
    carry: Annotated[bool, typer.Option("--carry", help="Begin each window from the edit of the shared frames.")] = (
        False
    ),
    batch_size: Annotated[int | None, typer.Option(min=1, help="Windows that are denoised together.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES) + ".")] = "auto",
    vae_dtype: Annotated[str, typer.Option(help="Of the autoencoder: " + ", ".join(DTYPES) + ".")] = "auto",
    offload: Annotated[str, typer.Option(help="model: each part is on the device only while it works.")] = "none",
    tiling: Annotated[bool, typer.Option("--tiling", help="The autoencoder works in tiles; less memory.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Also write source and result side by side.")] = False,
    compare_to: Annotated[
        Path | None, typer.Option(help="Where --compare writes (by default OUT.compare.mp4).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say what was done as JSON on stdout.")] = False,
) -> None:
    """Edits VIDEO as the instruction says: an mp4 of the same size, rate and length, with the same sound.

    A still image gives a still image. With --batch, the rows of a CSV; results.csv in OUT says what became of each,
    and the same command again does what is left.
    """
    for value, known, name in (
        (sampler, SAMPLERS, "sampler"), (step_cache, STEP_CACHES, "step-cache"), (offload, OFFLOADS, "offload"),
        (dtype, DTYPES, "dtype"), (vae_dtype, DTYPES, "vae-dtype"),
    ):  # fmt: skip
        if value not in known:
            raise UsageError(f"no --{name} {value!r}", f"choose from {', '.join(known)}")
    if out is None:
        raise UsageError("no --out", "say where to write, e.g. --out edited.mp4")
    if batch is not None:
        if video is not None or prompt is not None or reference is not None or compare or compare_to:
            raise UsageError("--batch takes videos, instructions and references from the CSV", "leave the others out")
    elif video is None or prompt is None:
        raise UsageError("no video or no --prompt", 'e.g. kiwi edit a.mp4 --prompt "make it red" --out b.mp4')
    if compare_to is not None and not compare:
        raise UsageError("--compare-to without --compare", "add --compare, or leave --compare-to out")
    _check_windows(window, overlap)
    choices = {
        "steps": steps, "sampler": sampler, "step_cache": step_cache, "seed": seed, "size": size, "window": window,
        "overlap": overlap, "carry": carry, "batch_size": batch_size,
    }  # fmt: skip
    laid = {"device": device, "offload": offload, "tiling": tiling, "dtype": dtype, "vae_dtype": vae_dtype}
    if batch is not None:
        with _stopped((), "The rows that were done are kept; the same command does what is left."):
            said = _edit_rows(batch, out, model, workdir, choices, laid)
    else:
        assert video is not None
        assert prompt is not None
        side_by_side = compare_to or (out.with_suffix(f".compare{out.suffix}") if compare else None)
        with _stopped((out, side_by_side), "Nothing was written."):
            said = _edit_one(video, prompt, reference, out, side_by_side, model, workdir, choices, laid)
    print(json.dumps(said, ensure_ascii=False) if as_json else out)
    if batch is not None and said["failed"]:
        raise KiwiError(
            f"{said['failed']} of {said['rows']} rows failed",
            f"{out / 'results.csv'} says why; mend them and run again",
        )


def _check_windows(window: int | None, overlap: int | None) -> None:
    """Raises UsageError for windows that are all overlap. Where one of them is the model's, see `_check_choices`."""
    from kiwi.editing.geometry import nearest_length

    if window is not None and overlap is not None and overlap >= (taken := nearest_length(window)):
        raise UsageError(f"an overlap of {overlap} frames in windows of {taken}", "give 0 to window - 1")


def _edit_one(
    video: Path,
    prompt: str,
    reference: Path | None,
    out: Path,
    compare: Path | None,
    model: str,
    workdir: Path,
    choices: dict[str, Any],
    laid: dict[str, Any],
) -> dict[str, Any]:
    """Checks the request before the model is loaded, edits it, and says what came of it."""
    started = time.monotonic()
    for path in (video, reference):
        if path is not None and not path.is_file():
            raise UsageError(f"no file {path}", "name an existing video or image")
    from kiwi.editing.errors import EditError
    from kiwi.editing.request import FileRequest, check_request, reference_image
    from kiwi.media.writing import check_writable

    request = FileRequest(video, prompt, out, reference, choices["seed"], compare)
    try:
        reel = check_request(request)
        if reference is not None:
            reference_image(reference)
    except EditError as error:
        raise UsageError(error.message, error.remedy) from error
    for path in (out, compare):
        if path is not None:
            check_writable(path)
    chosen = chosen_model(model, workdir)
    _check_choices(chosen.folder, choices, laid)
    editor = _load(chosen.folder, choices, laid)
    try:
        editor.pipeline.check_clip(reel.frames, reel.height, reel.width, reference is not None)
    except EditError as error:
        raise UsageError(error.message, error.remedy) from error
    from kiwi.editing.files import edit_files

    with progress_of("editing") as progress:
        ((_, outcome),) = edit_files(editor, [request], progress)
    if isinstance(outcome, KiwiError):
        raise outcome
    return {
        "out": str(outcome.out), "compare": None if outcome.compare is None else str(outcome.compare),
        "width": outcome.width, "height": outcome.height, "frames": outcome.frames,
        "fps": None if reel.is_still else round(outcome.fps, 6),
        "windows": outcome.windows, "window": editor.options.window, "overlap": editor.options.overlap,
        "model_size": list(outcome.model_size), "audio": outcome.audio,
        "uneven_rate": outcome.uneven_rate, "steps": editor.options.steps, "sampler": editor.options.sampler,
        "step_cache": editor.options.step_cache, "seed": editor.options.seed,
        "model": {"name": chosen.name, "version": chosen.version, "folder": str(chosen.folder)},
        "device": editor.pipeline.placement.device, "seconds": round(time.monotonic() - started, 3),
    }  # fmt: skip


def _edit_rows(
    path: Path, out: Path, model: str, workdir: Path, choices: dict[str, Any], laid: dict[str, Any]
) -> dict[str, Any]:
    started = time.monotonic()
    from kiwi.editing.batch import edit_batch, read_rows
    from kiwi.hashing import contents_digest

    rows = read_rows(path)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file", "--batch writes into a folder")
    folder = chosen_model(model, workdir).folder
    _check_choices(folder, choices, laid)
    with progress_of("editing") as progress:
        done = edit_batch(
            lambda: _load(folder, choices, laid), rows, path.parent, out, _options(choices),
            "-".join([contents_digest(folder)[:16], laid["dtype"], *_other(laid["vae_dtype"])]), progress,
        )  # fmt: skip
    seconds = round(time.monotonic() - started, 3)
    print(f"{done.done} of {done.rows} rows done, {done.skipped} of them before; {done.failed} failed", file=sys.stderr)
    return {
        "results": str(out / "results.csv"), "rows": done.rows, "done": done.done, "failed": done.failed,
        "skipped": done.skipped, "seconds": seconds,
    }  # fmt: skip


def _other(vae_dtype: str) -> list[str]:
    """What a batch's key says of the autoencoder's precision: nothing where it is the usual one."""
    return [] if vae_dtype == "auto" else [vae_dtype]


def _options(choices: dict[str, Any]) -> SamplingOptions:
    from kiwi.editing.options import SamplingOptions

    return SamplingOptions(**choices)


def _check_choices(folder: Path, choices: dict[str, Any], laid: dict[str, Any]) -> None:
    """Looks at the options before weights are loaded, and says on stderr what is not done as asked.

    Raises UsageError for a device that is not there or values that the model cannot take, ModelError for a folder
    that holds none.
    """
    from kiwi.editing.errors import EditError
    from kiwi.editing.options import completed
    from kiwi.editing.placement import checked_device
    from kiwi.model.imports import light_imports

    try:
        device = checked_device(laid["device"])
        with light_imports():
            from kiwi.model.checkpoint import read_index
            from kiwi.model.defaults import defaults_of_json

            index = read_index(folder)
        full = completed(_options(choices), defaults_of_json(index.get("edit"), index["preset"]))
    except EditError as error:
        raise UsageError(error.message, error.remedy) from error
    if choices["window"] not in (None, full.window):
        print(f"--window {choices['window']} is rounded to {full.window}: 4k + 1 frames are taken", file=sys.stderr)
    if laid["offload"] == "model" and device == "cpu":
        print("--offload model does nothing on the CPU", file=sys.stderr)


def _load(folder: Path, choices: dict[str, Any], laid: dict[str, Any]) -> StreamEditor:
    """The model, laid out. Raises ModelError for a folder that holds none, EditError for a device that is not there."""
    from kiwi.editing.placement import Placement, checked_device

    placement: Placement = Placement(**{**laid, "device": checked_device(laid["device"])})
    from kiwi.editing.pipeline import KiwiEditPipeline
    from kiwi.editing.streams import StreamEditor
    from kiwi.model.imports import light_imports

    with light_imports():  # an edit compiles nothing, and building on the meta device would import the compiler
        pipeline = KiwiEditPipeline.from_pretrained(folder, placement=placement)
    return StreamEditor.of(pipeline, _options(choices))


def _state(path: Path | None) -> tuple[int, int] | None:
    """By which a file that was written is told from the one that was there before."""
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


@contextmanager
def _stopped(files: tuple[Path | None, ...], said: str) -> Iterator[None]:
    """Ctrl-C is told in a line, not as a failure; `said` where none of `files` was written."""
    before = [_state(path) for path in files]
    try:
        yield
    except KeyboardInterrupt:
        written = [str(path) for path, former in zip(files, before, strict=True) if _state(path) != former]
        print(f"Stopped. {', '.join(written) + ' was written.' if written else said}", file=sys.stderr, flush=True)
        raise typer.Exit(130) from None


@dataclass(frozen=True)
class ChosenModel:
    """The folder that edits; name and version where it came from the registry."""

    folder: Path
    name: str | None = None
    version: str | None = None


def chosen_model(model: str, workdir: Path) -> ChosenModel:
    """A folder as it stands, or the registry's model under that alias or version."""
    if Path(model).is_dir():
        return ChosenModel(Path(model))
    if "/" in model:
        raise UsageError(f"no model folder {model}", "name an existing folder, or an alias such as champion")
    from kiwi.cli.stored import stored_configuration

    try:
        configuration = stored_configuration(workdir)
    except UsageError as error:
        if model == CHAMPION:
            raise
        said = f"no model {model!r}: it is no folder, and there is no run in {workdir} whose registry could hold it"
        raise UsageError(said, "name a folder with --model, or a run's work folder with --workdir") from error
    from kiwi.registry import download_model, show
    from kiwi.tracking import tracking_uri

    version = show(tracking_uri(configuration), configuration.model_name, model)
    folder = download_model(configuration, alias_or_version=version.version)
    return ChosenModel(folder, version.name, version.version)
