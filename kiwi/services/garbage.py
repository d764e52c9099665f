"""Keeps Python's full garbage collections short while requests are under way.

A full collection looks at every object that the imports made, and every thread stands still meanwhile: 0.11 to 0.2 s
with this package's own imports, once in some 500 requests. What was there before is therefore left out of them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def older_objects_left_out() -> Iterator[None]:
    """Collections within look only at what is made within. Afterwards all is as it was; where somebody has objects
    left out already, they stay so."""
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
