"""Helpers of the tests of sessions: each dtype and layout of the KV cache, calls, and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from molkv_export import GraphOptions
from molkv_runtime import Sampling, Session, Token

SAMPLING = Sampling(0.8, repetition_penalty=1.1, seed=3)
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"graph": GraphOptions(kv_dtype="int8")},
    "static float32": {"profiles": ["coreml"], "graph": GraphOptions(chunk_lengths=(4,))},
    "static float16": {"profiles": ["coreml"], "graph": GraphOptions("float16", chunk_lengths=(4,))},
}


def ids_of(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def all_of(session: Session, ids: Sequence[int], count: int = 6, **options: Any) -> list[Token]:
    return list(session.stream(ids, max_new_tokens=count, sampling=SAMPLING, logprobs=2, **options))


def assert_close(found: Sequence[Token], wanted: Sequence[Token]) -> None:
    """Check that tokens are equal, and log-probabilities up to rounding."""
    assert ids_of(found) == ids_of(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert (one.logprob, [each.id for each in one.best]) == (
            pytest.approx(other.logprob, abs=1e-4),
            [each.id for each in other.best],
        )
