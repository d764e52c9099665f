"""What can be wrong with a request to edit."""

from __future__ import annotations

from kiwi.errors import KiwiError


class EditError(KiwiError):
    """An input that the editor cannot take."""
