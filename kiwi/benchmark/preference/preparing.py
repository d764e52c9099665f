"""Makes a study: opens the sets of edits, encodes all clips alike, builds the attention checks, keeps it all."""

from __future__ import annotations

import hashlib
import os
import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kiwi.benchmark.gallery import enlarged
from kiwi.benchmark.preference.edit_sets import EditSet
from kiwi.benchmark.preference.footage import Footage, Opened, Unusable
from kiwi.benchmark.preference.study import Check, ClipFile, Study, StudySample, load_study, save_study
from kiwi.benchmark.rubric import Frames
from kiwi.configuration import digest
from kiwi.errors import KiwiError, UsageError

CHECKS_OF_A_KIND = 12
CRF = 14  # near to lossless: a codec's marks must not decide a preference


@dataclass(frozen=True)
class Plan:
    """How a study is cut: at most `samples` of them (0: all), spread over the kinds."""

    samples: int = 0
    attention_share: float = 0.1
    seed: int = 0


def open_study(
    folder: Path,
    sets: Sequence[EditSet],
    plan: Plan,
    *,
    threads: int = 4,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Study:
    """The study of these sets: the one that the folder holds if it was made from the same, otherwise a new one.

    Raises:
        UsageError: the sets cannot be compared, or the folder holds another study.
        KiwiError: no sample is left that all sets can show.
    """
    inputs = _inputs(sets, plan)
    if (folder / "study.json").is_file():
        kept = load_study(folder)
        if kept.study_id != digest(inputs):
            raise UsageError(
                f"{folder} holds another study, of {', '.join(kept.sets)}",
                "name another folder with --study, or leave the edits out to go on with that one",
            )
        return kept
    chosen = choose_samples(sets, plan)
    made = _make_all(folder, sets, chosen, plan, threads, progress)
    excluded = {name: reason for name in chosen if (reason := _missing(made.get(name), sets))}
    usable = [name for name in chosen if name not in excluded]
    if not usable:
        reason = next(iter(excluded.values()))
        raise KiwiError(f"no sample is left to compare of {len(chosen)}: {reason}", "see that all edits can be read")
    study = Study(
        study_id=digest(inputs),
        sets=tuple(each.name for each in sets),
        samples=tuple(_sample(name, sets, made[name]) for name in usable),
        checks=tuple(check for name in usable for check in made[name].checks),
        attention_share=plan.attention_share,
        inputs=inputs,
        excluded=tuple({"id": name, "reason": reason} for name, reason in sorted(excluded.items())),
    )
    save_study(folder, study)
    return study


@dataclass
class _Made:
    """The files of one sample, as far as they are made; `unusable` says why it must be left out."""

    edits: dict[str, ClipFile] = field(default_factory=dict)
    source: ClipFile | None = None
    reference: str | None = None
    checks: list[Check] = field(default_factory=list)
    unusable: str = ""


def _make_all(
    folder: Path,
    sets: Sequence[EditSet],
    chosen: Sequence[str],
    plan: Plan,
    threads: int,
    progress: Callable[[int, int], None],
) -> dict[str, _Made]:
    """Opens and encodes clip after clip; of the frames only those of a few samples are in memory at once."""
    checked = frozenset(chosen[:CHECKS_OF_A_KIND]) if plan.attention_share > 0 else frozenset()
    made: dict[str, _Made] = {}
    total = len(sets) * len(chosen)
    done = 0
    progress(done, total)
    sourced: frozenset[str] = frozenset()
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for each in sets:
            running: deque[Future[None]] = deque()
            for name, read in each.open(frozenset(chosen), sourced):
                first = each is sets[0] and name in checked
                running.append(pool.submit(_make, folder, name, each.name, read, made.setdefault(name, _Made()), first))
                while len(running) > threads:
                    running.popleft().result()
                done += 1
                progress(done, total)
            for job in running:
                job.result()
            sourced |= frozenset(name for name in chosen if each.samples[name].has_source)
    return made


def _make(
    folder: Path, name: str, set_name: str, read: Callable[[], Opened | Unusable], made: _Made, checked: bool
) -> None:
    """Writes the clips of one sample of one set; what belongs to no set comes from the first that has it."""
    from kiwi.media import png_bytes

    opened = read()
    if isinstance(opened, Unusable):
        made.unusable = made.unusable or f"{set_name}: {opened.reason}"
        return
    made.edits[set_name] = _clip(folder, opened.edit)
    if made.source is None and opened.source is not None:
        made.source = _clip(folder, opened.source)
    if made.reference is None and opened.reference is not None:
        made.reference = _kept(folder, png_bytes(enlarged(opened.reference[None])[0]), "png")
    if checked:
        intact = opened.truth or opened.edit
        same = made.edits[set_name]
        good = _clip(folder, opened.truth) if opened.truth is not None else same
        damaged = _clip(folder, Footage(damage(intact.frames), intact.fps))
        made.checks = [
            Check(f"same|{name}", "same", name, same, same),
            Check(f"damaged|{name}", "damaged", name, good, damaged),
        ]


def _missing(made: _Made | None, sets: Sequence[EditSet]) -> str:
    """Why a sample cannot be shown, or an empty text."""
    if made is None:
        return "no set has its edit"
    if made.unusable:
        return made.unusable
    without = [each.name for each in sets if each.name not in made.edits]
    if without:
        return f"{without[0]} has no edit of it"
    return "" if made.source is not None else "its source cannot be read"


def _sample(name: str, sets: Sequence[EditSet], made: _Made) -> StudySample:
    assert made.source is not None
    listed = [each.samples[name] for each in sets]
    return StudySample(
        sample_id=name,
        kind=next((each.kind for each in listed if each.kind), ""),
        prompt=next(each.prompt for each in listed if each.prompt),
        source=made.source,
        edits={each.name: made.edits[each.name] for each in sets},
        reference=made.reference,
    )


def _inputs(sets: Sequence[EditSet], plan: Plan) -> dict[str, Any]:
    """What names the study. Raises UsageError for sets that cannot be compared."""
    names = [each.name for each in sets]
    if len(sets) < 2:
        raise UsageError(f"{len(sets)} set of edits: nothing to compare", "name two sets of edits or more")
    if len(set(names)) < len(names):
        raise UsageError(f"two sets of one name: {', '.join(names)}", "name them: NAME=PATH")
    revisions = {str(each.origin["revision"]): each.name for each in sets if "revision" in each.origin}
    if len(revisions) > 1:
        said = ", ".join(f"{name} of {revision}" for revision, name in revisions.items())
        raise UsageError(f"edits of different benchmarks: {said}", "compare runs whose benchmark is the same")
    if not 0 <= plan.attention_share <= 0.5:
        raise UsageError(f"an attention share of {plan.attention_share}", "give 0 (no checks) to 0.5")
    if plan.samples < 0:
        raise UsageError(f"{plan.samples} samples", "give the number of samples, or 0 for all")
    return {
        "sets": [{"name": each.name, **each.origin} for each in sets],
        "samples": plan.samples,
        "attention_share": plan.attention_share,
        "seed": plan.seed,
    }


def choose_samples(sets: Sequence[EditSet], plan: Plan) -> list[str]:
    """The samples that all sets list, kinds in turn and drawn within a kind, at most `plan.samples`.

    Raises UsageError where none is shared, where instructions differ, or where no set says source or instruction.
    """
    shared = [name for name in sets[0].samples if all(name in each.samples for each in sets)]
    if not shared:
        raise UsageError(f"{' and '.join(each.name for each in sets)} share no sample", "their ids must be the same")
    kinds: dict[str, list[str]] = {}
    for name in shared:
        prompts = {each.samples[name].prompt for each in sets} - {""}
        if len(prompts) != 1:
            what = f"different instructions for sample {name}" if prompts else f"no instruction for sample {name}"
            raise UsageError(f"the sets have {what}", "give each sample one prompt, in one set or alike in all")
        if not any(each.samples[name].has_source for each in sets):
            raise UsageError(f"no set has the source of sample {name}", "give src_video in one of them")
        kinds.setdefault(next((each.samples[name].kind for each in sets if each.samples[name].kind), ""), []).append(
            name
        )
    draw = random.Random(plan.seed)
    for names in kinds.values():
        draw.shuffle(names)
    turns = sorted((place, kind) for kind, names in kinds.items() for place in range(len(names)))
    chosen = [kinds[kind][place] for place, kind in turns]
    return chosen[: plan.samples] if plan.samples else chosen


def damage(frames: Frames) -> Frames:
    """A copy that nobody can prefer: upside down, in squares of an eighth of the frame, each far off in its colour."""
    height, width = frames.shape[1:3]
    step = max(2, min(height, width) // 8)
    coarse = frames[:, ::-step, ::step].astype(np.float64)
    coarse += np.random.default_rng(0).normal(0.0, 60.0, size=coarse.shape)
    squares = np.clip(coarse, 0, 255).astype(np.uint8)
    return np.repeat(np.repeat(squares, step, axis=1), step, axis=2)[:, :height, :width]


def _clip(folder: Path, footage: Footage) -> ClipFile:
    from kiwi.media import encode_video

    frames = enlarged(footage.frames)
    data = encode_video(None, frames, footage.fps, crf=CRF)
    height, width = frames.shape[1:3]
    return ClipFile(_kept(folder, data, "mp4"), width, height, footage.fps, len(frames) / footage.fps)


def _kept(folder: Path, data: bytes, ending: str) -> str:
    """Writes the bytes once, under their hash. Returns the file's name."""
    name = f"{hashlib.sha256(data).hexdigest()[:32]}.{ending}"
    path = folder / "media" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{os.getpid()}.{random.getrandbits(32):08x}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return name
