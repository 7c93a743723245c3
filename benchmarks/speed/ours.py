"""The host driver of this project as a contender."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.speed import CONTEXT
from benchmarks.store.driver_process import RecordsInRam
from molkv_bundle import Bundle
from molkv_runtime import ExpertStore, Generator, Sequences, Target


class Driver:
    """A bundle in the host driver, with records from storage or with all records in RAM."""

    def __init__(self, folder: Path, threads: int, *, in_ram: bool) -> None:
        bundle = Bundle(folder)
        store = RecordsInRam(ExpertStore(bundle)) if in_ram else None
        self._generator = Generator(bundle, target=Target(threads=threads), store=store)
        self.vocab_size = self._generator.config.vocab_size
        self._states: dict[int, Sequences] = {}
        self._batch = 1

    def start(self, batch: int) -> None:
        """Start with `batch` empty sequences."""
        self._batch = batch
        if batch not in self._states:
            self._states = {batch: self._generator.sequences(batch, CONTEXT)}
        self._states[batch].lengths[:] = 0

    def prefill(self, ids: np.ndarray) -> None:
        """Prefill a prompt, the same for all sequences."""
        for sequence in range(self._batch):
            self._states[self._batch].prefill(sequence, ids)

    def decode(self, token: int) -> None:
        """Append a token to every sequence."""
        self._states[self._batch].decode(np.full(self._batch, token))
