"""What every layer's exceptions have in common: one line of what was wrong, and one of what to do."""

from __future__ import annotations


class KiwiError(Exception):
    """A failure that a person can act on.

    Args:
        message: what was wrong, with the offending path or value in it.
        remedy: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class UsageError(KiwiError):
    """The command or its configuration is wrong; nothing was started. Exit code 2."""

    exit_code = 2
