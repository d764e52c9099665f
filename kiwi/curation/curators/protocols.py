"""What a curator of each kind takes and gives: the Protocols that stages are written against.

A curator judges; it never reads files, and it never decides for another stage. It returns a typed reason instead of
raising where the sample is at fault. `measures` names the figures it returns; each becomes a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kiwi.dataset.schema import Reason, Task

Image = NDArray[np.uint8]
Frames = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]
RegionKind = Literal["object", "foreground"]


@dataclass(frozen=True)
class Judgement:
    """What every curator's answer holds: figures by name, and why the row should go, where it should."""

    measures: dict[str, float] = field(default_factory=dict)
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True)
class Score(Judgement):
    """`overall` is 0-10; `name` says which score it is, so that a heuristic is never taken for a model's."""

    overall: float = 0.0
    name: str = ""


@dataclass(frozen=True)
class Grounding(Judgement):
    """`box` is (x1, y1, x2, y2) in shares of the frame, of the edited object, or of the kept foreground."""

    box: Box | None = None
    kind: RegionKind = "object"


@dataclass(frozen=True)
class Segmentation(Judgement):
    """`mask` [H,W] on the target's first frame: the object, or the foreground of a background change."""

    mask: Mask | None = None


@dataclass(frozen=True)
class Synthesis(Judgement):
    """`image` uint8 [H,W,3] is the reference; `origin` names how it was made ("crop_classical", …)."""

    image: Image | None = None
    origin: str = ""


@dataclass(frozen=True)
class Verification(Judgement):
    """`consistency` is 0-1: how well the reference agrees with what the target shows."""

    consistency: float = 0.0


class Curator(Protocol):
    """The provenance that every row carries."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def measures(self) -> tuple[str, ...]: ...


class Scorer(Curator, Protocol):
    def score(self, source: Frames, target: Frames, prompt: str, task: Task) -> Score:
        """Source and target are uint8 [T,H,W,3] of one size; T may differ by a frame."""
        ...


class Grounder(Curator, Protocol):
    def ground(self, source: Image, target: Image, prompt: str, task: Task) -> Grounding:
        """First frames uint8 [H,W,3] of one size."""
        ...


class Segmenter(Curator, Protocol):
    def segment(self, source: Image, target: Image, box: Box, kind: RegionKind) -> Segmentation: ...


class Synthesizer(Curator, Protocol):
    def synthesize(self, target: Image, mask: Mask, kind: RegionKind) -> Synthesis: ...


class Verifier(Curator, Protocol):
    def verify(
        self, reference: Image, source: Image, target: Image, mask: Mask | None, kind: RegionKind
    ) -> Verification:
        """`mask` is None for a reference that came with the pair; such a one need not match pixel by pixel."""
        ...


class Deduplicator(Curator, Protocol):
    def fingerprint(self, image: Image) -> bytes:
        """A small, fixed-length description of one image."""
        ...

    def keep_first(self, fingerprints: Sequence[Sequence[bytes]], distance: float) -> NDArray[np.int64]:
        """For each row, the earlier kept row that it repeats in all of its fingerprints, or -1.

        Args:
            fingerprints: one sequence an aspect of the sample (such as reference and target), rows in their order.
        """
        ...
