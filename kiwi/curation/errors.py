"""The error of this layer."""

from __future__ import annotations

from kiwi.errors import KiwiError


class CurationError(KiwiError):
    """Curation cannot go on: a plan or an earlier stage is missing, or a part on disk does not fit."""
