"""From records as they are stored to records of float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from molkv_bundle import ModelConfig, Records, RowDtype, ValueDecoder, record_dtype
from molkv_runtime.float16 import HalfReader

GROUP = 16  # records that are decoded together in prefill: few enough to stay in the processor's cache


class RecordDecoder:
    """Turns records into float32, in memory that the next call uses again."""

    def __init__(self, config: ModelConfig, dtype: RowDtype) -> None:
        self._stored = record_dtype(config, dtype)
        self._values = ValueDecoder(dtype)
        self._dtype = dtype
        self._vectors = config.record_vectors() if config.layers_with_experts else ()
        # All of a float16 record is converted at once, gaps and checksum with it, so every offset doubles.
        self._decoded = _doubled(self._stored) if dtype == "float16" else record_dtype(config, "float32")
        self._halves = HalfReader() if dtype == "float16" else None
        self._out: Records = np.zeros(0, self._decoded)

    def decode(self, records: Records) -> Records:
        """Decode records [n].

        Returns:
            Structured array [n] with "embedding" [d] and "layers" [L] of the model's vectors by name, all float32;
            overwritten by the next call.
        """
        if self._dtype == "float32":
            return records
        if len(self._out) < len(records):
            self._out = np.zeros(len(records), self._decoded)
        out = self._out[: len(records)]
        if self._halves is not None:
            self._halves.read(_flat(records, np.float16), _flat(out, np.float32))
            return out
        out["embedding"] = records["embedding"]
        for vector in self._vectors:
            layers = records["layers"]
            if vector.scale:
                self._values.decode(layers[vector.name], layers[vector.scale], out["layers"][vector.name])
            else:
                out["layers"][vector.name] = layers[vector.name]
        return out


def _flat(records: Records, dtype: type[np.floating[Any]]) -> np.ndarray[Any, Any]:
    return records.view(np.uint8).view(dtype)


def _doubled(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Describe the same fields in float32, each number twice as large; the checksum is none and left out."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return np.dtype((_doubled(base), shape))
    if dtype.fields is None:
        return np.dtype("<f4")
    names = [name for name in dtype.names or () if name != "checksum"]
    return np.dtype(
        {
            "names": names,
            "formats": [_doubled(dtype.fields[name][0]) for name in names],
            "offsets": [2 * dtype.fields[name][1] for name in names],
            "itemsize": 2 * dtype.itemsize,
        }
    )
