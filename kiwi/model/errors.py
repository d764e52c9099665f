"""What can be wrong with a model: its folder, its weights, its inputs."""

from __future__ import annotations

from kiwi.errors import KiwiError


class ModelError(KiwiError):
    """A model folder, a checkpoint or a model input that cannot be used."""
