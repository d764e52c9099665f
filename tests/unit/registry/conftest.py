"""The webhook's other side, as the tests of operations have it."""

from tests.unit.operations.conftest import receiver

__all__ = ["receiver"]
