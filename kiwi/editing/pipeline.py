"""The editor as a diffusers-style pipeline: `from_pretrained`, `save_pretrained`, and a call that edits clips."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kiwi.editing.clips import OutputType, check_output_type, clips_of, given_back, references_of
from kiwi.editing.errors import EditError
from kiwi.editing.extent import check_extent
from kiwi.editing.geometry import Edited, blend, causal_length, padded, rounded, windows
from kiwi.editing.options import check_steps
from kiwi.editing.placement import Placement, is_out_of_memory, out_of_memory, place, placed, working
from kiwi.editing.sampling import Sampler, StepLook, denoised
from kiwi.editing.step_cache import StepCache, StepCaching
from kiwi.editing.wording import check_instruction, check_seed
from kiwi.media.resizing import resize_frames
from kiwi.model.checkpoint import load_model, save_model
from kiwi.model.context import patches
from kiwi.model.editor import KiwiEditModel
from kiwi.model.flow import SHIFT, TRAINING_STEPS
from kiwi.model.inputs import fit_size, frames_to_tensor
from kiwi.model.instruction import Mode, Prompt, VisionGrid, collate, tokenise

Frames = npt.NDArray[np.uint8]
StepEnd = Callable[["KiwiEditPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
BATCH_SIZE = 32


@dataclass(frozen=True)
class Subject:
    """What one request asks for, apart from its frames; `KiwiEditPipeline.subject` makes it.

    Attributes:
        size: (height, width) at which the model sees the frames.
        seen_reference: what the language model sees, or None.
        latent_reference: what the transformer sees, or None.
    """

    instruction: str
    size: tuple[int, int]
    seen_reference: Frames | None
    latent_reference: Frames | None
    seed: int


@dataclass(frozen=True)
class Window:
    """One piece of one request: at most the model's length, at the model's size.

    Attributes:
        request: its number.
        frames: [L, h, w, 3] with L = 4k + 1.
        before: the edit of its first frames by the window before, [n, h, w, 3], where it begins from that.
    """

    request: int
    start: int
    frames: Frames
    subject: Subject
    before: Edited | None = None

    @property
    def mode(self) -> Mode:
        if self.subject.seen_reference is not None:
            return "reference"
        return "image" if len(self.frames) == 1 else "video"

    @property
    def bucket(self) -> tuple[object, ...]:
        """What windows that are denoised together have in common."""
        seen = None if self.subject.seen_reference is None else self.subject.seen_reference.shape
        return (self.mode, self.frames.shape, seen, None if self.before is None else len(self.before))


@dataclass(frozen=True)
class Sampling:
    """How windows are denoised. `caching` lives as long as the model, for it may learn from the first window."""

    steps: int
    sampler: Sampler = "euler"
    caching: StepCaching | None = None
    on_step: Callable[[int], None] = lambda windows: None
    shift: float = SHIFT
    on_step_end: StepLook | None = None


@dataclass(frozen=True)
class KiwiEditOutput:
    """What a call of the pipeline gives: `frames[i]` is the edit of video i, in the form that `output_type` names."""

    frames: list[Any]


class KiwiEditPipeline:
    """Applies an editor to videos.

    Args:
        model: the editor.
        frames: length of a window; longer clips are edited in overlapping windows that blend.
        side: the square root of the pixel budget of a window.
        placement: device, precision and what saves memory; see Placement.
        overlap: frames that a window shares with the one before, at least.

    What is None is what the model's folder says.
    """

    def __init__(
        self,
        model: KiwiEditModel,
        frames: int | None = None,
        side: int | None = None,
        placement: Placement | None = None,
        overlap: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.frames = model.defaults.frames if frames is None else frames
        self.side = model.defaults.size if side is None else side
        for name, value, least in (("frames", self.frames, 1), ("side", self.side, 1), ("overlap", overlap or 0, 0)):
            if value < least:
                raise EditError(f"the pipeline's {name} is {value}", f"give {least} or more")
        self.overlap = min(model.defaults.overlap if overlap is None else overlap, self.frames - 1)
        self.placement = placement or Placement()
        if self.placement != Placement():
            place(model, self.placement)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        frames: int | None = None,
        side: int | None = None,
        placement: Placement | None = None,
        overlap: int | None = None,
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> KiwiEditPipeline:
        """Loads a model folder.

        Args:
            torch_dtype, device: short for `placement`, as diffusers' users say it.

        Raises:
            ModelError: no model folder, or a damaged one.
            EditError: a device that is not there, or a precision that no weights are kept in.
        """
        laid = placed(placement or Placement(), device, torch_dtype)
        return cls(load_model(Path(folder)), frames, side, laid, overlap)

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        """Writes the model whole or not at all; how this pipeline edits becomes what the folder says of editing."""
        defaults = replace(self.model.defaults, frames=self.frames, size=self.side, overlap=self.overlap)
        save_model(self.model, Path(folder), card, defaults)

    def to(self, *places: str | torch.device | torch.dtype, **named: Any) -> KiwiEditPipeline:
        """Moves the editor to a device, to a precision, or both, in any order; `device=` and `dtype=` do it by name.

        Raises:
            EditError: a device that is not there, or does not hold the model.
        """
        device, dtype = named.pop("device", None), named.pop("dtype", None)
        if named:
            raise EditError(f"to() takes no {', '.join(named)}", "give a device, a dtype, or both")
        for place_ in places:
            if isinstance(place_, torch.dtype):
                dtype = place_
            else:
                device = place_
        self.placement = placed(self.placement, device, dtype)
        place(self.model, self.placement)
        return self

    def enable_model_cpu_offload(self, device: str | torch.device = "cuda") -> None:
        """Brings each part to the device only while it works; see Placement. Raises EditError as `to` does."""
        self.placement = replace(placed(self.placement, device, None), offload="model")
        place(self.model, self.placement)

    def enable_vae_tiling(self) -> None:
        """Lets the autoencoder work in overlapping tiles; see Placement."""
        self.placement = replace(self.placement, tiling=True)
        place(self.model, self.placement)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device(self.placement.device)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the transformer's weights."""
        return self.model.transformer.patch_embedding.base.weight.dtype  # type: ignore[no-any-return]

    def __call__(
        self,
        video: Any,
        prompt: str | Sequence[str],
        reference_image: Any = None,
        *,
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] = 0,
        output_type: OutputType = "np",
        callback_on_step_end: StepEnd | None = None,
        batch_size: int | None = None,
        sampler: Sampler = "euler",
        step_cache: StepCache = "none",
        progress: Callable[[int, int], None] | None = None,
    ) -> KiwiEditOutput:
        """Edits one video or several; each edit has its video's size and length.

        Args:
            video: a clip (a list of PIL images, an array [T, H, W, 3], a tensor [T, 3, H, W]; uint8, or floats in
                0-1), a single image, or a list of these; see kiwi/editing/clips.py.
            prompt: the instruction, or one a video.
            reference_image: None, an image, or a list with an image or None for each video.
            num_inference_steps: evaluations of the model; by default what its folder says.
            generator: draws the seed of each video, and so wins over `seed`; one, or one a video.
            seed: of the noise; one for all videos, or one a video. The same seed gives the same edit, whatever the
                batch (but for step caches, which decide for a batch as a whole).
            output_type: "np" (float32 in 0-1), "pt", "pil" or "uint8".
            callback_on_step_end: called as diffusers does, (pipeline, step, timestep, {"latents": latents}); the
                latents of the dictionary that it returns are gone on with. A batch of windows is sampled at a time,
                so steps count from 0 for each batch.
            batch_size: windows that are denoised together; by default what the folder says.
            progress: called with (windows done, windows in all).
            sampler: see kiwi/editing/sampling.py.
            step_cache: see kiwi/editing/step_cache.py.

        Raises:
            EditError: no video, an empty instruction, lists of different lengths, or too little memory.
        """
        check_output_type(output_type)
        clips = clips_of(video)
        prompts = [prompt] * len(clips) if isinstance(prompt, str) else list(prompt)
        references = references_of(reference_image, len(clips))
        seeds = _seeds(generator, seed, len(clips))
        edits = self.edit_clips(
            clips, prompts, references, num_inference_steps=num_inference_steps, seed=seeds, batch_size=batch_size,
            progress=progress, sampler=sampler, step_cache=step_cache,
            on_step_end=None if callback_on_step_end is None else partial(_called_back, self, callback_on_step_end),
        )  # fmt: skip
        return KiwiEditOutput(given_back(edits, output_type))

    def edit_clips(
        self,
        videos: Sequence[Frames],
        instructions: Sequence[str],
        references: Sequence[Frames | None] | None = None,
        *,
        num_inference_steps: int | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int | None = None,
        latent_references: Sequence[Frames | None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        sampler: Sampler = "euler",
        step_cache: StepCache = "none",
        on_step_end: StepLook | None = None,
    ) -> list[Frames]:
        """Edits clips of uint8 [T, H, W, 3]; each comes back in its own size and length. `__call__` says the rest.

        Args:
            references: uint8 [H, W, 3] or None, one a video.
            batch_size: 32 by default, for the benchmark's many short clips.
            latent_references: what the transformer sees instead of `references`, for control experiments.
            on_step_end: called with (step, noise level, latents) after each step; its result is gone on with.
        """
        count = len(videos)
        references = list(references) if references is not None else [None] * count
        latent_references = list(latent_references) if latent_references is not None else references
        seeds = [seed] * count if isinstance(seed, int) else list(seed)
        if not count == len(instructions) == len(references) == len(latent_references) == len(seeds):
            raise EditError("videos, instructions, references and seeds differ in number", "give one of each a video")
        steps = self.model.defaults.steps if num_inference_steps is None else num_inference_steps
        check_steps(steps)
        pieces: list[Window] = []
        for index, video in enumerate(videos):
            asked = (instructions[index], references[index], latent_references[index], seeds[index])
            pieces += self._cut(index, video, *asked)
        sampling = Sampling(steps, sampler, StepCaching(step_cache), shift=self.shift, on_step_end=on_step_end)
        edited = self.edit_windows(pieces, sampling, batch_size or BATCH_SIZE, progress)
        results: list[Frames] = []
        for index, video in enumerate(videos):
            parts = [(p.start, edit) for p, edit in zip(pieces, edited, strict=True) if p.request == index]
            results.append(_restored(parts, video))
        return results

    @property
    def shift(self) -> float:
        """Of the noise levels, as the model was trained with."""
        return self.model.defaults.shift

    def subject(
        self,
        index: int,
        instruction: str,
        size: tuple[int, int],
        reference: Frames | None,
        latent: Frames | None,
        seed: int,
    ) -> Subject:
        """What request `index` asks for on frames of `size` (height, width). Raises EditError: bad words or seed."""
        check_instruction(instruction, f"the instruction of request {index}")
        check_seed(seed)
        height, width = self.model_size(*size)
        seen, canvas = None, None
        if reference is not None and latent is not None:
            seen = self.model.vision.reference(reference)
            canvas = self.model.vision.canvas(latent, height, width)
        return Subject(instruction, (height, width), seen, canvas, seed)

    def model_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which the model sees frames of that size."""
        return fit_size(height, width, self.side, self.model.pixel_multiple)

    def check_clip(self, frames: int, height: int, width: int, referenced: bool) -> None:
        """Raises EditError for a clip whose windows are larger than the model or the memory takes."""
        check_extent(
            self.model, self.placement.device, self.side, min(frames, self.frames), (height, width), referenced
        )

    def edit_windows(
        self,
        pieces: Sequence[Window],
        sampling: Sampling,
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Edited]:
        """The edits of windows, in their order, float32 [L, h, w, 3] in 0-255. Windows that are alike go together."""
        buckets: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for place_, piece in enumerate(pieces):
            buckets[piece.bucket].append(place_)
        done: dict[int, Edited] = {}
        for places in buckets.values():
            for first in range(0, len(places), batch_size):
                batch = places[first : first + batch_size]
                for place_, edit in zip(batch, self._fitting([pieces[p] for p in batch], sampling), strict=True):
                    done[place_] = edit
                if progress is not None:
                    progress(len(done), len(pieces))
        return [done[place_] for place_ in range(len(pieces))]

    def _cut(
        self, index: int, video: Frames, instruction: str, reference: Frames | None, latent: Frames | None, seed: int
    ) -> list[Window]:
        if video.ndim != 4 or video.shape[-1] != 3 or not len(video):
            raise EditError(f"request {index} is no clip: its shape is {video.shape}", "give [T, H, W, 3] frames")
        self.check_clip(len(video), video.shape[1], video.shape[2], reference is not None)
        subject = self.subject(index, instruction, (video.shape[1], video.shape[2]), reference, latent, seed)
        small = resize_frames(video, *subject.size)
        pieces = []
        for start in windows(len(video), self.frames, self.overlap):
            part = small[start : start + self.frames]
            whole = padded(part, causal_length(len(part), self.model.codec.temporal_stride))
            pieces.append(Window(index, start, whole, subject))
        return pieces

    def _fitting(self, batch: list[Window], sampling: Sampling) -> Edited:
        """Denoises a batch, in halves where the whole does not fit the memory."""
        try:
            return self._denoise(batch, sampling)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise out_of_memory(batch[0].frames.shape[:3], self.placement) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(batch) // 2
        return np.concatenate([self._fitting(batch[:half], sampling), self._fitting(batch[half:], sampling)])

    @torch.inference_mode()
    def _denoise(self, batch: list[Window], sampling: Sampling) -> Edited:
        model, device = self.model, self.placement.device
        with working(model.codec, self.placement):
            source = self._encoded(np.stack([piece.frames for piece in batch]))
            reference = None
            if batch[0].subject.latent_reference is not None:
                canvases = np.stack([_given(piece.subject.latent_reference) for piece in batch])
                reference = self._encoded(canvases[:, None])
            known = None
            if batch[0].before is not None:
                known = self._encoded(np.stack([rounded(_given(piece.before)) for piece in batch]))
        with working(model.context_encoder, self.placement):
            context = self._context(batch)
        noise = torch.stack([_noise(source.shape[1:], piece.subject.seed) for piece in batch]).to(device)

        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            result: Tensor = model(latents, sigma.to(device).expand(len(batch)), context, source, reference)
            return result

        def step_done() -> None:
            sampling.on_step(len(batch))

        cached = sampling.caching.on(model.transformer, sampling.steps) if sampling.caching else nullcontext()
        with working(model.transformer, self.placement), cached:
            latents = denoised(
                velocity, noise, sampling.steps, sampling.sampler, shift=sampling.shift, known=known,
                progress=step_done, look=sampling.on_step_end,
            )  # fmt: skip
        if not bool(torch.isfinite(latents).all()):
            raise EditError(
                "the model's result is not finite: its weights are damaged, or overflow in this precision",
                "look at the training run, or edit with --dtype float32",
            )
        with working(model.codec, self.placement):
            frames = model.codec.decode(latents).clamp(-1, 1)
        result: Edited = ((frames + 1) * 127.5).permute(0, 2, 3, 4, 1).cpu().numpy()
        return result

    def _encoded(self, frames: Frames) -> Tensor:
        """uint8 [B, T, H, W, 3] -> latents on the device."""
        return self.model.codec.encode(frames_to_tensor(frames)).to(self.placement.device)

    def _context(self, batch: list[Window]) -> Tensor:
        encoder, mode, device = self.model.context_encoder, batch[0].mode, self.placement.device
        seen = np.stack([self.model.vision.clip(piece.frames, mode) for piece in batch])
        pixels, grid = patches(torch.from_numpy(seen))
        visual = encoder.vision_tokens(pixels.to(device), grid, "image" if mode == "image" else "video")
        reference, reference_grid = None, None
        if mode == "reference":
            images = np.stack([_given(piece.subject.seen_reference) for piece in batch])
            pixels, reference_grid = patches(torch.from_numpy(images[:, None]))
            reference = encoder.vision_tokens(pixels.to(device), reference_grid, "image")
        prompts = [self._prompt(piece.subject.instruction, mode, grid, reference_grid) for piece in batch]
        return encoder(collate(prompts, encoder.tokenizer.pad_token_id), visual, reference)  # type: ignore[no-any-return]

    def _prompt(self, instruction: str, mode: Mode, grid: VisionGrid, reference: VisionGrid | None) -> Prompt:
        encoder = self.model.context_encoder
        return tokenise(encoder.template, encoder.tokenizer, encoder.mllm, instruction, mode, grid, reference)


def _noise(shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _seeds(
    generator: torch.Generator | Sequence[torch.Generator] | None, seed: int | Sequence[int], count: int
) -> list[int]:
    """A seed a video. A generator goes on by one draw a video, so a second call with it gives another edit."""
    if generator is None:
        return [seed] * count if isinstance(seed, int) else list(seed)
    several = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    return [int(torch.randint(2**62, (), generator=each, device=each.device)) for each in several]


def _called_back(pipeline: KiwiEditPipeline, callback: StepEnd, step: int, sigma: Tensor, latents: Tensor) -> Tensor:
    answer = callback(pipeline, step, sigma * TRAINING_STEPS, {"latents": latents})
    return latents if answer is None else answer.get("latents", latents)


def _given(value: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """A value that the bucket of a batch promises."""
    assert value is not None
    return value


def _restored(parts: list[tuple[int, Edited]], video: Frames) -> Frames:
    joined = blend(parts, len(video)) if len(parts) > 1 else parts[0][1][: len(video)]
    return resize_frames(rounded(joined), video.shape[1], video.shape[2])
