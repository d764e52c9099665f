"""How a source is divided into shards and chunks, and where each of their files lies.

A row's shard is its position modulo the number of shards, so that videos and images, which sources list one after the
other, are spread evenly. Nothing that is computed of a row depends on its shard. The source is listed once, into
Parquet; the shards read their rows from there.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kiwi import storage
from kiwi.configuration import RunConfiguration
from kiwi.curation.errors import CurationError
from kiwi.curation.keys import curation_key, score_decision_key, stage_keys
from kiwi.dataset.schema import EditPair, Reason, Task
from kiwi.sources.listing import iterate_pairs
from kiwi.tracking import TaskRun
from kiwi.workspace import Workspace, write_json

LISTED_ROWS = 65_536  # rows of a part of the listing
_LISTING = pa.schema(
    {
        "position": pa.int64(),
        "pair_id": pa.string(),
        "src_video": pa.string(),
        "tgt_video": pa.string(),
        "prompt": pa.string(),
        "edit_type": pa.string(),
        "task": pa.string(),
        "source_dataset": pa.string(),
        "license": pa.string(),
        "ref_image": pa.string(),
        "media": pa.string(),
        "needs_reference": pa.bool_(),
        "collection": pa.int64(),
        "problem": pa.string(),
        "problem_detail": pa.string(),
    }
)


@dataclass(frozen=True)
class Plan:
    """Which rows lie where. `root` is the folder or address of all curation, `pairs` the rows in all."""

    root: str
    pairs: int
    shards: int
    chunk_rows: int
    keys: dict[str, str]
    final_key: str
    score_key: str

    def positions(self, shard: int) -> range:
        if not 0 <= shard < self.shards:
            raise CurationError(f"there is no shard {shard}", f"the plan has shards 0 to {self.shards - 1}")
        return range(shard, self.pairs, self.shards)

    def chunks(self, shard: int) -> list[range]:
        """Positions of each chunk of a shard."""
        positions = self.positions(shard)
        return [positions[start : start + self.chunk_rows] for start in range(0, len(positions), self.chunk_rows)]

    def shard_name(self, shard: int) -> str:
        return f"{shard:05d}-of-{self.shards:05d}-by-{self.chunk_rows}"

    def stage_folder(self, stage: str, shard: int) -> str:
        return storage.join(self.root, "stages", f"{stage}-{self.keys[stage]}", self.shard_name(shard))

    def part(self, stage: str, shard: int, chunk: int) -> str:
        return storage.join(self.stage_folder(stage, shard), f"part-{chunk:05d}.parquet")

    def books(self, stage: str, shard: int) -> str:
        """A stage's books; those of the scores are kept for each set of thresholds."""
        name = f"books-{self.score_key}.json" if stage == "score" else "books.json"
        return storage.join(self.stage_folder(stage, shard), name)

    def media(self, shard: int, chunk: int) -> str:
        """The chunk's media, relative to `root`."""
        return f"stages/ingest-{self.keys['ingest']}/{self.shard_name(shard)}/media-{chunk:05d}.tar"

    @property
    def listing(self) -> str:
        return storage.join(self.root, "listings", self.keys["ingest"])

    @property
    def deduplicated(self) -> str:
        """The final rows of all stages, sorted by position."""
        return storage.join(self.root, self.final_key, "deduplicated")


def curation_root(configuration: RunConfiguration) -> str:
    """Where curation keeps its parts: the configuration's store, else the work folder."""
    return configuration.store or str(Workspace.of(configuration).root / "curation")


def plan_shards(configuration: RunConfiguration, task: TaskRun) -> list[int]:
    """Lists the source into Parquet, writes plan.json, and returns the shard numbers for the fan-out.

    A source that was planned already is listed again and compared, unless its listing's hash is in the configuration.

    Raises:
        SourceError: the source cannot be listed.
        CurationError: it lists no pairs, or others than when it was planned.
    """
    folder = storage.join(curation_root(configuration), "listings", stage_keys(configuration)["ingest"])
    known = _planned(folder)
    if known is None or (configuration.source.kind == "collections" and known != _listed(configuration, None, task)):
        if known is not None:
            raise CurationError(
                "the source lists other pairs than when it was planned", f"delete {folder} to curate it anew"
            )
        known = _listed(configuration, folder, task)
        write_json(storage.join(folder, "plan.json"), known)
    pairs = int(known["pairs"])
    shards = min(configuration.curation.shards, pairs)
    task.params({"pairs": pairs, "shards": shards, "chunk_rows": configuration.curation.chunk_rows})
    return list(range(shards))


def read_plan(configuration: RunConfiguration) -> Plan:
    """What plan_shards wrote. Raises CurationError where nothing was planned."""
    root, keys = curation_root(configuration), stage_keys(configuration)
    folder = storage.join(root, "listings", keys["ingest"])
    known = _planned(folder)
    if known is None:
        raise CurationError(f"{folder}: nothing was planned", "run the plan-shards task first")
    pairs, settings = int(known["pairs"]), configuration.curation
    final, score = curation_key(configuration), score_decision_key(configuration)
    return Plan(root, pairs, min(settings.shards, pairs), settings.chunk_rows, keys, final, score)


class Listing:
    """The listed pairs by position. The part that was read last is held, since the next chunk mostly lies in it too."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._repeated = _repetitions(plan)
        self._held: tuple[int, pa.Table] | None = None

    def pairs(self, positions: range) -> list[EditPair]:
        """The pairs at these positions. Raises StorageError where a part of the listing is missing."""
        found: list[EditPair] = []
        for number in range(positions[0] // LISTED_ROWS, positions[-1] // LISTED_ROWS + 1):
            start = number * LISTED_ROWS
            places = [place - start for place in positions if start <= place < start + LISTED_ROWS]
            found += [_pair(row) for row in self._part(number).take(pa.array(places)).to_pylist()]
        return [_repeating(pair, self._repeated) if pair.position in self._repeated else pair for pair in found]

    def _part(self, number: int) -> pa.Table:
        if self._held is None or self._held[0] != number:
            with storage.open_read(storage.join(self._plan.listing, f"pairs-{number:05d}.parquet")) as file:
                self._held = number, pq.read_table(file)
        return self._held[1]


def read_document(path: str) -> Any:
    """Raises StorageError where it is missing, CurationError where it is no JSON."""
    try:
        return json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise CurationError(f"{path}: {error}", "delete it; the next run makes it again") from error


def _planned(folder: str) -> dict[str, Any] | None:
    path = storage.join(folder, "plan.json")
    if not storage.exists(path):
        return None
    known: dict[str, Any] = read_document(path)
    return known


def _listed(configuration: RunConfiguration, folder: str | None, task: TaskRun) -> dict[str, Any]:
    """Goes through the source once; writes its rows where a `folder` is given."""
    counted, names, whole = 0, _Names(), hashlib.sha256()
    for number, portion in enumerate(_portions(iterate_pairs(configuration.source))):
        data = _parquet(portion)
        whole.update(hashlib.sha256(data).digest())
        names.add(portion)
        counted += len(portion)
        task.progress(counted, counted + 1, "pairs", "listing")
        if folder is not None:
            storage.write_bytes(storage.join(folder, f"pairs-{number:05d}.parquet"), data)
    if counted == 0:
        raise CurationError("the source lists no pairs", "give --pairs a CSV with rows, or ask for procedural samples")
    repeated = names.repetitions()
    if folder is not None and repeated:
        write_json(storage.join(folder, "repeated.json"), repeated)
    task.progress(counted, counted, "pairs")
    rule = "position modulo shards"
    return {"pairs": counted, "repeated_ids": len(repeated), "sha256": whole.hexdigest(), "rule": rule}


def _portions(pairs: Iterator[EditPair]) -> Iterator[list[EditPair]]:
    while portion := list(islice(pairs, LISTED_ROWS)):
        yield portion


class _Names:
    """Ids that come twice, found with eight bytes a row."""

    def __init__(self) -> None:
        self._hashes: list[NDArray[np.uint64]] = []

    def add(self, pairs: Iterable[EditPair]) -> None:
        said = (f"{pair.collection}\0{pair.source_dataset}\0{pair.pair_id}".encode() for pair in pairs)
        hashes = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in said)
        self._hashes.append(np.frombuffer(hashes, np.uint64))

    def repetitions(self) -> dict[str, int]:
        """Position -> the earlier position of the same id."""
        every = np.concatenate(self._hashes) if self._hashes else np.zeros(0, np.uint64)
        _, first, inverse = np.unique(every, return_index=True, return_inverse=True)
        earlier = first[inverse]
        later = np.flatnonzero(earlier != np.arange(len(every)))
        return {str(int(place)): int(earlier[place]) for place in later}


def _parquet(pairs: Sequence[EditPair]) -> bytes:
    columns: dict[str, list[Any]] = {name: [] for name in _LISTING.names}
    for pair in pairs:
        for name, value in asdict(pair).items():
            columns[name].append(value)
    arrays = [pa.array(columns[field.name], field.type) for field in _LISTING]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=_LISTING), buffer, compression="zstd")
    return buffer.getvalue()


def _pair(row: dict[str, Any]) -> EditPair:
    row["task"] = Task(row["task"])
    row["problem"] = None if row["problem"] is None else Reason(row["problem"])
    return EditPair(**row)


def _repetitions(plan: Plan) -> dict[int, int]:
    path = storage.join(plan.listing, "repeated.json")
    if not storage.exists(path):
        return {}
    return {int(position): earlier for position, earlier in read_document(path).items()}


def _repeating(pair: EditPair, repeated: dict[int, int]) -> EditPair:
    detail = f"the id {pair.pair_id!r} is that of row {repeated[pair.position]} of the same source"
    return EditPair(**{**asdict(pair), "problem": Reason.DUPLICATE_ID, "problem_detail": detail})
