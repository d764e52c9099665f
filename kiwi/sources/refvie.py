"""The released RefVIE: `refvie_477k/chunk_N.parquet` with its references inside, clips under `video/`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kiwi import storage
from kiwi.dataset.schema import EditPair, Reason
from kiwi.sources.adapter import PairMedia, SourceError, SourceFailure
from kiwi.sources.entries import pair_of, suffix_of
from kiwi.sources.folders import files_in, folders_in, require_folder
from kiwi.sources.media_files import contained, find_file
from kiwi.sources.origins import UNSPECIFIED_LICENSE, origin_of

SEPARATOR = "::"
_FOLDER = "refvie_477k"
_COLUMNS = ("iid", "prompt", "src_video", "tgt_video")
_REFERENCE = "ref_image_bytes"
_BATCH = 8192  # rows listed at once
_REFERENCES = 64  # rows whose references are held at once


@dataclass(frozen=True)
class RefVie:
    """Rows name their clips as `video/Ditto-1M/…`, `video/openve3m/…`, `video/reco_data/{source,target}/…`.

    Licence, source and kind of edit follow from that path. A row's `ref_image` is `refvie_477k/chunk_3.parquet::17`:
    the file and the row in it.
    """

    name: str = "refvie"
    title: str = "RefVIE as released, quadruplets with their references"
    license: str = "that of each row's source"
    layout: str = "refvie_477k/chunk_N.parquet: iid, prompt, src_video, tgt_video, ref_image_bytes; video/"

    def check(self, root: str) -> None:
        for path in self._listings(root):
            _require_columns(path)

    def entries(self, root: str) -> Iterator[EditPair]:
        folder = require_folder(root)
        position = 0
        for path in self._listings(root):
            listed = path.removeprefix(folder).lstrip("/")
            for number, (iid, prompt, source, target) in enumerate(_rows(path)):
                origin, kind = origin_of(target) if isinstance(target, str) else (None, origin_of("")[1])
                yield pair_of(
                    position,
                    iid or f"{listed}-{number:07d}",
                    source,
                    target,
                    prompt,
                    kind=kind,
                    source_dataset=f"RefVIE/{origin.dataset}" if origin else "RefVIE",
                    license=origin.license if origin else UNSPECIFIED_LICENSE,
                    reference=f"{listed}{SEPARATOR}{number}",
                )
                position += 1

    def open(self, root: str, pair: EditPair) -> PairMedia:
        root = root.rstrip("/")
        source = find_file(root, pair.src_video, Reason.SOURCE_MISSING, prefixes=("", "video"))
        target = find_file(root, pair.tgt_video, Reason.TARGET_MISSING, prefixes=("", "video"))
        reference = _reference(root, pair.ref_image)
        return PairMedia(source, target, reference, suffix_of(pair.src_video), suffix_of(pair.tgt_video))

    def _listings(self, root: str) -> list[str]:
        root = require_folder(root)
        folder = storage.join(root, _FOLDER) if _FOLDER in folders_in(root) else root
        names = [name for name in files_in(folder) if name.endswith(".parquet")]
        if not names:
            raise SourceError(f"{folder}: holds no chunk_N.parquet", f"fetch it; layout: {self.layout}")
        return [storage.join(folder, name) for name in names]


def _rows(path: str) -> Iterator[tuple[object, ...]]:
    _require_columns(path)
    with _parquet(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH, columns=list(_COLUMNS)):
            yield from zip(*(_values(batch.column(name)) for name in _COLUMNS), strict=True)


def _require_columns(path: str) -> None:
    with _parquet(path) as file:
        found = file.schema_arrow.names
    missing = [name for name in (*_COLUMNS, _REFERENCE) if name not in found]
    if missing:
        said = f"{path}: no column {', '.join(missing)} (found: {', '.join(found)[:200]})"
        raise SourceError(said, f"columns: {', '.join((*_COLUMNS, _REFERENCE))}")


def _values(column: Any) -> list[object]:
    """A column's values; text that is no UTF-8 keeps its bytes as lone surrogates, for `pair_of` to tell."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return list(column.to_pylist())
    plain = column.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in plain]


@contextmanager
def _parquet(path: str) -> Iterator[Any]:
    """An open Parquet file. Raises SourceError, naming it, for whatever is wrong with it as a whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open_read(path, ahead=1 << 20) as raw, pq.ParquetFile(raw, pre_buffer=False) as file:
            yield file
    except storage.StorageError as error:
        raise SourceError(error.message, error.remedy) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read as Parquet: {error}", "fetch the file again") from error


def _reference(root: str, listed: str) -> bytes:
    """The reference of one row. Raises SourceFailure where the row, the file or the picture is missing."""
    place, separator, row = listed.rpartition(SEPARATOR)
    if not separator or not row.isdigit():
        raise SourceFailure(Reason.REFERENCE_MISSING, f"{listed!r}: expected FILE{SEPARATOR}ROW")
    try:
        value = _references(storage.join(root, contained(root, place))).value(int(row))
    except SourceError as error:
        raise SourceFailure(Reason.REFERENCE_UNREADABLE, error.message) from error
    if isinstance(value, dict):  # an image column of the datasets library: {bytes, path}
        value = value.get("bytes")
    if value is None or value == b"":
        raise SourceFailure(Reason.REFERENCE_MISSING, f"{listed}: {_REFERENCE} is empty")
    if not isinstance(value, bytes):
        raise SourceFailure(Reason.REFERENCE_UNREADABLE, f"{listed}: {_REFERENCE} is {type(value).__name__}, not bytes")
    return value


@lru_cache(maxsize=4)
def _references(path: str) -> _References:
    return _References(path)


class _References:
    """The reference column of one file, read forward: rows asked in ascending order cost one pass over the file.

    Row groups may be gigabytes, so what is held is a few rows, not a group; a step back begins its group again.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with _parquet(path) as file:
            counts = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        self.starts = [sum(counts[:group]) for group in range(len(counts))]
        self.rows = sum(counts)
        self.begin = self.end = 0
        self.held: Any = None
        self.ahead: Iterator[Any] = iter(())
        self.group = -1
        self.lock = threading.Lock()

    def value(self, row: int) -> object:
        with self.lock:
            return self._value(row)

    def _value(self, row: int) -> object:
        if row >= self.rows:
            raise SourceFailure(Reason.REFERENCE_MISSING, f"{self.path}: has {self.rows} rows, asked for row {row}")
        group = max(index for index, start in enumerate(self.starts) if start <= row)
        if group != self.group or row < self.begin:
            self.ahead, self.group = self._batches(group), group
            self.begin = self.end = self.starts[group]
        while row >= self.end:
            batch = next(self.ahead, None)
            if batch is None:  # an earlier read of this group failed in it
                self.group = -1
                raise SourceFailure(Reason.REFERENCE_UNREADABLE, f"{self.path}: row {row} cannot be read")
            self.held = batch
            self.begin, self.end = self.end, self.end + len(self.held)
        found: object = self.held[row - self.begin].as_py()
        return found

    def _batches(self, group: int) -> Iterator[Any]:
        with _parquet(self.path) as file:
            for batch in file.iter_batches(batch_size=_REFERENCES, row_groups=[group], columns=[_REFERENCE]):
                yield batch.column(0)


REFVIE = RefVie()
