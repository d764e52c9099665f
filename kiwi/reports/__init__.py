"""The pages people look at: a run's report and its dataset's page, readable from a folder without a network."""

from kiwi.reports.page import write_report

__all__ = ["write_report"]
