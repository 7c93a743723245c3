"""`python -m benchmarks.hit_rate`: how often a browser needs the network for a record, day by day.

The program simulates the record cache of the JavaScript driver on real text: the modules of Python's standard library
that the tokenizers were not trained on. Nothing is downloaded. tests/js/test_hit_rate.py compares the counts with those
of the driver in Chromium.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
from tokenizers import Tokenizer

from molkv_export.corpus import encode, standard_library, train_tokenizer

STDLIB_MINI = Path(__file__).parent.parent / "examples" / "stdlib-mini"
MIB = 1 << 20

# The numbers of runtimes/js/src: store.ts, chunks.ts, sources/http/record-reader.ts.
_MEMORY_BYTES = 32 * MIB  # of the records that an open model keeps in RAM
_CHUNK = 128  # tokens of a prompt whose records are read together
_LONGEST_RUN = MIB  # bytes of a request
_GAP = 16 << 10  # bytes between two records that a request fetches too

_CONTEXT, _PROMPT = 512, 256  # tokens of a text, and of its prompt; the rest is written token by token
_TEXTS = 8  # texts a day


class Table(NamedTuple):
    """The table of a bundle: one record for each token id."""

    record_bytes: int
    shard_rows: int  # rows of a shard; the last one may have fewer


@dataclass
class Counts:
    """The counts of one visit; all but `tokens` have the names of the driver's own."""

    tokens: int = 0
    records_in_memory: int = 0
    records_read: int = 0
    cached_records: int = 0
    network_records: int = 0  # with those between two wanted records
    network_requests: int = 0
    missing: int = 0  # tokens whose record came from the network, without the others of a request

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


class Browser:
    """A browser that visits a page: the cache stays, the records in RAM do not."""

    def __init__(self, table: Table, cache_bytes: int, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._table = table
        self._cache_records = cache_bytes // table.record_bytes
        self._memory_records = memory_bytes // table.record_bytes
        # Rows, from the one that was not used for the longest time to the one that was used last.
        self._memory: dict[int, None] = {}
        self._cache: dict[int, None] = {}

    def visit(self, reads: Iterable[list[int]]) -> Counts:
        """Open the page, and read the records of token ids in turn."""
        counts = Counts()
        self._memory = {}
        for ids in reads:
            self._gather(ids, counts)
        return counts

    def _gather(self, ids: list[int], counts: Counts) -> None:
        wanted = dict.fromkeys(ids)
        known = [row for row in wanted if row in self._memory]
        missing = [row for row in wanted if row not in self._memory]
        counts.tokens += len(ids)
        counts.records_in_memory += len(known)
        counts.records_read += len(missing)
        self._read(missing, counts)
        for row in (*known, *missing):
            _use(self._memory, row)
            if len(self._memory) > self._memory_records:
                _forget_oldest(self._memory)

    def _read(self, rows: list[int], counts: Counts) -> None:
        missing = [row for row in rows if row not in self._cache]
        counts.cached_records += len(rows) - len(missing)
        counts.missing += len(missing)
        for row in rows:
            if row in self._cache:
                _use(self._cache, row)
        for run in runs(self._table, missing):
            counts.network_requests += 1
            counts.network_records += len(run)
            for row in run:
                if row not in self._cache:
                    self._store(row)

    def _store(self, row: int) -> None:
        if self._cache_records == 0:
            return
        if len(self._cache) == self._cache_records:
            _forget_oldest(self._cache)
        _use(self._cache, row)


def _use(rows: dict[int, None], row: int) -> None:
    rows.pop(row, None)
    rows[row] = None


def _forget_oldest(rows: dict[int, None]) -> None:
    del rows[next(iter(rows))]


def runs(table: Table, rows: Iterable[int]) -> Iterator[range]:
    """Yield the rows of each request for some rows: near rows of one shard share a request, with those between them."""
    step = 1 + _GAP // table.record_bytes
    longest = max(1, _LONGEST_RUN // table.record_bytes)
    run = range(0)
    for row in sorted(rows):
        end_of_shard = (run.start // table.shard_rows + 1) * table.shard_rows
        if run and row < run.stop + step and row < min(end_of_shard, run.start + longest):
            run = range(run.start, row + 1)
            continue
        if run:
            yield run
        run = range(row, row + 1)
    if run:
        yield run


def reads_of_text(ids: list[int], prompt: int = _PROMPT) -> Iterator[list[int]]:
    """Yield the token ids whose records the driver reads together: chunks of the prompt, then single ids."""
    for start in range(0, prompt, _CHUNK):
        yield ids[start : min(start + _CHUNK, prompt)]
    for token in ids[prompt:]:
        yield [token]


def days(ids: list[int], texts: int = _TEXTS, context: int = _CONTEXT) -> list[list[list[int]]]:
    """Divide token ids into days, and each day into texts. Ids that fill no day are left out."""
    pieces = [ids[start : start + context] for start in range(0, len(ids) - context + 1, context)]
    return [pieces[start : start + texts] for start in range(0, len(pieces) - texts + 1, texts)]


def simulate(table: Table, cache_bytes: int, visits: list[list[list[int]]]) -> list[Counts]:
    """Return the counts of a visit a day."""
    browser = Browser(table, cache_bytes)
    return [browser.visit(read for text in texts for read in reads_of_text(text)) for texts in visits]


_PERIODS = ((1, 1), (2, 3), (4, 7), (8, 15), (16, None))  # days, both included


def _print_table(title: str, table: Table, caches: dict[str, int], ids: list[int]) -> None:
    visits = days(ids)
    names = [f"day {first}" if first == last else f"{first}-{last or len(visits)}" for first, last in _PERIODS]
    tokens = len(visits) * _TEXTS * _CONTEXT
    distinct = len({token for texts in visits for text in texts for token in text})
    print(f"\n**{title}**: {len(visits)} days of {_TEXTS * _CONTEXT:,} tokens; {distinct:,} ids in {tokens:,} tokens\n")
    print(f"| cache | {' | '.join(names)} | all days | requests a token |")
    print(f"|{'---|' * (len(names) + 3)}")
    for name, size in caches.items():
        counts = simulate(table, size, visits)
        parts = [counts[first - 1 : last] for first, last in _PERIODS]
        cells = [_cell(sum(part, Counts()), table) for part in (*parts, counts)]
        total = sum(counts, Counts())
        print(f"| {name} | {' | '.join(cells)} | {total.network_requests / total.tokens:.3f} |")


def _cell(counts: Counts, table: Table) -> str:
    rate = 1 - counts.missing / counts.tokens
    kilobytes = counts.network_records * table.record_bytes / counts.tokens / 1e3
    return f"{100 * rate:.1f} %, {kilobytes:.2f}"


@click.command()
def main() -> None:
    """Print tables: hit rate (the share of tokens that needed no network) and kilobytes of records a token."""
    corpus = standard_library()
    small = Tokenizer.from_file(str(STDLIB_MINI / "tokenizer.json"))
    start = time.monotonic()
    large = train_tokenizer(corpus.train, 50_304)
    print(f"trained a tokenizer of {large.get_vocab_size():,} ids in {time.monotonic() - start:.0f} s")
    own = Table(record_bytes=5_440, shard_rows=4_096)
    caches = {"none": 0, "4 MiB": 4 * MIB, "8 MiB": 8 * MIB, "256 MiB (the whole table)": 256 * MIB}
    _print_table("stdlib-mini", own, caches, encode(small, corpus.validation).tolist())
    published = Table(record_bytes=81_920, shard_rows=50_304)
    caches = {"none": 0, "64 MiB": 64 * MIB, "128 MiB": 128 * MIB, "256 MiB (default)": 256 * MIB, "1 GiB": 1024 * MIB}
    _print_table("160M class", published, caches, encode(large, corpus.validation).tolist())


if __name__ == "__main__":
    main()
