"""Records of a remote store that are kept on the disk, in a database of SQLite.

Several processes may use a database at the same time. The reader checks each record, so a damaged database only means
that records are downloaded again.
"""

from __future__ import annotations

import logging
import sqlite3
import time
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

_MEMORY = ":memory:"
_USES_AT_ONCE = 256  # uses of records are written together, since a write takes longer than a read
_TIMEOUT = 1  # seconds that a token may wait for another process that writes
_LOG = logging.getLogger(__name__)


class RecordCache:
    """The records that were used last, by row. Only one thread at a time may use the cache.

    If the disk cannot be read or written, the records are kept in RAM, or not at all; this is a warning, not an error.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        """Open the database, which is made if there is none.

        Args:
            path: The file of the database.
            capacity: The largest number of records.
        """
        self._path, self._capacity = path, capacity
        self._uses: dict[int, int] = {}  # times of uses that are not written yet, by row
        self._is_usable = capacity > 0
        try:
            self._database = _opened(path)
        except (sqlite3.Error, OSError) as error:
            _LOG.warning("%s: downloaded records are kept only in RAM (%s)", path, error)
            self._database = _opened(_MEMORY)
        self._closer = weakref.finalize(self, _close, self._database, self._uses)

    def get(self, rows: Iterable[int]) -> dict[int, memoryview]:
        """Return the records of those rows that the cache has, as they were stored, perhaps damaged."""
        found: dict[int, memoryview] = {}
        if not self._is_usable:
            return found
        try:
            for row in rows:
                if record := self._database.execute("SELECT record FROM records WHERE row = ?", (row,)).fetchone():
                    found[row] = memoryview(record[0])
        except sqlite3.Error as error:  # the other records are downloaded
            self._stop("cannot be read", error)
        self._uses |= dict.fromkeys(found, time.time_ns())
        if len(self._uses) >= _USES_AT_ONCE:
            self.put({})
        return found

    def put(self, records: Mapping[int, memoryview]) -> None:
        """Keep records. If the cache is full, it gives up the records that were not used for the longest time."""
        if not self._is_usable:
            return
        try:
            with self._database:  # one transaction
                _write_uses(self._database, self._uses)
                now = time.time_ns()
                self._database.executemany("REPLACE INTO records VALUES (?, ?)", records.items())
                self._database.executemany("REPLACE INTO uses VALUES (?, ?)", [(row, now) for row in records])
                (count,) = self._database.execute("SELECT count(*) FROM uses").fetchone()
                if (excess := count - self._capacity) > 0:
                    oldest = "(SELECT row FROM uses ORDER BY time LIMIT ?)"
                    self._database.execute(f"DELETE FROM records WHERE row IN {oldest}", (excess,))
                    self._database.execute(f"DELETE FROM uses WHERE row IN {oldest}", (excess,))
        except sqlite3.Error as error:
            self._stop("are not kept", error)

    def close(self) -> None:
        """Close the database. It is also closed when this object is garbage-collected."""
        self._closer()

    def _stop(self, problem: str, error: sqlite3.Error) -> None:
        """Go on without a cache. If the database is damaged, the next process begins a new one."""
        _LOG.warning("%s: downloaded records %s (%s)", self._path, problem, error)
        self._is_usable = False
        self._uses.clear()
        if isinstance(error, sqlite3.OperationalError):
            return  # it is locked, or the disk is full: other processes go on using it
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def _opened(path: Path | str) -> sqlite3.Connection:
    if isinstance(path, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=_TIMEOUT, check_same_thread=False)
    try:
        database.executescript(
            """
            PRAGMA journal_mode = WAL;
            PRAGMA synchronous = NORMAL;
            CREATE TABLE IF NOT EXISTS records (row INTEGER PRIMARY KEY, record BLOB NOT NULL);
            CREATE TABLE IF NOT EXISTS uses (row INTEGER PRIMARY KEY, time INTEGER NOT NULL);
            CREATE INDEX IF NOT EXISTS by_time ON uses (time);
            """
        )
    except sqlite3.DatabaseError as error:
        database.close()
        if isinstance(path, str) or isinstance(error, sqlite3.OperationalError):
            raise
        path.unlink()  # not a database, or a damaged one
        return _opened(path)
    return database


def _write_uses(database: sqlite3.Connection, uses: dict[int, int]) -> None:
    database.executemany("UPDATE uses SET time = ? WHERE row = ?", [(at, row) for row, at in uses.items()])
    uses.clear()


def _close(database: sqlite3.Connection, uses: dict[int, int]) -> None:
    try:
        with database:
            _write_uses(database, uses)
    except sqlite3.Error:  # the order of the records is then a little older
        pass
    database.close()
