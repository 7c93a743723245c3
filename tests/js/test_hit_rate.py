"""The simulation of benchmarks/hit_rate.py counts the records as the JavaScript driver in Chromium does, one by one.

The test needs the program `records.mjs` (runtimes/js/tests/browser/records.ts) in the folder MOLKV_JS_BUILD.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from benchmarks.hit_rate import Browser, Counts, Table, days, reads_of_text, runs
from molkv_bundle import Bundle, LookupExpertConfig
from molkv_export import export
from molkv_export.checkpoints.native import lookup_expert_config
from molkv_export.corpus import encode, standard_library
from tests.js.programs import js_program
from tests.models import STDLIB_MINI, lookup_form, random_model, save_checkpoint

# The driver's counts in `model.stats` and in `model.stats.source`, and their names in the simulation.
OF_MODEL = {"recordsInMemory": "records_in_memory", "recordsRead": "records_read"}
OF_SOURCE = {
    "cachedRecords": "cached_records",
    "networkRecords": "network_records",
    "networkRequests": "network_requests",
}


@dataclass
class Case:
    """A bundle, and how much of it the browser keeps."""

    bundle: Path
    cache_records: int
    prompt: int
    visits: list[list[list[int]]]  # the texts of each visit

    @property
    def table(self) -> Table:
        table = Bundle(self.bundle).manifest.experts
        return Table(table.stride, table.shards[0].count)

    @property
    def cache_bytes(self) -> int:
        return self.cache_records * self.table.record_bytes

    def simulated(self) -> list[Counts]:
        browser = Browser(self.table, self.cache_bytes)
        return [
            browser.visit(read for text in texts for read in reads_of_text(text, self.prompt)) for texts in self.visits
        ]

    def counted(self, program: Path) -> list[dict[str, int]]:
        """Return the counts of the driver."""
        options = {"bundle": "/bundle/", "cacheBytes": self.cache_bytes, "prompt": self.prompt}
        visits = [options | {"texts": texts} for texts in self.visits]
        command = ["node", program, self.bundle]
        done = subprocess.run(command, input=json.dumps(visits), capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        assert {stats["source"]["cache"] for stats in found} == {"opfs"}
        return [
            {own: stats[name] for name, own in OF_MODEL.items()}
            | {own: stats["source"][name] for name, own in OF_SOURCE.items()}
            for stats in found
        ]


@pytest.fixture(scope="module")
def program() -> Path:
    return js_program("records.mjs")


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    """Return the first modules that stdlib-mini was not trained on, in its tokens."""
    tokenizer = Tokenizer.from_file(str(STDLIB_MINI / "tokenizer.json"))
    return encode(tokenizer, standard_library().validation).tolist()


def _compare(case: Case, program: Path) -> list[Counts]:
    simulated = case.simulated()
    names = (*OF_MODEL.values(), *OF_SOURCE.values())
    assert case.counted(program) == [{name: getattr(counts, name) for name in names} for counts in simulated]
    return simulated


def test_counts_of_stdlib_mini_equal_the_driver_s(
    program: Path, bundles: Callable[..., Path], tokens: list[int]
) -> None:
    bundle = bundles("stdlib-mini", "float16", shard_size=8 << 20)
    case = Case(bundle, cache_records=300, prompt=192, visits=days(tokens, texts=2, context=256)[:4])
    total = sum(_compare(case, program), Counts())
    # The test has what it is about: several shards, records between two wanted ones, and a cache that overflows.
    assert len(Bundle(bundle).manifest.experts.shards) > 1
    assert total.network_records > total.records_read - total.cached_records
    assert total.network_records > 2 * case.cache_records
    assert total.cached_records > 100


def _large_records() -> LookupExpertConfig:
    fields = {
        "model_type": "mole",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "num_experts": 320,
        "expert_intermediate_size": 8,
        "hidden_act": "gelu",
    }
    return lookup_expert_config(fields, Path("config.json"))


def test_counts_of_large_records_equal_the_driver_s(program: Path, tokens: list[int], tmp_path: Path) -> None:
    """The records do not all fit into the memory of an open model."""
    config = _large_records()
    bundle = tmp_path / "bundle"
    export(save_checkpoint(lookup_form(random_model(config)), tmp_path / "checkpoint"), bundle, experts_dtype="float32")
    ids = [token % config.vocab_size for token in tokens]
    case = Case(bundle, cache_records=250, prompt=200, visits=days(ids, texts=6, context=256)[:3])
    counts = _compare(case, program)
    distinct = [len({token for text in texts for token in text}) for texts in case.visits]
    assert min(distinct) > (32 << 20) // case.table.record_bytes
    assert counts[0].records_read > distinct[0]  # some were read again in one visit
    assert all(one.cached_records > 0 for one in counts)


def test_a_run_ends_at_a_shard_a_gap_and_a_mebibyte() -> None:
    table = Table(record_bytes=4_096, shard_rows=1_000)
    rows = [0, 1, 6, 12, 999, 1_000, 1_003, *range(1_300, 1_600)]
    assert list(runs(table, rows)) == [
        range(7),  # rows 1 and 6 have 16 KiB between them
        range(12, 13),
        range(999, 1_000),
        range(1_000, 1_004),
        range(1_300, 1_556),
        range(1_556, 1_600),
    ]
