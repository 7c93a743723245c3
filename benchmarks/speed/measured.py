"""What a run of the benchmark measured, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.speed import CONTEXT
from benchmarks.speed.contenders import TITLES
from benchmarks.speed.contest import Found, Key, Result, Spread
from benchmarks.speed.models import bundle
from benchmarks.speed.parts import BATCH, CONTEXTS, DECODE, PREFILL
from molkv_bundle import Bundle, DenseDtype, RowDtype
from molkv_runtime import cache_bytes, window_bytes


class Sizes(NamedTuple):
    """Bytes that a bundle's process needs at least."""

    weights: int
    cache: int
    window: int

    @classmethod
    def of(cls, path: Path, length: int) -> Sizes:
        """Return the sizes for one sequence of a length."""
        opened = Bundle(path)
        graph, config = opened.graph(), opened.config
        return cls(
            opened.manifest.files[graph.data].size,
            cache_bytes(config, length, graph.kv_dtype),
            window_bytes(config, length, graph.window_dtype),
        )


class Ratio(NamedTuple):
    """The speed of one contender divided by the speed of another."""

    title: str
    dtype: DenseDtype
    spread: Spread


class Measured(NamedTuple):
    """The results of all contests, by the name of the contest."""

    folder: Path  # of the models
    experts: RowDtype
    dtypes: tuple[DenseDtype, ...]
    contests: Mapping[str, Found]
    bandwidth: tuple[float, float]  # before and after, in bytes per second

    def result(self, key: Key) -> Result | None:
        """Return the result of a contender in the first contest about speed that has it."""
        return next((found[key] for found in self._of_speed() if key in found), None)

    def ratio(self, first: Key, second: Key, work: float = 1) -> Spread | None:
        """Return a ratio of speeds (`Result.ratio`) from a contest that has both contenders."""
        both = (found for found in self._of_speed() if first in found and second in found)
        return next((found[first].ratio(found[second], work) for found in both), None)

    def ratios(self) -> Iterator[Ratio]:
        """Yield all ratios that were measured, first by row of the table and then by dtype."""
        pairs = [(task, "molkv", "dense") for task in CONTEXTS]
        pairs += [(DECODE, "molkv", "ram"), (DECODE, "mole", "dense"), (PREFILL, "molkv", "dense")]
        rivals = [("dense", "genai"), ("molkv", "eager"), ("molkv", "naive")]
        rivals += [("dense", "baseline-dense"), ("molkv", "baseline-molkv")]
        pairs += [(task, *pair) for task in (DECODE, PREFILL) for pair in rivals]
        for task, first, second in pairs:
            for dtype in self.dtypes:
                other = second if second in ("eager", "naive") else f"{second} {dtype}"
                if spread := self.ratio((f"{first} {dtype}", task), (other, task)):
                    yield Ratio(f"{task.title}, {TITLES[first]} / {TITLES[second]}", dtype, spread)
        for dtype in self.dtypes:
            name = f"molkv {dtype}"
            if spread := self.ratio((name, BATCH), (name, DECODE), BATCH.batch):
                title = f"{BATCH.batch} sequences at once / one sequence, tokens a second of all sequences"
                yield Ratio(title, dtype, spread)

    def memory(self) -> Iterator[tuple[DenseDtype, Spread, Sizes, Spread]]:
        """Yield dtype, peak of the resident set, sizes, and the rest of the peak, in bytes, of MoLKV."""
        for dtype in self.dtypes:
            if found := self.contests.get(f"memory {dtype}"):
                sizes = self.sizes("molkv", dtype, CONTEXT)
                peaks = found[f"molkv {dtype}", DECODE].rss
                yield dtype, Spread.of(peaks), sizes, Spread.of([peak - sum(sizes) for peak in peaks])

    def sizes(self, model: str, dtype: DenseDtype, length: int) -> Sizes:
        """Return the sizes of one of our bundles."""
        return Sizes.of(bundle(self.folder, model, dtype, self.experts), length)

    def _of_speed(self) -> Iterator[Found]:
        # New processes, in which memory is measured, are slower.
        yield from (found for name, found in self.contests.items() if not name.startswith("memory"))
