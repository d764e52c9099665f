"""Exact near-duplicates among many vectors: all with all in blocks, the first of each kept, in bounded memory.

The blocks are multiplied in float32, and float32 rounds differently with the shape of a block, the number of threads
and the processor. So a product only decides where it is farther from the threshold than rounding can reach. What is
nearer is decided by `exact`, which rounds nothing: the vectors are float16, so a product of two of their numbers is a
multiple of 2^-48, and the sums of vectors of length 1 fit into float64 whole, in any order. The answer therefore does
not depend on how the work was divided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kiwi.errors import KiwiError, UsageError

Matrix = NDArray[np.float32]
Index = NDArray[np.int64]

LARGEST_BLOCK = 4096  # rows and columns of a product; larger ones gain nothing
SMALLEST_BLOCK = 64
STRIP = 256  # rows that are looked through, or compared among themselves, at once
DENSE = 8192  # candidates of a strip from which the next aspect's product is cheaper than pair by pair
EXACT_PAIRS = 1024  # pairs at once in float64


class FingerprintError(KiwiError):
    """Fingerprints that cannot be compared."""


@dataclass(frozen=True)
class Vectors:
    """One aspect of all rows: float16 vectors of length 1 (to float16's precision), as bytes, formed on demand."""

    prints: Sequence[bytes]

    @property
    def width(self) -> int:
        return len(self.prints[0]) // 2

    def raw(self, index: Index) -> NDArray[np.float16]:
        """The vectors [rows, width] as they are stored."""
        data = b"".join([self.prints[row] for row in index.tolist()])
        if len(data) != 2 * self.width * len(index):
            row = next(row for row in index.tolist() if len(self.prints[row]) != 2 * self.width)
            said = f"the fingerprint of row {row} has {len(self.prints[row])} bytes, that of row 0 {2 * self.width}"
            raise FingerprintError(said, "they were made by different models: curate the rows anew with one of them")
        return np.frombuffer(data, "<f2").reshape(len(index), self.width)

    def unit(self, index: Index) -> Matrix:
        """The vectors [rows, width] in float32, their lengths brought to 1."""
        values = self.raw(index).astype(np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
        right = np.abs(lengths - 1) < 0.01
        if not right.all():
            place = int(np.argmin(right))
            said = f"the fingerprint of row {int(index[place])} has the length {lengths[place]:.3g}, not 1"
            raise FingerprintError(said, "it is no normalised feature: curate the rows anew with one deduplicator")
        values /= lengths.astype(np.float32)[:, None]
        return values

    def exact(self, one: Index, other: Index, similarity: float) -> NDArray[np.bool_]:
        """Whether the cosine of each listed pair is at least `similarity`: no sum in it is rounded."""
        out = np.zeros(len(one), bool)
        for start in range(0, len(one), EXACT_PAIRS):
            part = slice(start, start + EXACT_PAIRS)
            a, b = self.raw(one[part]).astype(np.float64), self.raw(other[part]).astype(np.float64)
            dot, aa, bb = (np.einsum("ij,ij->i", x, y) for x, y in ((a, b), (a, a), (b, b)))
            out[part] = dot >= similarity * np.sqrt(aa * bb)
        return out


class Arithmetic(Protocol):
    """Where blocks are multiplied and looked through. Its matrices are its own affair; indices are numpy's."""

    def load(self, matrix: Matrix) -> Any: ...
    def take(self, matrix: Any, rows: Index) -> Any: ...
    def join(self, one: Any, other: Any) -> Any: ...
    def product(self, rows: Any, columns: Any) -> Any:
        """`rows @ columns.T`; overwritten by the next."""
        ...

    def peaks(self, product: Any, floor: float) -> Index:
        """The rows whose largest value is at least `floor`."""
        ...

    def at_least(self, product: Any, rows: Index, floor: float) -> tuple[Index, Index, Matrix]:
        """(place in `rows`, column, value) of all values from `floor` on in those rows, row by row."""
        ...


class NumpyArithmetic:
    """On the CPU: OpenBLAS was as fast as torch's MKL or faster, and needs no torch."""

    def __init__(self, rows: int, columns: int) -> None:
        self._scratch = np.empty(rows * columns, np.float32)

    def load(self, matrix: Matrix) -> Matrix:
        return matrix

    def take(self, matrix: Matrix, rows: Index) -> Matrix:
        return matrix[rows]

    def join(self, one: Matrix, other: Matrix) -> Matrix:
        return np.concatenate([one, other])

    def product(self, rows: Matrix, columns: Matrix) -> Matrix:
        shape = len(rows), len(columns)
        return np.matmul(rows, columns.T, out=self._scratch[: shape[0] * shape[1]].reshape(shape))

    def peaks(self, product: Matrix, floor: float) -> Index:
        return np.flatnonzero(product.max(axis=1) >= floor)

    def at_least(self, product: Matrix, rows: Index, floor: float) -> tuple[Index, Index, Matrix]:
        part = product[rows]
        places, columns = np.nonzero(part >= floor)
        return places, columns, part[places, columns]


class TorchArithmetic:
    """On an accelerator (or, for tests, on the CPU), in full float32."""

    def __init__(self, device: str) -> None:
        import torch

        torch.set_float32_matmul_precision("highest")  # TF32 has 10 bits: coarser than the margin allows
        self._device = device

    def load(self, matrix: Matrix) -> Any:
        import torch

        return torch.from_numpy(matrix).to(self._device)

    def take(self, matrix: Any, rows: Index) -> Any:
        return matrix[self._index(rows)]

    def join(self, one: Any, other: Any) -> Any:
        import torch

        return torch.cat([one, other])

    def product(self, rows: Any, columns: Any) -> Any:
        return rows @ columns.T

    def peaks(self, product: Any, floor: float) -> Index:
        return np.asarray((product.amax(dim=1) >= floor).nonzero()[:, 0].cpu().numpy(), np.int64)

    def at_least(self, product: Any, rows: Index, floor: float) -> tuple[Index, Index, Matrix]:
        part = product[self._index(rows)]
        found = (part >= floor).nonzero()
        values = part[found[:, 0], found[:, 1]]
        places, columns = found.cpu().numpy().T
        return places, columns, values.cpu().numpy()

    def _index(self, rows: Index) -> Any:
        import torch

        return torch.from_numpy(rows).to(self._device)


def keep_first(
    aspects: Sequence[Sequence[bytes]], similarity: float, memory_gb: float, device: str = "cpu"
) -> NDArray[np.int64]:
    """For each row the first kept row before it with a cosine of at least `similarity` in all aspects, or -1.

    A row is compared with kept rows only: what resembles a dropped row, and no kept one, stays.

    Args:
        aspects: one sequence an aspect, of float16 vectors of length 1 as bytes, rows in their order.
        memory_gb: GB (10^9 bytes) beside the fingerprints themselves, in main memory or on the accelerator.

    Raises:
        FingerprintError: vectors of different or odd width, or not of length 1.
        UsageError: too little memory for the smallest blocks.
    """
    count = len(aspects[0])
    repeats = np.full(count, -1, np.int64)
    if count == 0:
        return repeats
    vectors = [Vectors(prints) for prints in aspects]
    _check(vectors)
    width = vectors[0].width
    block = block_rows(width, count, memory_gb)
    held = int((memory_gb * 1e9 - working_bytes(block, width)) // (4 * width))
    arithmetic: Arithmetic = NumpyArithmetic(block, block) if device == "cpu" else TorchArithmetic(device)
    narrow: Arithmetic = NumpyArithmetic(STRIP, block) if device == "cpu" else arithmetic
    search = _Search(vectors, similarity, block, held, arithmetic, narrow)
    for start in range(0, count, block):
        search.add(np.arange(start, min(start + block, count)), repeats)
    return repeats


def block_rows(width: int, count: int, memory_gb: float) -> int:
    """The rows of a block: a power of two whose work takes at most half of `memory_gb`."""
    block = LARGEST_BLOCK
    while block > SMALLEST_BLOCK and (block >= 2 * count or 2 * working_bytes(block, width) > memory_gb * 1e9):
        block //= 2
    if working_bytes(block, width) > memory_gb * 1e9:
        least = math.ceil(working_bytes(SMALLEST_BLOCK, width) / 1e6) / 1e3
        said = f"curation.duplicate_memory: {memory_gb} GB is too little to compare vectors of {width} numbers"
        raise UsageError(said, f"give at least {least:.3f}")
    return block


def working_bytes(block: int, width: int) -> int:
    """Bytes that are needed whatever the number of rows: products, blocks being formed, candidates of a strip."""
    return 4 * block * block + 32 * block * width + 64 * STRIP * block + 48 * EXACT_PAIRS * width


def _check(vectors: Sequence[Vectors]) -> None:
    for one in vectors:
        if len(one.prints) != len(vectors[0].prints):
            counts = ", ".join(str(len(each.prints)) for each in vectors)
            raise FingerprintError(f"aspects of different numbers of rows: {counts}", "give one fingerprint a row each")
        if len(one.prints[0]) < 2 or len(one.prints[0]) % 2:
            said = f"a fingerprint of {len(one.prints[0])} bytes is no float16 vector"
            raise FingerprintError(said, "curate the rows anew with one deduplicator")


@dataclass
class _Rows:
    """Some rows: their numbers, and their vectors (first aspect), None where they are formed when needed."""

    index: Index
    matrix: Any = None


@dataclass
class _Search:
    """What was kept so far, and how further rows are compared with it."""

    vectors: list[Vectors]
    similarity: float
    block: int
    room: int  # kept rows whose vectors may still be held; those of the rest are formed anew
    arithmetic: Arithmetic
    narrow: Arithmetic
    kept: list[_Rows] = field(default_factory=list)

    def add(self, index: Index, repeats: NDArray[np.int64]) -> None:
        """Compares the rows `index`, at most a block, with what was kept and with one another."""
        rows = _Rows(index, self.arithmetic.load(self.vectors[0].unit(index)))
        for earlier in self.kept:
            rows = self._left(rows, earlier, repeats)
            if len(rows.index) == 0:
                return
        self._keep(self._first_of(rows, repeats))

    def _left(self, rows: _Rows, earlier: _Rows, repeats: NDArray[np.int64]) -> _Rows:
        """`rows` without those that repeat one of `earlier`, which is noted."""
        columns = earlier if earlier.matrix is not None else _Rows(earlier.index, self._formed(earlier.index))
        product = self.arithmetic.product(rows.matrix, columns.matrix)
        found = False
        for places, others in self._pairs(product, rows, columns):
            first = np.unique(places, return_index=True)[1]
            repeats[rows.index[places[first]]] = columns.index[others[first]]
            found = True
        if not found:
            return rows
        left = np.flatnonzero(repeats[rows.index] < 0)
        return _Rows(rows.index[left], self.arithmetic.take(rows.matrix, left))

    def _first_of(self, rows: _Rows, repeats: NDArray[np.int64]) -> _Rows:
        """Those of `rows` that repeat none before them: strip by strip, with the strips before, then within."""
        chosen = np.empty(0, np.int64)
        for start in range(0, len(rows.index), STRIP):
            places = np.arange(start, min(start + STRIP, len(rows.index)))
            strip = _Rows(rows.index[places], self.arithmetic.take(rows.matrix, places))
            if len(chosen):
                before = _Rows(rows.index[chosen], self.arithmetic.take(rows.matrix, chosen))
                strip = self._left(strip, before, repeats)
            if len(strip.index):
                self._within(strip, repeats)
            chosen = np.concatenate([chosen, places[repeats[rows.index[places]] < 0]])
        return _Rows(rows.index[chosen], self.arithmetic.take(rows.matrix, chosen))

    def _within(self, strip: _Rows, repeats: NDArray[np.int64]) -> None:
        same = np.zeros((len(strip.index), len(strip.index)), bool)
        product = self.arithmetic.product(strip.matrix, strip.matrix)
        for places, others in self._pairs(product, strip, strip):
            same[places, others] = True
        for place in np.flatnonzero(same.any(axis=1)):
            earlier = np.flatnonzero(same[place] & (repeats[strip.index] < 0))
            if len(earlier):
                repeats[strip.index[place]] = strip.index[earlier[0]]

    def _pairs(self, product: Any, rows: _Rows, columns: _Rows) -> Iterator[tuple[Index, Index]]:
        """(places in `rows`, places in `columns` of earlier rows) that agree in all aspects, row by row."""
        floor, ceiling = self._bounds(self.vectors[0])
        peaks = self.arithmetic.peaks(product, floor)
        others: dict[int, Any] = {}
        for start in range(0, len(peaks), STRIP):
            strip = peaks[start : start + STRIP]
            places, others_places, values = self.arithmetic.at_least(product, strip, floor)
            behind = columns.index[others_places] < rows.index[strip[places]]
            places, others_places, sure = places[behind], others_places[behind], values[behind] >= ceiling
            for number in range(1, len(self.vectors)):
                if len(places) <= DENSE:
                    sure = np.zeros(len(places), bool)
                    break
                near, near_sure = self._near(number, rows.index[strip], columns.index, places, others_places, others)
                places, others_places, sure = places[near], others_places[near], (sure & near_sure)[near]
            agree = self._agree(rows.index[strip[places]], columns.index[others_places], sure)
            if agree.any():
                yield strip[places[agree]], others_places[agree]

    def _near(
        self, number: int, rows: Index, columns: Index, places: Index, others: Index, formed: dict[int, Any]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each pair of places may agree in aspect `number`, and whether it surely does, by its product."""
        vectors = self.vectors[number]
        if number not in formed:
            formed[number] = self.narrow.load(vectors.unit(columns))
        product = self.narrow.product(self.narrow.load(vectors.unit(rows)), formed[number])
        floor, ceiling = self._bounds(vectors)
        table = np.zeros((len(rows), len(columns)), np.int8)
        for level, bound in ((1, floor), (2, ceiling)):
            found = self.narrow.at_least(product, np.arange(len(rows)), bound)
            table[found[0], found[1]] = level
        said = table[places, others]
        return said >= 1, said == 2

    def _agree(self, one: Index, other: Index, sure: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each pair of rows agrees in all aspects; exactly, where it is not sure."""
        agree = np.ones(len(one), bool)
        for vectors in self.vectors:
            open_ = np.flatnonzero(agree & ~sure)
            agree[open_] = vectors.exact(one[open_], other[open_], self.similarity)
        return agree

    def _bounds(self, vectors: Vectors) -> tuple[float, float]:
        """Below the first a float32 product surely says no, from the second on surely yes.

        A sum of n products errs by at most n units of rounding (Higham, Accuracy and Stability, 3.1), whatever the
        order; 16 more stand for the lengths.
        """
        margin = (vectors.width + 16) * 2.0**-24
        return self.similarity - margin, self.similarity + margin

    def _formed(self, index: Index) -> Any:
        return self.arithmetic.load(self.vectors[0].unit(index))

    def _keep(self, rows: _Rows) -> None:
        """Adds to the kept blocks; a small block is joined to the last."""
        last = self.kept[-1] if self.kept else None
        fits = self.room >= len(rows.index)
        if last is not None and len(last.index) + len(rows.index) <= self.block and (last.matrix is None or fits):
            last.index = np.concatenate([last.index, rows.index])
            last.matrix = None if last.matrix is None else self.arithmetic.join(last.matrix, rows.matrix)
            fits = last.matrix is not None
        else:
            self.kept.append(_Rows(rows.index, rows.matrix if fits else None))
        self.room -= len(rows.index) if fits else 0
