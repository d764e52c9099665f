"""How a source is divided into shards and chunks, and where each of their files lies.

A row's shard is its position modulo the number of shards, so that videos and images, which sources list one after the
other, are spread evenly. Nothing that is computed of a row depends on its shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi.configuration import RunConfiguration
from kiwi.errors import KiwiError
from kiwi.sources.listing import list_pairs
from kiwi.tracking import TaskRun
from kiwi.workspace import Workspace, curation_key, read_json, write_json


class CurationError(KiwiError):
    """Curation cannot go on: a plan or an earlier stage is missing, or a part on disk does not fit."""


@dataclass(frozen=True)
class Plan:
    """Which rows lie where. `root` is the folder of this curation, `pairs` the rows in all."""

    root: Path
    pairs: int
    shards: int
    chunk_rows: int

    def positions(self, shard: int) -> range:
        if not 0 <= shard < self.shards:
            raise CurationError(f"there is no shard {shard}", f"the plan has shards 0 to {self.shards - 1}")
        return range(shard, self.pairs, self.shards)

    def chunks(self, shard: int) -> list[range]:
        """Positions of each chunk of a shard."""
        positions = self.positions(shard)
        return [positions[start : start + self.chunk_rows] for start in range(0, len(positions), self.chunk_rows)]

    def shard_name(self, shard: int) -> str:
        return f"shards/{shard:05d}-of-{self.shards:05d}"

    def part(self, stage: str, shard: int, chunk: int) -> Path:
        return self.root / self.shard_name(shard) / stage / f"part-{chunk:05d}.parquet"

    def books(self, stage: str, shard: int) -> Path:
        return self.root / self.shard_name(shard) / stage / "books.json"

    def media(self, shard: int, chunk: int) -> str:
        """The chunk's media, relative to `root`."""
        return f"{self.shard_name(shard)}/media/media-{chunk:05d}.tar"

    @property
    def deduplicated(self) -> Path:
        """The final rows of all stages, sorted by position."""
        return self.root / "deduplicated"


def plan_shards(configuration: RunConfiguration, task: TaskRun) -> list[int]:
    """Lists the source, writes plan.json, and returns the shard numbers for the fan-out.

    Raises:
        SourceError: the source cannot be listed.
        CurationError: it lists no pairs.
    """
    pairs = len(list_pairs(configuration.source))
    if pairs == 0:
        raise CurationError("the source lists no pairs", "give --pairs a CSV with rows, or ask for procedural samples")
    shards = min(configuration.curation.shards, pairs)
    said: dict[str, Any] = {"pairs": pairs, "shards": shards, "rule": "position modulo shards"}
    write_json(_plan_file(configuration), said)
    task.params({"pairs": pairs, "shards": shards, "chunk_rows": configuration.curation.chunk_rows})
    return list(range(shards))


def read_plan(configuration: RunConfiguration) -> Plan:
    """What plan_shards wrote. Raises CurationError where nothing was planned."""
    path = _plan_file(configuration)
    if not path.exists():
        raise CurationError(f"{path}: nothing was planned", "run the plan-shards task first")
    pairs = int(read_json(path)["pairs"])
    shards = min(configuration.curation.shards, pairs)
    return Plan(path.parent, pairs, shards, configuration.curation.chunk_rows)


def _plan_file(configuration: RunConfiguration) -> Path:
    return Workspace.of(configuration).curation(curation_key(configuration)) / "plan.json"
