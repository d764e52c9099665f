"""Opens a finished dataset: its manifest, its rows as a table, and its media at random.

rows = read_split(folder, "train")
clip = decode(open_media(folder, rows["src_video"][0]))
"""

from __future__ import annotations

import atexit
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from kiwi.dataset.manifest import ROWS, ManifestError, read_manifest
from kiwi.dataset.schema import TrainsAs
from kiwi.dataset.shards import ShardReader, split_address

__all__ = ["open_media", "read_manifest", "read_rows", "read_split"]

_OPEN_SHARDS = 64
_readers: OrderedDict[tuple[str, int, int], ShardReader] = OrderedDict()
_lock = threading.Lock()


@atexit.register
def _close() -> None:
    while _readers:
        _readers.popitem()[1].close()


def read_rows(folder: Path | str, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Every row in the dataset's order. Leave `ref_image_bytes` out of `columns` where images are not needed.

    Raises ManifestError if the folder is no dataset or a part of its rows is missing or broken.
    """
    folder = Path(folder)
    parts = [folder / str(entry["path"]) for entry in read_manifest(folder)["files"]]
    parts = [part for part in parts if part.suffix == ".parquet"]
    wanted = list(columns) if columns is not None else None
    try:
        return pl.concat([pl.read_parquet(part, columns=wanted) for part in parts])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ManifestError(f"{folder / ROWS}: {error}", "pull or rebuild the dataset") from error


def read_split(
    folder: Path | str, split: Literal["train", "benchmark"], columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """The rows of one split that are of use: `trains_as` is quadruplet or instruction, never nothing."""
    needed = None if columns is None else list(dict.fromkeys([*columns, "split", "trains_as"]))
    rows = read_rows(folder, needed).filter((pl.col("split") == split) & (pl.col("trains_as") != TrainsAs.NOTHING))
    return rows if columns is None else rows.select(list(columns))


def open_media(folder: Path | str, member: str) -> bytes:
    """The bytes of the clip at `media/media-00000.tar::NAME`, from any thread or forked process.

    Shards stay open (the 64 last used of a process), so reading many members costs one index each.

    Raises ShardError if shard or member are missing or cut short.
    """
    shard, name = split_address(member)
    return _reader(Path(folder) / shard).read(name)


def _reader(path: Path) -> ShardReader:
    try:
        known = path.stat()
    except OSError:
        return ShardReader(path)
    key = (str(path), known.st_mtime_ns, known.st_size)
    with _lock:
        if key not in _readers:
            _readers[key] = ShardReader(path)
        _readers.move_to_end(key)
        while len(_readers) > _OPEN_SHARDS:
            _readers.popitem(last=False)
        return _readers[key]
