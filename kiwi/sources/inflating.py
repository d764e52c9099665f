"""Random access to a gzipped stream: it is inflated once from the front, and the inflater's state kept along the way.

A read then inflates from the last state before it, at most SPAN bytes too many. Without the first pass there is no
other way into a gzip stream; a collection of terabytes is better unpacked, or repacked as plain tar, once.
"""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

SPAN = 64 << 20  # inflated bytes between two states that are kept; a state is about 45 KB
_STEP = 1 << 16  # compressed bytes taken at once: at most 64 MiB come out of them
_GZIP = 31  # zlib's word for a gzip header


class Inflated:
    """The inflated bytes of a gzip stream (one or several gzip members) that `read(start, stop)` gives."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, name: str) -> None:
        self._compressed, self._size, self._name = read, size, name
        self._lock = threading.Lock()
        self._states: list[tuple[int, int, Any]] = [(0, 0, zlib.decompressobj(_GZIP))]  # (out, in, inflater)
        self._restore(self._states[0])

    def read(self, start: int, stop: int) -> bytes:
        """Inflated bytes; fewer where the stream ends. Raises zlib.error, or EOFError where it is cut short."""
        with self._lock:
            if start < self._out - len(self._block) or (start > self._out + SPAN and self._states[-1][0] > self._out):
                place = bisect_right(self._states, start, key=lambda state: state[0]) - 1
                self._restore(self._states[place])
            pieces = []
            while True:
                begins = self._out - len(self._block)
                if start < self._out and begins < stop:
                    pieces.append(self._block[max(0, start - begins) : stop - begins])
                if self._out >= stop or not self._advance():
                    return b"".join(pieces)

    def _restore(self, state: tuple[int, int, Any]) -> None:
        self._out, self._in, inflater = state
        self._inflater = inflater.copy()
        self._block = b""

    def _advance(self) -> bool:
        """Inflates the next block; False at the stream's end."""
        if self._out - self._states[-1][0] >= SPAN:
            self._states.append((self._out, self._in, self._inflater.copy()))
        data = self._compressed(self._in, min(self._in + _STEP, self._size))
        if self._inflater.eof:
            if not data.strip(b"\0"):  # padding after the last member, if anything
                return False
            self._inflater = zlib.decompressobj(_GZIP)
        elif not data:
            raise EOFError(f"{self._name}: the gzip stream ends early: is its last part missing?")
        self._block = self._inflater.decompress(data)
        self._in += len(data) - len(self._inflater.unused_data)
        self._out += len(self._block)
        return True
