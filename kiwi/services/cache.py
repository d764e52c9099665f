"""Kept replies: raw completions by the hash of what was asked, so that nothing is asked twice.

On this machine they lie in one SQLite file of the folder given, which several processes may share. On an address such
as s3:// they lie in segments, compressed files of some hundred replies each that are written once: few objects, and no
two writers ever touch the same one. A task reads the segments of its namespace when it starts, into a temporary SQLite
file, and from then on works as on a local folder.

Whatever cannot be read is a miss: the question is asked again.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import sqlite3
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from kiwi import storage
from kiwi.services.errors import ServiceError
from kiwi.services.wire import Completion

SEGMENT = 1000  # replies
FILES = 100
BUSY_SECONDS = 60.0
_CREATE = "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, completion TEXT NOT NULL) WITHOUT ROWID"
_log = logging.getLogger(__name__)


class ReplyCache:
    """Completions by key, in a folder or at an address. Safe for threads and for processes.

    Args:
        place: a local folder, or an address that kiwi.storage takes.
        namespace: the folder under an address whose segments are read; unused on a local folder, since one SQLite file
            serves any number of questions.
    """

    def __init__(self, place: str, namespace: str) -> None:
        self._lock = threading.Lock()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._segments = ""
        self._fresh: dict[str, str] = {}
        if storage.is_remote(place):
            self._temporary = tempfile.TemporaryDirectory(prefix="kiwi-replies-")
            self._segments = storage.join(place, namespace)
            self._database = _Database(Path(self._temporary.name))
            for rows in _read_segments(self._segments):
                self._database.put(rows)
        else:
            self._database = _Database(storage.local(place))

    def get(self, key: str) -> Completion | None:
        """The completion kept under `key`; None where there is none that can be read."""
        with self._lock:
            text = self._database.get(key)
        return Completion.load(text) if text is not None else None

    def put(self, key: str, completion: Completion) -> None:
        """Keeps a completion; the last one put stays. Raises ServiceError where there is no room to write."""
        text = completion.dump()
        full: dict[str, str] = {}
        with self._lock:
            self._database.put([(key, text)])
            if self._segments:
                self._fresh[key] = text
            if len(self._fresh) >= SEGMENT:  # within the lock, so that one thread alone finds it full
                full, self._fresh = self._fresh, {}
        self._write(full)

    def flush(self) -> None:
        """Writes what is not at its address yet, as one segment. A local folder has nothing left to write."""
        with self._lock:
            fresh, self._fresh = self._fresh, {}
        self._write(fresh)

    def _write(self, fresh: dict[str, str]) -> None:
        if not fresh:
            return
        try:
            data = gzip.compress("".join(json.dumps(row) + "\n" for row in fresh.items()).encode(), 6, mtime=0)
            name = hashlib.sha256(data).hexdigest()[:24]
            storage.write_bytes(storage.join(self._segments, f"{name}.jsonl.gz"), data)
        except BaseException:
            with self._lock:
                self._fresh = fresh | self._fresh
            raise

    def close(self) -> None:
        """Flushes and lets the files go."""
        self.flush()
        with self._lock:
            self._database.close()
        if self._temporary is not None:
            self._temporary.cleanup()


class _Database:
    """replies.sqlite of a folder, or the first sound one of replies-1.sqlite, replies-2.sqlite, …

    A damaged file is left where it is and the next name is used, by every process alike: moving it away would pull it
    from under another one that has just made it anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = -1
        self._connection = self._next()

    def get(self, key: str) -> str | None:
        try:
            row = self._connection.execute("SELECT completion FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            self._failed(error)
            return None
        return row[0] if row is not None and isinstance(row[0], str) else None

    def put(self, rows: Sequence[tuple[str, str]]) -> None:
        for _ in range(2):
            try:
                with self._connection as transaction:
                    transaction.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", rows)
                return
            except sqlite3.DatabaseError as error:
                self._failed(error)

    def close(self) -> None:
        self._connection.close()

    def _failed(self, error: sqlite3.DatabaseError) -> None:
        """A damaged file is left behind; a full disk, or a folder that may not be written, is the machine's fault."""
        path = self._path()
        if isinstance(error, sqlite3.OperationalError):
            raise self._no_room(error) from error
        _log.warning("%s is damaged (%s): its replies are asked anew", path, error)
        self._connection.close()
        self._connection = self._next()

    def _next(self) -> sqlite3.Connection:
        while self._number < FILES:
            self._number += 1
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                return _opened(self._path())
            except (sqlite3.OperationalError, OSError) as error:
                raise self._no_room(error) from error
            except sqlite3.DatabaseError as error:
                _log.warning("%s is damaged (%s): it is left where it is", self._path(), error)
        raise ServiceError(f"{self._folder}: {FILES} damaged reply caches", "delete the folder: it only saves requests")

    def _path(self) -> Path:
        return self._folder / (f"replies-{self._number}.sqlite" if self._number else "replies.sqlite")

    def _no_room(self, error: Exception) -> ServiceError:
        remedy = "free space, check rights, or set curation.service.cache=false"
        return ServiceError(f"{self._path()}: replies cannot be kept ({error})", remedy)


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last replies, never the file
        connection.execute(_CREATE)
        connection.execute("SELECT completion FROM replies WHERE key = ''").fetchone()
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection


def _read_segments(folder: str) -> Iterator[list[tuple[str, str]]]:
    """The rows of each segment of a folder."""
    for name in storage.list_files(folder):
        if not name.endswith(".jsonl.gz"):
            continue
        data = storage.read_bytes(storage.join(folder, name))
        try:
            lines = gzip.decompress(data).decode().splitlines()
        except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
            _log.warning("%s/%s is damaged (%s): its replies are asked anew", folder, name, error)
            continue
        yield [row for line in lines if (row := _row(line)) is not None]


def _row(line: str) -> tuple[str, str] | None:
    try:
        key, text = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (key, text) if isinstance(key, str) and isinstance(text, str) else None
