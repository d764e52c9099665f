"""What those who run the platform are told about a run: alerts by webhook, and figures for Prometheus."""

from kiwi.operations.announcing import announce, close_and_announce

__all__ = ["announce", "close_and_announce"]
