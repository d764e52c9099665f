"""What can go wrong in training."""

from __future__ import annotations

from kiwi.errors import KiwiError


class TrainingError(KiwiError):
    """Training cannot start, or must stop."""
