"""Reading what a bundle stores, to compare two bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from molkv_bundle import Bundle
from molkv_runtime import ExpertStore


def stored_values(bundle: Path) -> bytes:
    """Return the bytes of all records but for their checksums, which tell checkpoints apart."""
    opened = Bundle(bundle)
    with ExpertStore(opened) as store:
        records = store.gather(np.arange(opened.config.vocab_size))
    records["checksum"] = 0
    return records.tobytes()
