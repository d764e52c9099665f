"""What can be wrong with a request to edit."""

from __future__ import annotations

from typing import Literal

from kiwi.errors import KiwiError

EditReason = Literal["bad_request", "bad_output", "no_image", "out_of_memory"]


class EditError(KiwiError):
    """An input that the editor cannot take, or a result that cannot be made or written. `reason` names the kind."""

    def __init__(self, message: str, remedy: str = "", reason: EditReason = "bad_request") -> None:
        super().__init__(message, remedy)
        self.reason: EditReason = reason
