"""What a curator of each kind takes and gives: the Protocols that stages are written against.

A curator takes a stream of requests and gives one answer for each, in their order. How many it holds at once is its own
affair: a classical one takes them one by one, one with a model gathers a batch, one that asks a server keeps several
questions under way. It judges; it never reads files, and it never decides for another stage. Where the sample is at
fault, or could not be judged, the answer holds a typed reason; an exception means that the curator itself cannot go on.
`measures` names the figures it returns; each becomes a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
class ScoreRequest:
    """Source and target frames, uint8 [T,H,W,3] of one size; T may differ by a frame.

    They are all frames, or those at the scorer's `sample_fps`. `iid` is the sample's identity, for seeds and logs.
    """

    iid: str
    source: Frames
    target: Frames
    prompt: str
    task: Task


@dataclass(frozen=True)
class GroundRequest:
    """First frames, uint8 [H,W,3] of one size."""

    iid: str
    source: Image
    target: Image
    prompt: str
    task: Task


@dataclass(frozen=True)
class SegmentRequest:
    """First frames, and the box (x1, y1, x2, y2 in shares of the frame) of what is to be outlined on the target."""

    iid: str
    source: Image
    target: Image
    box: Box
    kind: RegionKind


@dataclass(frozen=True)
class SynthesizeRequest:
    """The target's first frame and the mask [H,W] on it: of the object, or of the foreground to be taken away.

    `seed` is the sample's own, the same however the work is divided.
    """

    iid: str
    target: Image
    mask: Mask
    kind: RegionKind
    prompt: str
    seed: int


@dataclass(frozen=True)
class VerifyRequest:
    """`mask` is None for a reference that came with the pair; such a one need not match pixel by pixel."""

    iid: str
    reference: Image
    source: Image
    target: Image
    mask: Mask | None
    kind: RegionKind
    prompt: str
    task: Task


@dataclass(frozen=True)
class Judgement:
    """What every curator's answer holds: figures by name, and why the row should go, where it should.

    `reason` may be a failure (kiwi.dataset.schema.FAILURES): the row could not be judged, and no figure is made up.
    """

    measures: dict[str, float] = field(default_factory=dict)
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True)
class Score(Judgement):
    """`overall` is 0-10, None where it could not be had; `name` says which score it is, so that a heuristic is never
    taken for a model's."""

    overall: float | None = None
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
    """`consistency` is 0-1, None where it could not be had: how well the reference agrees with the target."""

    consistency: float | None = None


class Curator(Protocol):
    """The provenance that every row carries."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def measures(self) -> tuple[str, ...]: ...


class Scorer(Curator, Protocol):
    @property
    def sample_fps(self) -> float | None:
        """Frames a second of a clip that it wants to see; None for all of them."""
        ...

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Score]: ...


class Grounder(Curator, Protocol):
    def ground(self, requests: Iterable[GroundRequest]) -> Iterator[Grounding]: ...


class Segmenter(Curator, Protocol):
    def segment(self, requests: Iterable[SegmentRequest]) -> Iterator[Segmentation]: ...


class Synthesizer(Curator, Protocol):
    def synthesize(self, requests: Iterable[SynthesizeRequest]) -> Iterator[Synthesis]: ...


class Verifier(Curator, Protocol):
    def verify(self, requests: Iterable[VerifyRequest]) -> Iterator[Verification]: ...


class Deduplicator(Curator, Protocol):
    def fingerprints(self, images: Iterable[Image]) -> Iterator[bytes]:
        """A small, fixed-length description of each image uint8 [H,W,3], in their order."""
        ...

    def keep_first(self, fingerprints: Sequence[Sequence[bytes]]) -> NDArray[np.int64]:
        """For each row, the earlier kept row that it repeats in all of its fingerprints, or -1.

        Args:
            fingerprints: one sequence an aspect of the sample (such as reference and target), rows in their order.
        """
        ...
