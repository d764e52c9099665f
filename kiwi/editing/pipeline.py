"""The editor as a diffusers-style pipeline: `from_pretrained`, `save_pretrained`, and a call that edits clips."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kiwi.editing.errors import EditError
from kiwi.editing.geometry import blend, causal_length, padded, windows
from kiwi.media.resizing import resize_frames
from kiwi.model.checkpoint import load_model, save_model
from kiwi.model.context import patches
from kiwi.model.editor import KiwiEditModel
from kiwi.model.flow import sampling_sigmas
from kiwi.model.inputs import fit_size, frames_to_tensor, latent_reference, vision_frames, vision_reference
from kiwi.model.instruction import Mode, Prompt, VisionGrid, collate, tokenise

Frames = npt.NDArray[np.uint8]
WINDOW_OVERLAP = 4


@dataclass(frozen=True)
class _Window:
    """One piece of one request: at most the model's length, at the model's size."""

    request: int
    start: int
    frames: Frames  # [L, h, w, 3], L = 4k + 1
    instruction: str
    seen_reference: Frames | None  # for the language model
    latent_reference: Frames | None  # for the transformer
    seed: int

    @property
    def mode(self) -> Mode:
        if self.seen_reference is not None:
            return "reference"
        return "image" if len(self.frames) == 1 else "video"

    @property
    def bucket(self) -> tuple[object, ...]:
        return (self.mode, self.frames.shape)


class KiwiEditPipeline:
    """Applies an editor to videos.

    Args:
        model: the editor.
        frames: length of a window; longer clips are edited in overlapping windows that blend.
        side: the square root of the pixel budget of a window.
    """

    def __init__(self, model: KiwiEditModel, frames: int = 9, side: int = 64) -> None:
        self.model = model.eval()
        self.frames = frames
        self.side = side

    @classmethod
    def from_pretrained(cls, folder: str | Path, frames: int = 9, side: int = 64) -> KiwiEditPipeline:
        """Loads a model folder. Raises ModelError where it is none."""
        return cls(load_model(Path(folder)), frames, side)

    def save_pretrained(self, folder: str | Path, card: str = "") -> None:
        save_model(self.model, Path(folder), card)

    def __call__(
        self,
        videos: Sequence[Frames],
        instructions: Sequence[str],
        references: Sequence[Frames | None] | None = None,
        *,
        num_inference_steps: int = 5,
        seed: int = 0,
        batch_size: int = 32,
        latent_references: Sequence[Frames | None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Frames]:
        """Edits clips; each comes back in its own size and length.

        Args:
            videos: uint8 [T, H, W, 3] each.
            instructions: one a video.
            references: uint8 [H, W, 3] or None, one a video.
            num_inference_steps: Euler steps.
            seed: of the noise; the same seed gives the same edit, whatever the batch.
            latent_references: what the transformer sees instead of `references`, for control experiments.
            progress: called with (windows done, windows in all).

        Raises:
            EditError: an empty clip or instruction, or lists of different lengths.
        """
        references = list(references) if references is not None else [None] * len(videos)
        latent_references = list(latent_references) if latent_references is not None else references
        if not len(videos) == len(instructions) == len(references) == len(latent_references):
            raise EditError("videos, instructions and references differ in number", "give one of each a request")
        pieces: list[_Window] = []
        for index, video in enumerate(videos):
            pieces += self._cut(index, video, instructions[index], references[index], latent_references[index], seed)
        edited = self._edit_all(pieces, num_inference_steps, batch_size, progress)
        results: list[Frames] = []
        for index, video in enumerate(videos):
            parts = [(p.start, edit) for p, edit in zip(pieces, edited, strict=True) if p.request == index]
            results.append(_restored(parts, video))
        return results

    def _cut(
        self, index: int, video: Frames, instruction: str, reference: Frames | None, latent: Frames | None, seed: int
    ) -> list[_Window]:
        if video.ndim != 4 or video.shape[-1] != 3 or not len(video):
            raise EditError(f"request {index} is no clip: its shape is {video.shape}", "give [T, H, W, 3] frames")
        if not instruction.strip():
            raise EditError(f"request {index} has an empty instruction", "say what to change")
        height, width = fit_size(video.shape[1], video.shape[2], self.side, self.model.codec.spatial_stride)
        small = resize_frames(video, height, width)
        seen, canvas = None, None
        if reference is not None and latent is not None:
            seen = vision_reference(reference, self.model.vision.side)
            canvas = latent_reference(latent, height, width)
        pieces = []
        for start in windows(len(video), self.frames, WINDOW_OVERLAP):
            part = small[start : start + self.frames]
            whole = padded(part, causal_length(len(part), self.model.codec.temporal_stride))
            pieces.append(_Window(index, start, whole, instruction, seen, canvas, seed))
        return pieces

    def _edit_all(
        self, pieces: list[_Window], steps: int, batch_size: int, progress: Callable[[int, int], None] | None
    ) -> list[npt.NDArray[np.float32]]:
        buckets: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for place, piece in enumerate(pieces):
            buckets[piece.bucket].append(place)
        done: dict[int, npt.NDArray[np.float32]] = {}
        for places in buckets.values():
            for first in range(0, len(places), batch_size):
                batch = places[first : first + batch_size]
                for place, edit in zip(batch, self._denoise([pieces[p] for p in batch], steps), strict=True):
                    done[place] = edit
                if progress is not None:
                    progress(len(done), len(pieces))
        return [done[place] for place in range(len(pieces))]

    @torch.inference_mode()
    def _denoise(self, batch: list[_Window], steps: int) -> npt.NDArray[np.float32]:
        model = self.model
        source = model.codec.encode(frames_to_tensor(np.stack([piece.frames for piece in batch])))
        reference = None
        if batch[0].latent_reference is not None:
            canvases = np.stack([piece.latent_reference for piece in batch if piece.latent_reference is not None])
            reference = model.codec.encode(frames_to_tensor(canvases[:, None]))
        context = self._context(batch)
        latents = torch.stack([_noise(source.shape[1:], piece.seed) for piece in batch])
        sigmas = sampling_sigmas(steps)
        for now, following in itertools.pairwise(sigmas):
            velocity = model(latents, now.expand(len(batch)), context, source, reference)
            latents = latents + (following - now) * velocity
        frames = model.codec.decode(latents).clamp(-1, 1)
        result: npt.NDArray[np.float32] = ((frames + 1) * 127.5).permute(0, 2, 3, 4, 1).numpy()
        return result

    def _context(self, batch: list[_Window]) -> Tensor:
        encoder, vision = self.model.context_encoder, self.model.vision
        mode = batch[0].mode
        seen = np.stack([vision_frames(piece.frames, vision.frames, vision.side) for piece in batch])
        pixels, grid = patches(torch.from_numpy(seen))
        visual = encoder.vision_tokens(pixels, grid, "image" if mode == "image" else "video")
        reference, reference_grid = None, None
        if mode == "reference":
            images = np.stack([piece.seen_reference for piece in batch if piece.seen_reference is not None])
            pixels, reference_grid = patches(torch.from_numpy(images[:, None]))
            reference = encoder.vision_tokens(pixels, reference_grid, "image")
        prompts = [self._prompt(piece.instruction, mode, grid, reference_grid) for piece in batch]
        return encoder(collate(prompts, encoder.tokenizer.pad_token_id), visual, reference)  # type: ignore[no-any-return]

    def _prompt(self, instruction: str, mode: Mode, grid: VisionGrid, reference: VisionGrid | None) -> Prompt:
        encoder = self.model.context_encoder
        return tokenise(encoder.template, encoder.tokenizer, encoder.mllm, instruction, mode, grid, reference)


def _noise(shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _restored(parts: list[tuple[int, npt.NDArray[np.float32]]], video: Frames) -> Frames:
    joined = blend(parts, len(video)) if len(parts) > 1 else parts[0][1][: len(video)]
    whole = np.clip(np.rint(joined), 0, 255).astype(np.uint8)
    return resize_frames(whole, video.shape[1], video.shape[2])
