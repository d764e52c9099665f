"""What is installed, reachable, let in, and missing: each with its remedy (`kiwi doctor`)."""

from kiwi.doctor.checks import Check, State, examine, healthy

__all__ = ["Check", "State", "examine", "healthy"]
