"""Long clips in windows: no seam, few frames in memory, and the same result whole or in a stream."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from kiwi.editing.errors import EditError
from kiwi.editing.geometry import Blending, blend, cut, rounded, windows
from kiwi.editing.options import SamplingOptions, completed
from kiwi.editing.pipeline import KiwiEditPipeline
from kiwi.editing.streams import StreamEditor, StreamRequest
from kiwi.errors import KiwiError
from kiwi.model.defaults import defaults_of
from kiwi.model.editor import KiwiEditModel

WORDS = "Make the red circle blue."


def moving(frames: int, height: int = 64, width: int = 64) -> np.ndarray:
    """A bright bar that wanders over a gradient."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip[:] = np.linspace(30, 130, width, dtype=np.uint8)[None, None, :, None]
    for index in range(frames):
        left = round((width - 16) * (0.5 + 0.5 * np.sin(index / 12)))
        clip[index, :, left : left + 16] = (220, 120, 60)
    return clip


def streamed(
    pipeline: KiwiEditPipeline, clip: np.ndarray, options: SamplingOptions, count: int | None = None
) -> np.ndarray:
    editor = StreamEditor.of(pipeline, options)
    subject = pipeline.subject(0, WORDS, clip.shape[1:3], None, None, options.seed)
    parts = []
    for _, part in editor.edit([StreamRequest(iter(clip), count or len(clip), subject)]):
        if isinstance(part, KiwiError):
            raise part
        parts.append(part)
    return np.concatenate(parts)


@pytest.mark.parametrize("frames", [1, 2, 8, 9, 10, 23, 40])
@pytest.mark.parametrize("overlap", [0, 4, 8])
def test_windows_that_come_one_by_one_blend_as_all_at_once(frames: int, overlap: int) -> None:
    starts = windows(frames, 9, overlap)
    generator = np.random.default_rng(0)
    edits = [generator.random((9, 2, 3, 3), dtype=np.float32) * 255 for _ in starts]
    blending = Blending(starts, frames)
    joined = np.concatenate([blending.add(index, edit) for index, edit in enumerate(edits)])
    whole = blend(list(zip(starts, edits, strict=True)), frames) if len(starts) > 1 else edits[0][:frames]
    assert np.array_equal(joined, rounded(whole))


@pytest.mark.parametrize("frames", [1, 7, 9, 26])
def test_windows_are_cut_from_a_stream_as_from_a_clip(frames: int) -> None:
    clip = moving(frames, 8, 8)
    starts = windows(frames, 9, 4)
    for start, piece in cut(iter(clip), starts, 9, 4):
        here = clip[start : start + 9]
        assert (len(piece) - 1) % 4 == 0
        assert np.array_equal(piece[: len(here)], here)
        assert (piece[len(here) :] == here[-1]).all()


def test_a_streamed_clip_is_edited_as_the_whole_clip_is(pipeline: KiwiEditPipeline) -> None:
    clip = moving(31)
    (whole,) = pipeline.edit_clips([clip], [WORDS], num_inference_steps=2, seed=4, batch_size=4)
    stream = streamed(pipeline, clip, SamplingOptions(steps=2, seed=4, batch_size=4))
    assert np.array_equal(stream, whole)


def test_a_long_clip_is_edited_with_a_few_windows_in_memory(pipeline: KiwiEditPipeline) -> None:
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def coming(frames: int) -> Iterator[np.ndarray]:
        nonlocal alive, most
        for index in range(frames):
            frame = np.full((64, 64, 3), index % 256, np.uint8)
            weakref.finalize(frame, gone)
            alive += 1
            most = max(most, alive)
            yield frame

    count = 600
    editor = StreamEditor.of(pipeline, SamplingOptions(steps=1, batch_size=4))
    subject = pipeline.subject(0, WORDS, (64, 64), None, None, 0)
    given = 0
    for _, part in editor.edit([StreamRequest(coming(count), count, subject)]):
        assert not isinstance(part, KiwiError)
        assert len(part) <= 9
        given += len(part)
    assert given == count
    assert most <= 2 * pipeline.frames


def border_jumps(edit: np.ndarray, source: np.ndarray, starts: list[int], length: int) -> float:
    """The mean jump of (edit - source) where windows begin or end, over the median jump elsewhere."""
    change = edit.astype(float) - source
    jumps = np.abs(np.diff(change, axis=0)).mean((1, 2, 3))
    borders = {start - 1 for start in starts[1:]} | {start + length - 1 for start in starts[:-1]}
    elsewhere = [index for index in range(len(jumps)) if index not in borders]
    return float(jumps[sorted(borders)].mean() / max(np.median(jumps[elsewhere]), 1e-6))


class TintingModel:
    """A fake: its "edit" is the source plus a tint that differs from window to window, so a hard cut must show.

    Random weights give windows that differ by noise all over, in which one border cannot be told from another.
    """

    def __init__(self, model: KiwiEditModel) -> None:
        self._model, self.calls = model, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def eval(self) -> TintingModel:
        return self

    def __call__(
        self, noisy: Tensor, sigma: Tensor, context: Tensor, source: Tensor, reference: Tensor | None
    ) -> Tensor:
        """The velocity that leads to the tinted source in one Euler step."""
        tint = torch.zeros_like(source)
        for index in range(len(source)):
            tint[index, 0] = 0.4 * ((self.calls + index) % 2)
        self.calls += len(source)
        return (noisy - source - tint) / sigma.view(-1, 1, 1, 1, 1)


def test_a_long_clip_shows_no_seam(random_model: KiwiEditModel) -> None:
    clip = np.repeat(moving(1), 60, axis=0)  # nothing moves, so every jump is the editor's
    found = {}
    for overlap in (0, 4):
        tinting = KiwiEditPipeline(TintingModel(random_model))  # type: ignore[arg-type]
        options = SamplingOptions(steps=1, overlap=overlap, batch_size=1)
        edit = streamed(tinting, clip, options)
        found[overlap] = border_jumps(edit, clip, windows(60, 9, overlap), 9)
    assert found[0] > 3, "the fake must show a seam where windows are only put one after another"
    assert found[4] < 1.5


def test_a_carried_window_begins_with_the_edit_before_it(pipeline: KiwiEditPipeline) -> None:
    clip = moving(14)
    seen = []
    whole = pipeline.edit_windows

    def looked(pieces: list, *rest: object) -> list:
        edits = whole(pieces, *rest)  # type: ignore[arg-type]
        seen.extend(zip(pieces, edits, strict=True))
        return edits

    pipeline.edit_windows = looked  # type: ignore[method-assign,assignment]
    streamed(pipeline, clip, SamplingOptions(steps=3, overlap=5, carry=True))
    (first, first_edit), (second, second_edit) = seen[:2]
    assert first.before is None
    assert len(second.before) == 5
    shared = first_edit[second.start - first.start :][:5]
    assert np.array_equal(second.before, shared)
    codec = pipeline.model.codec
    kept = codec.decode(codec.encode(torch.from_numpy(rounded(shared)).permute(3, 0, 1, 2)[None] / 127.5 - 1)).clamp(
        -1, 1
    )
    expected = ((kept + 1) * 127.5).permute(0, 2, 3, 4, 1).numpy()[0]
    assert np.abs(second_edit[:5] - expected).max() < 0.1


def test_a_stream_that_ends_early_is_told(pipeline: KiwiEditPipeline) -> None:
    with pytest.raises(EditError, match="ends after window"):
        streamed(pipeline, moving(12), SamplingOptions(steps=1, batch_size=1), count=60)


def test_one_bad_clip_does_not_stop_the_others(pipeline: KiwiEditPipeline) -> None:
    editor = StreamEditor.of(pipeline, SamplingOptions(steps=1, batch_size=4))
    subject = pipeline.subject(0, WORDS, (64, 64), None, None, 0)
    good, short = moving(30), moving(3)
    requests = [StreamRequest(iter(clip), 30, subject) for clip in (good, short, good)]
    given: dict[int, list[object]] = {0: [], 1: [], 2: []}
    for number, part in editor.edit(requests):
        given[number].append(part)
    assert sum(isinstance(part, EditError) for part in given[1]) == 1
    for number in (0, 2):
        assert sum(len(part) for part in given[number]) == 30  # type: ignore[arg-type,misc]


def test_windows_are_rounded_as_diffusers_rounds_frames() -> None:
    own = defaults_of("tiny")
    found = {asked: completed(SamplingOptions(window=asked, overlap=0), own).window for asked in (1, 3, 5, 7, 9, 12)}
    assert found == {1: 1, 3: 1, 5: 5, 7: 5, 9: 9, 12: 13}
    assert completed(SamplingOptions(), own).window == own.frames


def test_progress_counts_every_step_of_every_window(pipeline: KiwiEditPipeline) -> None:
    editor = StreamEditor.of(pipeline, SamplingOptions(steps=3, batch_size=2))
    subject = pipeline.subject(0, WORDS, (64, 64), None, None, 0)
    said: list[tuple[int, int]] = []
    clip = moving(24)
    for _ in editor.edit([StreamRequest(iter(clip), 24, subject)], lambda done, total: said.append((done, total))):
        pass
    assert said[-1] == (12, 12)
    assert [done for done, _ in said] == sorted(done for done, _ in said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (SamplingOptions(window=9, overlap=9), "overlap of 9"),
        (SamplingOptions(window=7, overlap=5), "overlap of 5 frames in windows of 5"),
        (SamplingOptions(window=0), "window is 0"),
        (SamplingOptions(steps=-1), "steps is -1"),
        (SamplingOptions(sampler="heun"), "no sampler 'heun'"),  # type: ignore[arg-type]
    ],
)
def test_options_that_cannot_be_are_refused(options: SamplingOptions, said: str) -> None:
    with pytest.raises(EditError, match=said):
        completed(options, defaults_of("tiny"))
