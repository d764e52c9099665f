"""The classical deduplicator: perceptual hash and Lab transform of an image, compared exactly, all with all.

An image is described by the low frequencies of its Lab planes at 32x32. The signs of its lightness frequencies are a
64-bit perceptual hash (re-encoding moves it by 0-2 bits, another picture by 26-38); a hash alone takes flat pictures
of one drawing and different colours for the same, so the frequencies themselves must agree as well. A mirrored image
has the odd horizontal frequencies negated, so it is looked for without another transform.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from kiwi.curation.curators.classical_change import lab
from kiwi.curation.curators.protocols import Image

SIDE = 32
LOW = 8
COSINE = 0.99
COLOUR = 3.0  # root mean square Lab distance that still counts as the same picture
BLOCK = 2048

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class ClassicalDeduplicator:
    """Keeps the first of each set of near-duplicates. Deterministic, exact, and independent of the block size.

    Attributes:
        distance: bits of 64 in which two hashes may differ.
    """

    distance: float
    name: str = "classical"
    version: str = "1"
    measures: tuple[str, ...] = ()
    block: int = BLOCK

    def fingerprints(self, images: Iterable[Image]) -> Iterator[bytes]:
        """See protocols."""
        return map(self.fingerprint, images)

    def fingerprint(self, image: Image) -> bytes:
        """float16 [3,8,8]: the low DCT frequencies of L, a, b of the image (uint8 [H,W,3]) at 32x32, orthonormal."""
        small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        planes = lab(np.asarray(small, np.uint8))
        low = np.stack([cv2.dct(np.ascontiguousarray(planes[..., index]))[:LOW, :LOW] for index in range(3)])
        return (low / SIDE).astype("<f2").tobytes()

    def keep_first(self, fingerprints: Sequence[Sequence[bytes]]) -> NDArray[np.int64]:
        """For each row the earlier kept row that it repeats, or -1. Straight or mirrored, the same way in all aspects.

        Args:
            fingerprints: one list an aspect; a pair of rows must agree in every aspect.
        """
        aspects = [_Aspect(list(prints)) for prints in fingerprints]
        count = len(fingerprints[0])
        repeats = np.full(count, -1, np.int64)
        for start in range(0, count, self.block):
            stop = min(start + self.block, count)
            for earlier, later in self._pairs(aspects, start, stop):
                if repeats[later] < 0 and repeats[earlier] < 0:
                    repeats[later] = earlier
        return repeats

    def _pairs(self, aspects: list[_Aspect], start: int, stop: int) -> list[tuple[int, int]]:
        """(earlier, later) that agree, for `later` in [start, stop), ordered by later, then earlier."""
        found: list[tuple[int, int]] = []
        for left in range(0, stop, self.block):
            right = min(left + self.block, stop)
            for mirrored in (False, True):
                later, earlier = aspects[0].near(start, stop, left, right, mirrored, self.distance)
                later, earlier = later + start, earlier + left
                behind = earlier < later
                later, earlier = later[behind], earlier[behind]
                for aspect in aspects:
                    same = aspect.agree(later, earlier, mirrored, self.distance)
                    later, earlier = later[same], earlier[same]
                found.extend(zip(earlier.tolist(), later.tolist(), strict=True))
        return sorted(found, key=lambda pair: (pair[1], pair[0]))


class _Aspect:
    """The fingerprints of one aspect as matrices: signs for the hash, frequencies for the rest."""

    def __init__(self, prints: list[bytes]) -> None:
        raw = np.frombuffer(b"".join(prints), "<f2").reshape(len(prints), 3, LOW, LOW)
        turned = raw * np.where(np.arange(LOW) % 2 == 1, -1, 1).astype(np.float16)
        self._values = (_flat(raw), _flat(turned))
        self._signs = (_signs(raw), _signs(turned))

    def near(
        self, start: int, stop: int, left: int, right: int, mirrored: bool, distance: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row, column) of all hash pairs within `distance` bits in one block; sums of signs are exact in float32."""
        product = self._signs[mirrored][start:stop] @ self._signs[0][left:right].T
        near = np.flatnonzero(product >= self._signs[0].shape[1] - 2.0 * distance)
        return near // (right - left), near % (right - left)

    def agree(
        self, later: NDArray[np.int64], earlier: NDArray[np.int64], mirrored: bool, distance: float
    ) -> NDArray[np.bool_]:
        """Hash, direction and colour of each listed pair of rows, in portions."""
        out = np.zeros(len(later), bool)
        for start in range(0, len(later), 65_536):
            here, there = later[start : start + 65_536], earlier[start : start + 65_536]
            one, other = self._values[mirrored][here], self._values[0][there]
            bits = np.einsum("ij,ij->i", self._signs[mirrored][here], self._signs[0][there])
            close = (self._signs[0].shape[1] - bits) / 2 <= distance
            apart = np.sqrt(np.square(one - other).sum(1))
            length = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            cosine = np.einsum("ij,ij->i", one, other) / np.maximum(length, 1e-6)
            out[start : start + 65_536] = close & (apart <= COLOUR) & ((cosine >= COSINE) | (length < 1.0))
        return out


def _flat(values: NDArray[np.float16]) -> Matrix:
    return values.reshape(len(values), -1).astype(np.float32)


def _signs(values: NDArray[np.float16]) -> Matrix:
    """The hash as +1 and -1 [N,64]: lightness frequencies above their median; the mean's own bit is left at +1."""
    light = values[:, 0].reshape(len(values), -1).astype(np.float32)
    light[:, 0] = np.inf
    middle = np.median(light[:, 1:], axis=1, keepdims=True) if len(light) else np.zeros((0, 1), np.float32)
    return np.where(light > middle, 1.0, -1.0).astype(np.float32)
