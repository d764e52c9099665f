"""Scores that others published (tables 2 and 3 of the paper), as data with their source."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kiwi.benchmark.averages import equal_weight, sample_weighted
from kiwi.errors import UsageError

FILE = Path(__file__).with_name("published.yaml")


class _Read(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Read):
    """A criterion or a category: our name, and the table's heading."""

    name: str
    title: str


class PublishedRow(_Read):
    """One model. `scores` follow the table's columns; `overall` is as printed, to two places."""

    model: str
    scores: tuple[float, ...]
    overall: float
    about: str = ""


class PublishedTable(_Read):
    """One table of a publication. `samples` by column, where the publication says so."""

    name: str
    title: str
    source: str
    judge: str
    scale: str
    columns: tuple[Column, ...]
    samples: dict[str, int]
    rows: tuple[PublishedRow, ...]

    def scores_of(self, row: PublishedRow) -> dict[str, float]:
        return dict(zip((column.name for column in self.columns), row.scores, strict=True))

    def overall_of(self, row: PublishedRow) -> float:
        """The overall that our own formula makes of the row: columns with equal weight, not rounded."""
        return equal_weight(self.scores_of(row).values())

    def sample_weighted_of(self, row: PublishedRow) -> float | None:
        """The overall with the weight of each column's samples; None where the publication does not count them."""
        return sample_weighted(self.scores_of(row), self.samples) if self.samples else None


@cache
def published_tables() -> dict[str, PublishedTable]:
    """All of them, by name."""
    import yaml

    tables = [PublishedTable.model_validate(each) for each in yaml.safe_load(FILE.read_text(encoding="utf-8"))]
    return {table.name: table for table in tables}


def published_table(name: str) -> PublishedTable:
    """The table of a benchmark. Raises UsageError where nothing is published of it."""
    tables = published_tables()
    if name not in tables:
        raise UsageError(f"no published scores of {name!r}", f"there are some of {', '.join(tables)}")
    return tables[name]
