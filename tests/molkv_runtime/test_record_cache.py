"""The cache of downloaded records: which it keeps, for several processes, and what happens on a bad disk."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from molkv_runtime.record_cache import RecordCache


def _records(rows: Iterable[int], size: int = 100) -> dict[int, memoryview]:
    return {row: memoryview(bytes([row % 256]) * size) for row in rows}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "records.sqlite"


def test_records_are_kept_for_the_next_process(path: Path) -> None:
    first = RecordCache(path, 10)
    first.put(_records([1, 2]))
    first.close()
    again = RecordCache(path, 10)
    assert again.get([2, 3, 1]) == _records([1, 2])
    again.close()


def test_the_records_that_were_not_used_for_the_longest_time_are_given_up(path: Path) -> None:
    cache = RecordCache(path, 4)
    for row in range(4):
        cache.put(_records([row]))
    cache.get([0])
    cache.close()  # writes the use
    cache = RecordCache(path, 4)
    cache.put(_records([8, 9]))
    assert set(cache.get(range(10))) == {0, 3, 8, 9}
    cache.put(_records(range(20, 30)))
    assert len(cache.get(range(30))) == 4
    cache.close()


def test_a_cache_without_room_keeps_nothing(path: Path) -> None:
    cache = RecordCache(path, 0)
    cache.put(_records([1]))
    assert cache.get([1]) == {}
    cache.close()


def test_several_owners_may_write_at_the_same_time(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def own(number: int) -> None:
        cache = RecordCache(path, 1000)
        for row in range(20):
            cache.put(_records([row * 10 + number, row * 10]))
            cache.get(range(row))
        cache.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(own, range(4)))
    cache = RecordCache(path, 1000)
    wanted = [row * 10 + number for row in range(20) for number in range(4)]
    assert cache.get(wanted) == _records(wanted)
    cache.close()
    assert caplog.text == ""


def test_a_file_that_is_no_database_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database " * 100)
    cache = RecordCache(path, 10)
    cache.put(_records([1]))
    cache.close()
    again = RecordCache(path, 10)
    assert again.get([1]) == _records([1])
    again.close()


def test_a_disk_that_cannot_be_written_is_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.write_text("a file instead of a folder")
    cache = RecordCache(path, 10)
    assert "records.sqlite: downloaded records are kept only in RAM" in caplog.text
    cache.put(_records([1]))
    assert cache.get([1]) == _records([1])
    cache.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_database_that_another_process_has_locked_is_not_removed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = RecordCache(path, 10), RecordCache(path, 10)
    first.put(_records([1]))
    before = time.monotonic()
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        second.put(_records([2]))
        assert time.monotonic() - before < 3  # seconds
        assert second.get([1]) == {}
        other.rollback()
    second.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: downloaded records are not kept (database is locked)"
    ]
    first.put(_records([3]))
    first.close()
    again = RecordCache(path, 10)
    assert again.get([1, 2, 3]) == _records([1, 3])
    again.close()


def test_a_database_that_fails_later_is_given_up_with_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = RecordCache(path, 10)
    cache.put(_records([1]))
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE records")
    database.close()
    assert cache.get([1]) == {}
    cache.put(_records([2]))
    assert cache.get([2]) == {}
    assert len(caplog.records) == 1
    cache.close()
    again = RecordCache(path, 10)
    again.put(_records([3]))
    assert again.get([3]) == _records([3])
    again.close()


def test_a_damaged_database_is_replaced_by_the_next_process(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = RecordCache(path, 100)
    first.put(_records(range(100), size=1000))
    first.close()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff" * (len(data) // 2))
    damaged = RecordCache(path, 100)
    assert len(damaged.get(range(100))) < 100
    damaged.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: downloaded records cannot be read (database disk image is malformed)"
    ]
    again = RecordCache(path, 100)
    assert again.get(range(100)) == {}
    again.put(_records([3]))
    assert again.get([3]) == _records([3])
    again.close()
    assert len(caplog.records) == 1
