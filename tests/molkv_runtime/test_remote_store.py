"""Records of remote bundles: the same as those of the local bundle, fetched once, and kept for later processes."""

from __future__ import annotations

import pickle
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from molkv_bundle import ArgumentError, Bundle, BundleError, RemoteFolder, RequestError, cache_folder
from molkv_runtime import ExpertStore, Generator, Sampling, open_store, selftest
from molkv_runtime.remote_store import Counts, RemoteStore
from tests.hub_server import Hub, Request
from tests.remote_servers import contents

URL = "hf://me/model"


@pytest.fixture
def published(hub: Hub, bundles: Callable[..., Path]) -> Hub:
    """A Hub with a bundle of 97 records, in two shards."""
    hub.put("me/model", contents(_local(bundles)))
    return hub


def _local(bundles: Callable[..., Path]) -> Path:
    return bundles("molkv", "float16", shard_size=80_000)


@pytest.fixture
def stores(published: Hub) -> Iterator[Callable[..., RemoteStore]]:
    """Return a function that opens the store, as a new process would."""
    assert published.repos
    opened: list[RemoteStore] = []

    def store(**options: int) -> RemoteStore:
        opened.append(RemoteStore(Bundle(URL), **options))
        return opened[-1]

    yield store
    for each in opened:
        each.close()


def _requests(hub: Hub) -> list[Request]:
    """Return the requests for records since the last call."""
    found = hub.requests(r"GET /me/model/resolve/.*/experts-")
    hub.log.clear()
    return found


def test_records_are_those_of_the_local_bundle(
    stores: Callable[..., RemoteStore], bundles: Callable[..., Path]
) -> None:
    assert len(Bundle(_local(bundles)).manifest.experts.shards) > 1
    remote, ids = stores(), np.random.default_rng(0).integers(0, 97, 300)
    with ExpertStore(Bundle(_local(bundles))) as local:
        for some in (ids[:1], ids[:2], ids, np.arange(97)):
            np.testing.assert_array_equal(remote.gather(some), local.gather(some))
            out = remote.buffer(400)
            started = remote.start_gather(some, out)
            started.wait()
            assert started.result().base is not None
            np.testing.assert_array_equal(out[: len(some)], local.gather(some))
        assert (remote.vocab_size, remote.value_dtype) == (local.vocab_size, local.value_dtype)


def test_each_record_is_fetched_once_and_neighbours_together(
    stores: Callable[..., RemoteStore], published: Hub
) -> None:
    store = stores()
    table = Bundle(URL).manifest.experts
    stride, first = table.stride, table.shards[0]
    _requests(published)
    store.gather(np.array([5, 3, 4, 4, 9]))
    start = first.data_offset + 3 * stride
    assert sorted(request.range for request in _requests(published)) == sorted(
        [f"bytes={start}-{start + 3 * stride - 1}", f"bytes={start + 6 * stride}-{start + 7 * stride - 1}"]
    )
    assert store.counts == Counts(hits=0, misses=4, requests=2, received=4 * stride)
    store.gather(np.array([4, 9, 9]))
    assert _requests(published) == []
    assert store.counts == Counts(hits=2, misses=4, requests=2, received=4 * stride)
    store.gather(np.arange(97))
    rows = sum(_rows(request, stride) for request in _requests(published))
    assert rows == 97 - 4
    assert store.counts.misses == 97


def _rows(request: Request, stride: int) -> int:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.range)
    assert found is not None
    return (int(found[2]) + 1 - int(found[1])) // stride


def test_the_next_process_asks_for_no_record_that_is_kept(stores: Callable[..., RemoteStore], published: Hub) -> None:
    expected = stores().gather(np.arange(50))
    _requests(published)
    later = stores()
    np.testing.assert_array_equal(later.gather(np.arange(50)), expected)
    assert _requests(published) == []
    assert later.counts == Counts(hits=50)


def test_two_threads_fetch_a_record_once(stores: Callable[..., RemoteStore], published: Hub) -> None:
    store = stores()
    published.delay = 0.05
    barrier = threading.Barrier(8)

    def gather(_: int) -> bytes:
        barrier.wait()
        return store.gather(np.arange(10, 20)).tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(gather, range(8)))) == 1
    assert sum(_rows(request, store.record_dtype.itemsize) for request in _requests(published)) == 10


def test_a_store_keeps_the_records_that_were_used_last(stores: Callable[..., RemoteStore], published: Hub) -> None:
    room = 10 * Bundle(URL).manifest.experts.stride
    store = stores(cache_bytes=room)
    store.gather(np.arange(10))
    store.gather(np.array([0, 1]))
    store.gather(np.array([50, 60]))  # replaces two records, but not the two that were just used
    _requests(published)
    later = stores(cache_bytes=room)
    later.gather(np.array([0, 1, 50, 60]))
    assert _requests(published) == []
    later.gather(np.arange(10))
    assert sum(_rows(request, room // 10) for request in _requests(published)) == 2


def test_a_damaged_answer_is_asked_for_again(stores: Callable[..., RemoteStore], published: Hub) -> None:
    store = stores()
    damaged: list[str] = []

    def damage(asked: str, data: bytes) -> bytes:
        damaged.append(asked)
        return data if damaged.count(asked) > 1 else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]

    published.damage = damage
    record = store.gather(np.array([7]))
    assert store.counts.requests == 2
    published.damage = lambda _, data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    for _ in range(2):  # a bad record is not kept
        with pytest.raises(BundleError, match=r"experts-00001-.*: record 8 \(token id 8\) fails its checksum"):
            store.gather(np.array([8]))
    np.testing.assert_array_equal(store.gather(np.array([7])), record)


def test_a_damaged_record_of_the_cache_is_fetched_again(stores: Callable[..., RemoteStore], published: Hub) -> None:
    import sqlite3

    store = stores()
    expected = store.gather(np.arange(4))
    store.close()
    (path,) = (cache_folder() / "records").glob("*.sqlite")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE records SET record = zeroblob(length(record)) WHERE row = 2")
        database.execute("UPDATE records SET record = x'00' WHERE row = 3")
    database.close()
    _requests(published)
    np.testing.assert_array_equal(stores().gather(np.arange(4)), expected)
    assert sum(_rows(request, expected.itemsize) for request in _requests(published)) == 2


def test_an_error_of_the_server_is_one_line_and_can_be_repeated(
    stores: Callable[..., RemoteStore], published: Hub
) -> None:
    store = stores()
    published.fail = lambda _method, path: 403 if path.startswith("/cdn") else 0
    with pytest.raises(BundleError, match=r"experts-00001-of-\d+\.safetensors: access denied"):
        store.gather(np.array([1, 2]))
    started = store.start_gather(np.array([1, 2]), store.buffer(2))
    started.wait()
    with pytest.raises(BundleError, match="access denied"):
        started.result()
    published.fail = lambda _method, _path: 0
    assert len(store.gather(np.array([1, 2]))) == 2


def test_wrong_requests_are_refused(stores: Callable[..., RemoteStore]) -> None:
    store = stores()
    with pytest.raises(RequestError, match="token id 97 is outside the vocabulary"):
        store.gather(np.array([97]))
    with pytest.raises(RequestError, match="cannot be pickled"):
        pickle.dumps(store)
    with pytest.raises(ArgumentError, match=r"store_access: found mmap, expected pread for a remote bundle"):
        open_store(Bundle(URL), access="mmap")


def test_text_is_the_same_and_the_second_run_reads_the_cache(hub: Hub, bucket: str, stdlib_mini_bundle: Path) -> None:
    hub.put("me/model", contents(stdlib_mini_bundle))
    folder = RemoteFolder(f"{bucket}/model", BundleError)
    for path in stdlib_mini_bundle.iterdir():
        folder.upload(path, path.name)
    prompts, options = ["def ", "import os\n"], {"max_new_tokens": 24, "sampling": Sampling(temperature=0.7, seed=1)}
    local = [each.tokens for each in Generator(stdlib_mini_bundle).complete(prompts, **options)]  # type: ignore[arg-type]
    for url in (URL, f"{bucket}/model"):
        # Both have the same records, so the second one finds them in the cache of the first.
        remote = Generator(url)
        assert [each.tokens for each in remote.complete(prompts, **options)] == local  # type: ignore[arg-type]
    assert isinstance(remote.store, RemoteStore)
    assert (remote.store.counts.misses, remote.store.counts.requests) == (0, 0)
    assert remote.store.counts.hits > 0
    assert len(_requests(hub)) > 0
    again = Generator(URL)
    assert [each.tokens for each in again.complete(prompts, **options)] == local  # type: ignore[arg-type]
    assert _requests(hub) == []


def test_the_self_test_of_a_remote_bundle_passes(published: Hub) -> None:
    assert published.repos
    assert selftest(URL).failures == []
