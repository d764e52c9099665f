"""`kiwi edit`: applies a trained editor to a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kiwi.errors import UsageError


def edit(
    video: Annotated[Path, typer.Argument(help="The video to edit.")],
    prompt: Annotated[str, typer.Option(help="The instruction.")],
    out: Annotated[Path, typer.Option(help="Where to write the edited video (mp4).")],
    reference: Annotated[Path | None, typer.Option(help="A reference image.")] = None,
    model: Annotated[str, typer.Option(help="A checkpoint's folder, or an alias or version in the registry.")] = (
        "champion"
    ),
    workdir: Annotated[Path, typer.Option(help="The run whose registry is asked.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 5,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Edits VIDEO as the instruction says and writes an mp4."""
    for path in (video, reference):
        if path is not None and not path.is_file():
            raise UsageError(f"no file {path}", "name an existing video or image")
    if out.suffix.lower() != ".mp4":
        raise UsageError(f"--out {out} does not end in .mp4", "name an .mp4 file")
    if not prompt.strip():
        raise UsageError("the instruction is empty", 'say what to do, e.g. --prompt "make the red circle blue"')
    edit_file(model_folder(model, workdir), video, prompt, reference, out, steps, seed)
    print(out)


def edit_file(folder: Path, video: Path, prompt: str, reference: Path | None, out: Path, steps: int, seed: int) -> None:
    """Edits a file with the model in `folder`. The result has the video's size, length and speed, and appears whole.

    Raises MediaError for a video or image that cannot be read, ModelError for a folder that holds no model.
    """
    from kiwi.media import decode, encode_video

    clip = decode(video)
    image = decode(reference).frames[0] if reference else None
    from kiwi.editing.pipeline import KiwiEditPipeline

    pipeline = KiwiEditPipeline.from_pretrained(folder)
    (edited,) = pipeline([clip.frames], [prompt], [image], num_inference_steps=steps, seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    encode_video(out, edited, clip.fps)


def model_folder(model: str, workdir: Path) -> Path:
    """A folder as it stands, or the registry's model under that alias or version."""
    if Path(model).is_dir():
        return Path(model)
    from kiwi.cli.stored import stored_configuration
    from kiwi.registry import download_model

    return download_model(stored_configuration(workdir), alias_or_version=model)
