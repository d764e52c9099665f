"""What those who run the platform are told: alerts by webhook, and a run's figures for Prometheus."""

from kiwi.operations.announcing import announce, announce_change, close_and_announce

__all__ = ["announce", "announce_change", "close_and_announce"]
