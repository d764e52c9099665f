"""`kiwi bench metrics`: automatic metrics of an edit, or of a folder of edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi.errors import KiwiError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from kiwi.metrics.clip import ClipFeatures
    from kiwi.metrics.edit import EditReport
    from kiwi.metrics.files import SetReport
    from kiwi.metrics.frechet import VideoFeatures
    from kiwi.metrics.results import Unmeasured


def metrics(
    edited: Annotated[Path, typer.Argument(help="The edit, or a folder of edits.")],
    source: Annotated[Path, typer.Argument(help="Its source, or the folder of their sources, of the same names.")],
    reference: Annotated[Path | None, typer.Option(help="The reference image, for clip_image.")] = None,
    target: Annotated[Path | None, typer.Option(help="Ground truth, for psnr_target, ssim_target and vmaf.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="White where the edit belongs: a video or an image. Default: by --target.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the edit should show, for clip_text.")] = None,
    clip_model: Annotated[
        str, typer.Option(help="A CLIP model: a folder or a repository. Default: curation.clip's.")
    ] = "",
    only: Annotated[str, typer.Option(help="Just these metrics, by commas.")] = "",
    frechet: Annotated[
        bool, typer.Option("--frechet", help="Folders: also the distance of the sets, by CLIP's features.")
    ] = False,
    i3d: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Folders: FVD, by I3D's weights in this safetensors file.")
    ] = None,
    ffmpeg: Annotated[str, typer.Option(help="The ffmpeg with libvmaf, for vmaf.")] = "ffmpeg",
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, with the figures of each frame.")] = False,
) -> None:
    """Measures EDITED against SOURCE: what was kept, how steady and sharp it is, and how like what was asked for.

    What cannot be measured is listed with the reason. Exit code 1 where an edit has no figure at all.
    """
    names = [name.strip() for name in only.split(",") if name.strip()]
    folders = source.is_dir()
    if folders != edited.is_dir() and edited.exists() and source.exists():
        raise UsageError(f"{edited} and {source}: one is a folder, the other a file", "give two files or two folders")
    if (frechet or i3d) and not folders:
        option = "--i3d" if i3d else "--frechet"
        raise UsageError(f"{option} compares sets of edits", "give folders for EDITED and SOURCE")
    if frechet and i3d:
        raise UsageError("--frechet is by CLIP's features, --i3d by I3D's", "ask for one of them at a time")
    if prompt is not None and folders:
        raise UsageError("--prompt is of one edit", "leave it out for folders")
    from kiwi.metrics.edit import METRICS
    from kiwi.metrics.files import EditFiles, measure_files, measure_folders

    wanted = names or list(METRICS)
    described = frechet or prompt is not None or reference is not None or any(name.startswith("clip") for name in names)
    clip = _clip(clip_model) if described or clip_model else None
    files = EditFiles(edited, source, target, mask, reference)
    if folders:
        found = measure_folders(files, clip, wanted, _i3d(i3d) if i3d else clip if frechet else None, ffmpeg)
        print(json.dumps(found.as_dict(), ensure_ascii=False)) if as_json else _print_set(found)
        without = [name for name, report in found.edits.items() if not report.measured]
        if without:
            raise KiwiError(
                f"{len(without)} of {len(found.edits)} edits have no figure at all", f"such as {without[0]}"
            )
        return
    report = measure_files(files, prompt, clip, wanted, ffmpeg)
    if as_json:
        print(json.dumps({"edit": str(edited), "source": str(source), **report.as_dict()}, ensure_ascii=False))
    else:
        _print_one(report)
    if not report.measured:
        why = report.unmeasured[0]
        raise KiwiError(_as_option(f"nothing could be measured: {why.message}"), _as_option(why.remedy))


def _i3d(weights: Path) -> VideoFeatures:
    from kiwi.metrics.i3d import i3d_features

    return i3d_features(weights)


def _clip(model: str) -> ClipFeatures:
    from kiwi.configuration import CurationSettings
    from kiwi.metrics.clip import clip_features

    settings = CurationSettings().clip
    return clip_features(settings.model_copy(update={"model": model, "revision": None}) if model else settings)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _print_one(report: EditReport) -> None:
    from rich.table import Column, Table

    console = _console()
    if report.measured:
        view = Table(Column("metric", no_wrap=True), "value", "unit", "better", "source's")
        for each in report.measured:
            view.add_row(each.name, _figure(each.value), each.unit, each.direction, _figure(each.of_source))
        console.print(view)
    for each in report.measured:
        if each.note:
            console.print(f"[dim]{each.name}: {_plain(each.note)}[/]")
    _print_unmeasured(console, report.unmeasured)
    if report.shape is not None:
        frames, height, width = report.shape
        console.print(f"{frames} frames of {width}x{height}, {sum(report.seconds.values()):.1f} s")


def _print_set(found: SetReport) -> None:
    from rich.table import Column, Table

    from kiwi.metrics.results import OF_NO_EDIT, Failure, Measured

    console = _console()
    view = Table(Column("metric", no_wrap=True), "mean", "unit", "better", "edits measured")
    for name, mean in found.means().items():
        row: dict[str, Any] = mean
        count = f"{row['measured']} of {len(found.edits)}"
        view.add_row(name, _figure(row["value"]), row["unit"], row["direction"], count)
    if isinstance(found.frechet, Measured):
        set_ = found.frechet
        view.add_row(set_.name, _figure(set_.value), set_.unit, set_.direction, "the set")
    console.print(view)
    if isinstance(found.frechet, Measured):
        console.print(f"[dim]{found.frechet.name}: {_plain(found.frechet.note)}[/]")
    elif found.frechet is not None:
        _print_unmeasured(console, (found.frechet,))
    if found.without_source:
        number = f"{len(found.without_source)} of {len(found.edits)}"
        console.print(f"[yellow]without a source of their name[/], {number}: {_plain(', '.join(found.without_source))}")
    of_none = {each: None for report in found.edits.values() for each in report.unmeasured if each.reason in OF_NO_EDIT}
    _print_unmeasured(console, tuple(of_none))
    for name, report in found.edits.items():
        lines: dict[str, list[str]] = {}
        for each in report.unmeasured:
            if each.reason is not Failure.NOT_GIVEN and each not in of_none:
                lines.setdefault(f"{each.reason}: {each.message}", []).append(each.name)
        for why, names in lines.items():
            console.print(f"[yellow]{_plain(name)}[/], {len(names)} not measured, {_plain(why)}")


def _print_unmeasured(console: Console, unmeasured: tuple[Unmeasured, ...]) -> None:
    """One line for each reason, with all metrics that it keeps from being measured."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for each in unmeasured:
        lines.setdefault((each.reason.value, each.message, each.remedy), []).append(each.name)
    for (reason, message, remedy), names in lines.items():
        todo = f"; {remedy}" if remedy else ""
        console.print(f"[yellow]not measured[/] ({reason}): {', '.join(names)}: {_plain(_as_option(message + todo))}")


def _as_option(text: str) -> str:
    """Where the weights are named by the curators' setting, the name of this command's option instead."""
    return text.replace("curation.clip.model", "--clip-model")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
