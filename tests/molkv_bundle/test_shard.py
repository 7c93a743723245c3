"""The checksum of a record: the bytes that it covers, and both libraries that can compute it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from molkv_bundle import Bundle, BundleError, RecordChecksum
from molkv_runtime import ExpertStore

ROOT = Path(__file__).parent.parent.parent


def test_the_checksum_is_the_one_of_the_format_document(bundles: Callable[..., Path]) -> None:
    text = (ROOT / "docs" / "bundle-format.md").read_text()
    found = re.search(
        r"With the id\s+([0-9a-f]{16}), row (\d+) and a record of (\d+) zeros it is 0x([0-9a-f]{8})", text
    )
    assert found is not None
    table = msgspec.structs.replace(Bundle(bundles("mole")).manifest.experts, id=found[1])
    record = memoryview(bytes(int(found[3])) + b"what stands in its own place does not count"[:4])
    assert RecordChecksum(table).of(record, int(found[2])) == int(found[4], 16)


def test_records_are_checked_the_same_without_zlib_ng(bundles: Callable[..., Path]) -> None:
    program = (
        "import sys; sys.modules['zlib_ng'] = None\n"
        "import numpy as np; from molkv_bundle import Bundle, shard; from molkv_runtime import ExpertStore\n"
        "assert shard.crc32.__module__ == 'zlib'\n"
        f"print(ExpertStore(Bundle({str(bundles('molkv'))!r})).gather(np.arange(97)).tobytes().hex())"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    with ExpertStore(Bundle(bundles("molkv"))) as store:
        assert found.stdout.strip() == store.gather(np.arange(97)).tobytes().hex()


def test_a_record_in_another_place_or_of_another_table_is_refused(bundles: Callable[..., Path]) -> None:
    """Read a record at another place, as after a swap inside a file or with a shard of another export."""
    bundle = Bundle(bundles("molkv"))
    table = bundle.manifest.experts
    with ExpertStore(bundle) as store:
        record = memoryview(store.gather(np.array([7])).tobytes())
    stored = int.from_bytes(record[-4:], "little")
    assert RecordChecksum(table).of(record, 7) == stored
    assert RecordChecksum(table).of(record, 8) != stored
    other = msgspec.structs.replace(table, id=f"{int(table.id, 16) ^ 1:016x}")
    assert RecordChecksum(other).of(record, 7) != stored


@pytest.mark.parametrize("access", ["pread", "mmap"])
def test_swapped_records_and_a_foreign_shard_are_refused_when_they_are_read(
    access: str, bundles: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(bundles("molkv"), tmp_path / "bundle")
    table = Bundle(folder).manifest.experts
    (shard,) = table.shards
    content = bytearray((folder / shard.file).read_bytes())
    first, second = (slice(shard.data_offset + row * table.stride, None) for row in (3, 9))
    one, other = content[first][: table.stride], content[second][: table.stride]
    content[first.start : first.start + table.stride], content[second.start : second.start + table.stride] = other, one
    (folder / shard.file).write_bytes(content)
    with ExpertStore(Bundle(folder), access=access) as store:  # type: ignore[arg-type]
        assert len(store.gather(np.array([2, 4, 8]))) == 3
        for ids in ([3], [9], [2, 3, 4]):
            with pytest.raises(
                BundleError, match=r"token id [39]\) fails its checksum: .* or holds a record of another"
            ):
                store.gather(np.array(ids))
