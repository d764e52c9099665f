"""What a model makes of the samples, with its controls, kept lossless so that a judge can look again.

One safetensors file holds the edits of one batch (samples of one kind), named by what it was made from. A batch that
is there is not made again, so a run that was killed loses one batch at most.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kiwi.benchmark.rubric import FailedMeasurement, Frames, Image, MeasurementError
from kiwi.benchmark.samples import BenchmarkSample, HeldOut
from kiwi.configuration import digest
from kiwi.hashing import sha256_of

BATCH_SAMPLES = 64
RESULT = "result"
WRONG_INSTRUCTION = "wrong_instruction"
SWAPPED_REFERENCE = "swapped_reference"
WRONG_LATENTS = "wrong_latents"
WRONG_INSTRUCTION_KINDS = frozenset({"recolour", "swap"})


class Editor(Protocol):
    """What `KiwiEditPipeline.edit_clips` is: clips uint8 [T, H, W, 3] in, clips of the same shape out.

    `latent_references` replaces the references that the DiT sees while the MLLM sees `references`.
    """

    def __call__(
        self,
        videos: list[Frames],
        instructions: list[str],
        references: list[Image | None] | None = None,
        *,
        num_inference_steps: int,
        seed: int,
        latent_references: list[Image | None] | None = None,
    ) -> Sequence[Frames]: ...


@dataclass(frozen=True)
class Request:
    """One edit to make: `arm` says whether it is the result or one of the controls."""

    sample: BenchmarkSample
    arm: str
    instruction: str
    reference: Image | None
    latent_reference: Image | None = None

    @property
    def key(self) -> str:
        return f"{self.arm}.{self.sample.sample_id}"


@dataclass(frozen=True)
class Batch:
    """The requests of one batch and the file that keeps their edits."""

    kind: str
    requests: tuple[Request, ...]
    path: Path


def requests_for(samples: Sequence[BenchmarkSample], controls: bool) -> list[Request]:
    """The results first, then the controls: a wrong instruction for colours, another reference for subjects, and
    for backgrounds the right reference in the MLLM with another one's latents in the DiT."""
    results = [Request(sample, RESULT, sample.prompt, sample.reference) for sample in samples]
    if not controls:
        return results
    extra: list[Request] = []
    for sample in samples:
        if sample.kind in WRONG_INSTRUCTION_KINDS and sample.wrong_prompt is not None:
            extra.append(Request(sample, WRONG_INSTRUCTION, sample.wrong_prompt, sample.reference))
        if sample.swapped_reference is None:
            continue
        if sample.group == "subject":
            extra.append(Request(sample, SWAPPED_REFERENCE, sample.prompt, sample.swapped_reference))
        if sample.group == "background":
            swapped = sample.swapped_reference
            extra.append(Request(sample, WRONG_LATENTS, sample.prompt, sample.reference, swapped))
    return results + extra


def plan_batches(
    held_out: HeldOut, folder: Path, *, sampling_steps: int, controls: bool, at_most: int | None = None
) -> list[Batch]:
    """Batches by kind; `at_most` samples of each kind. Each file's name holds the hash of its requests."""
    batches = []
    for kind in held_out.kinds:
        samples = held_out.of_kind(kind, at_most)
        for start in range(0, len(samples), BATCH_SAMPLES):
            requests = tuple(requests_for(samples[start : start + BATCH_SAMPLES], controls))
            key = digest(held_out.revision, sampling_steps, [(each.key, each.instruction) for each in requests])
            batches.append(Batch(kind, requests, folder / f"{kind}-{start // BATCH_SAMPLES:03d}-{key[:8]}.safetensors"))
    return batches


def make_batch(batch: Batch, editor: Editor, *, sampling_steps: int) -> None:
    """Edits one batch in at most two calls and keeps the edits. Edits of a wrong shape are kept too: judging sees them.

    Raises whatever the editor raises; nothing is left half-written.
    """
    from safetensors.numpy import save_file

    made: dict[str, Frames] = {}
    for overridden in (False, True):
        requests = [each for each in batch.requests if (each.latent_reference is not None) == overridden]
        if not requests:
            continue
        options: dict[str, Any] = {}
        if overridden:
            options["latent_references"] = [each.latent_reference for each in requests]
        edits = editor(
            [each.sample.source for each in requests],
            [each.instruction for each in requests],
            [each.reference for each in requests],
            num_inference_steps=sampling_steps,
            seed=0,
            **options,
        )
        made |= {each.key: np.ascontiguousarray(edit) for each, edit in zip(requests, edits, strict=False)}
    batch.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = batch.path.with_name(f".{batch.path.name}.{os.getpid()}.tmp")
    save_file(made, str(temporary))
    os.replace(temporary, batch.path)


def edit_held_out(
    batches: Sequence[Batch],
    load: Callable[[], Editor],
    *,
    sampling_steps: int,
    progress: Callable[[int], None] = lambda edits: None,
) -> int:
    """Makes the batches that are missing or cut short, loading the model only if one is.

    Returns the number of edits made now.
    """
    editor: Editor | None = None
    made = 0
    for batch in batches:
        if not _whole(batch.path):
            editor = editor or load()
            make_batch(batch, editor, sampling_steps=sampling_steps)
            made += len(batch.requests)
        progress(len(batch.requests))
    return made


def read_edits(batches: Sequence[Batch]) -> Iterator[tuple[Request, Frames | None]]:
    """All requests with their edits, batch by batch; None for an edit that is missing or whose file is unreadable."""
    for batch in batches:
        kept = _load(batch.path) if _whole(batch.path) else {}
        for request in batch.requests:
            yield request, kept.get(request.key)


def read_recorded(
    batches: Sequence[Batch], files: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Request, Frames | MeasurementError]]:
    """All requests with their edits, or why there is none: MeasurementError(EDIT_MISSING).

    `files`: what edits.json says of them; a file of another SHA-256 is not believed.
    """
    recorded = {entry["file"]: entry["sha256"] for entry in files}
    for batch in batches:
        trouble = _trouble(batch.path, recorded)
        kept = _load(batch.path) if trouble is None else {}
        for request in batch.requests:
            edit = kept.get(request.key)
            missing = MeasurementError(FailedMeasurement.EDIT_MISSING, trouble or "no edit was made or stored")
            yield request, missing if edit is None else edit


def _trouble(path: Path, recorded: Mapping[str, str]) -> str | None:
    if not path.exists():
        return f"{path} is not there; `kiwi bench run` makes it again"
    if not _whole(path):
        return f"{path} is cut short or no file of edits; `kiwi bench run` makes it again"
    if path.name in recorded and recorded[path.name] != sha256_of(path):
        return f"{path} is not the file that edits.json records: remove it, and `kiwi bench run` makes it again"
    return None


def _whole(path: Path) -> bool:
    """Whether this is a file of edits to its end; its header says how long it must be."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "numpy"):
            return True
    except (OSError, SafetensorError):
        return False


def _load(path: Path) -> dict[str, Frames]:
    from safetensors.numpy import load_file

    found: dict[str, Frames] = load_file(str(path))
    return found
