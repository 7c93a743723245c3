"""Gathering records."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molkv_runtime import Bundle, ExpertStore


@pytest.fixture
def store(bundles: Callable[..., Path]) -> ExpertStore:
    return ExpertStore(Bundle(bundles("molkv", "float16")))


def test_records_come_in_the_order_of_the_ids_with_repeats(store: ExpertStore) -> None:
    ids = np.array([40, 3, 40, 96, 0, 3])
    records = store.gather(ids)
    assert len(records) == 6
    for record, token in zip(records, ids, strict=True):
        assert record["checksum"] == store.gather(np.array([token]))["checksum"][0]
    assert len(set(records["checksum"].tolist())) == 4


def test_each_distinct_id_is_read_once(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets: list[int] = []
    original: Any = os.preadv

    def counting(fd: int, buffers: Any, offset: int) -> int:
        offsets.append(offset)
        return int(original(fd, buffers, offset))

    monkeypatch.setattr(os, "preadv", counting)
    store.gather(np.array([9, 2, 9, 9, 2, 30]))
    assert len(offsets) == 3
    assert offsets == sorted(offsets)


def test_short_reads_are_continued(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = store.gather(np.array([5, 6]))
    original: Any = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: original(fd, [buffers[0][:100]], offset))
    assert np.array_equal(store.gather(np.array([5, 6]))["checksum"], whole["checksum"])


def test_no_ids_give_no_records(store: ExpertStore) -> None:
    assert len(store.gather(np.array([], np.int64))) == 0
