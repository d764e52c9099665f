"""The pages people look at: a run's report and its dataset's page, readable from a folder without a network."""

from kiwi.reports.page import ONE_FILE, write_report

__all__ = ["ONE_FILE", "write_report"]
