"""What this layer raises where a service, and not the sample, is at fault."""

from __future__ import annotations

from kiwi.errors import KiwiError


class ServiceError(KiwiError):
    """A model server that cannot be used: away, locked, without the model, or answering nonsense. The task fails, and
    when it is tried again it resumes from the replies that are kept."""
