"""The expert store: reading records, errors, and memory."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molkv_bundle import Bundle, BundleError, RequestError
from molkv_export import export
from molkv_runtime import ExpertStore, Generator

VOCAB = 97


@pytest.fixture(scope="module")
def sharded(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a bundle of many shards, whose records have the size of a page."""
    folder = tmp_path_factory.mktemp("sharded") / "bundle"
    export(checkpoints("molkv"), folder, shard_size=20_000)
    return folder


@pytest.fixture(params=["pread", "mmap"])
def store(request: pytest.FixtureRequest, sharded: Path) -> Any:
    with ExpertStore(Bundle(sharded), access=request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def by_hand(sharded: Path) -> list[bytes]:
    """Return all records, read without our code except for the manifest."""
    bundle = Bundle(sharded)
    stride, records = bundle.manifest.experts.stride, []
    for shard in bundle.manifest.experts.shards:
        data = (sharded / shard.file).read_bytes()[-shard.count * stride :]
        records += [data[at : at + stride] for at in range(0, len(data), stride)]
    return records


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 64, 200, 1000])
def test_records_come_in_the_order_of_the_ids_with_repeats(
    count: int, store: ExpertStore, by_hand: list[bytes]
) -> None:
    ids = np.random.default_rng(count).integers(0, VOCAB, count)
    assert store.gather(ids).tobytes() == b"".join(by_hand[token] for token in ids)


def test_the_other_rows_of_a_longer_buffer_do_not_change(store: ExpertStore, by_hand: list[bytes]) -> None:
    buffer = store.buffer(5)
    buffer.view(np.uint8)[:] = 7
    assert store.gather(np.array([3, 90, 3]), buffer).tobytes() == by_hand[3] + by_hand[90] + by_hand[3]
    assert (buffer[3:].view(np.uint8) == 7).all()


def test_gathering_in_the_background_gives_the_same(store: ExpertStore, by_hand: list[bytes]) -> None:
    chunks = [np.random.default_rng(seed).integers(0, VOCAB, 300) for seed in range(4)]
    pending = [store.start_gather(ids, store.buffer(300)) for ids in chunks]
    for ids, gathering in zip(chunks, pending, strict=True):
        assert gathering.result().tobytes() == b"".join(by_hand[token] for token in ids)


class _Reads:
    """A replacement of `os.preadv` that records the reads and can make them fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int, int]] = []  # descriptor, offset, bytes asked for
        self.threads: set[int] = set()
        self.fail_at: int | None = None  # offset inside a file that cannot be read
        self.at_most: int | None = None  # bytes that one call returns
        self.meeting: threading.Barrier | None = None  # of the first calls: each waits until the others have begun
        self._original: Any = os.preadv
        patch.setattr(os, "preadv", self)

    def __call__(self, descriptor: int, buffers: Any, offset: int) -> int:
        size = sum(map(len, buffers))
        self.calls.append((descriptor, offset, size))
        self.threads.add(threading.get_ident())
        if self.meeting is not None and len(self.calls) <= self.meeting.parties:
            self.meeting.wait()
        if self.fail_at is not None and offset <= self.fail_at < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.at_most is not None:
            buffers = [buffers[0][: self.at_most]]
        return int(self._original(descriptor, buffers, offset))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> _Reads:
    return _Reads(monkeypatch)


@pytest.fixture
def one_file(bundles: Callable[..., Path]) -> Any:
    with ExpertStore(Bundle(bundles("molkv", "float16"))) as opened:
        yield opened


def test_each_distinct_id_is_read_once_in_the_order_of_the_file(one_file: ExpertStore, reads: _Reads) -> None:
    one_file.gather(np.array([9, 2, 9, 9, 2, 30]))
    offsets = [offset for _, offset, _ in reads.calls]
    assert len(offsets) == 3
    assert offsets == sorted(offsets)


def test_neighbours_are_read_by_one_call(one_file: ExpertStore, reads: _Reads) -> None:
    stride = one_file.record_dtype.itemsize
    one_file.gather(np.array([12, 5, 11, 40, 10, 4]))
    assert sorted(size // stride for _, _, size in reads.calls) == [1, 2, 3]


def test_one_id_is_one_read_on_the_same_thread(one_file: ExpertStore, reads: _Reads) -> None:
    one_file.gather(np.array([50]))
    assert len(reads.calls) == 1
    assert reads.threads == {threading.get_ident()}


def test_a_long_prompt_is_read_by_several_threads(one_file: ExpertStore, reads: _Reads) -> None:
    reads.meeting = threading.Barrier(2, timeout=60)  # broken if one thread reads everything
    one_file.gather(np.arange(0, VOCAB, 2))
    assert len(reads.threads) > 1
    assert threading.get_ident() not in reads.threads


def test_short_reads_are_continued(store: ExpertStore, reads: _Reads, by_hand: list[bytes]) -> None:
    reads.at_most = 1000
    assert store.gather(np.array([5, 6, 50])).tobytes() == by_hand[5] + by_hand[6] + by_hand[50]


@pytest.mark.parametrize("ids", [[50], [49, 50, 51], list(range(VOCAB))])
def test_a_read_error_names_file_record_and_token(ids: list[int], one_file: ExpertStore, reads: _Reads) -> None:
    one_file.gather(np.array([50]))
    reads.fail_at = reads.calls[-1][1] + 10
    with pytest.raises(
        BundleError, match=r"safetensors: cannot be read .*Input/output error.*record 50 \(token id 50\)"
    ):
        one_file.gather(np.array(ids))
    assert len(one_file.gather(np.array([49, 51]))) == 2  # others can still be read


def test_a_flipped_bit_is_found_unless_checking_is_switched_off(bundles: Callable[..., Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(bundles("molkv", "float16"), tmp_path / "bundle")
    path = bundle / "experts-00001-of-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with ExpertStore(Bundle(bundle)) as checking:
        for ids in ([96], [3, 96, 4], list(range(VOCAB))):
            with pytest.raises(BundleError, match=r"record 96 \(token id 96\) fails its checksum"):
                checking.gather(np.array(ids))
    with ExpertStore(Bundle(bundle), verify_checksums=False) as trusting:
        assert trusting.gather(np.array([96])).tobytes()[-10:] == data[-10:]


@pytest.mark.parametrize("access", ["pread", "mmap"])
def test_a_shard_that_is_truncated_while_it_is_open_is_named(
    access: Any, bundles: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = shutil.copytree(bundles("molkv", "float16"), tmp_path / "bundle")
    with ExpertStore(Bundle(bundle), access=access) as opened:
        os.truncate(bundle / "experts-00001-of-00001.safetensors", 10_000)
        with pytest.raises(
            BundleError, match=r"experts-00001-of-00001.safetensors: .*is the file truncated\?.* \(token id 90\)"
        ):
            opened.gather(np.array([90]))


def test_deleting_a_shard_does_not_disturb_a_running_generation(bundles: Callable[..., Path], tmp_path: Path) -> None:
    """Check that open files stay readable, and that opening the bundle again fails."""
    bundle = shutil.copytree(bundles("molkv"), tmp_path / "bundle")
    prompt = [[5, 17, 3]]
    expected = [token.id for token in Generator(bundle).stream(prompt, max_new_tokens=20)]
    tokens = Generator(bundle).stream(prompt, max_new_tokens=20)
    found = [next(tokens).id]
    shutil.rmtree(bundle)
    assert found + [token.id for token in tokens] == expected
    with pytest.raises(BundleError, match="cannot be read"):
        Generator(bundle)


def test_a_read_error_ends_one_generation_and_no_other(generator: Generator, reads: _Reads) -> None:
    one, other = (generator.stream([[5, 17, 3]], max_new_tokens=20) for _ in range(2))
    expected = [token.id for token in generator.stream([[5, 17, 3]], max_new_tokens=20)]
    found = [next(other).id]
    next(one)
    reads.fail_at = 0
    reads._original, original = (
        (lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))),
        reads._original,
    )
    with pytest.raises(BundleError, match=r"Input/output error.*token id"):
        next(one)
    reads._original = original
    assert found + [token.id for token in other] == expected


def test_a_decode_step_allocates_nothing(bundles: Callable[..., Path]) -> None:
    with ExpertStore(Bundle(bundles("molkv"))) as opened:
        buffer, ids = opened.buffer(1), [np.array([token]) for token in range(20)]
        opened.gather(ids[0], buffer)
        tracemalloc.start()
        for one in ids:
            opened.gather(one, buffer)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert opened.record_dtype.itemsize == 2880
        assert peak < opened.record_dtype.itemsize  # views and small integers, whatever the record's size


@pytest.mark.parametrize("ids", [[-1], [VOCAB], [0, 5, 1000], [0.5], [True]])
def test_invalid_token_ids_are_refused(ids: list[Any], store: ExpertStore) -> None:
    with pytest.raises(RequestError, match="token id"):
        store.gather(np.array(ids))
    with pytest.raises(RequestError, match="token id"):
        store.start_gather(np.array(ids), store.buffer(len(ids)))


def test_opening_fails_without_leaving_files_open(sharded: Path, tmp_path: Path) -> None:
    bundle = Bundle(shutil.copytree(sharded, tmp_path / "bundle"))
    last = bundle.path / bundle.manifest.experts.shards[-1].file
    last.write_bytes(last.read_bytes()[:-1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(BundleError, match=last.name):
        ExpertStore(bundle)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
