"""The graph of profile cpu can have a context that is shorter than the model's, and than its expert window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from molkv_bundle import ArgumentError, Bundle, RequestError
from molkv_export import GraphOptions, export, validate
from molkv_export.parity.compared_texts import Scope
from molkv_runtime import Generator

Bundles = Callable[..., Path]
SCOPE = Scope(sequences=2, continuations=1, new_tokens=4)

# The expert window of "molkv" has 5 positions, that of "molkv-wide-window" has 64; the models have a context of 48.
SHORT = [("mole", 20), ("molkv", 20), ("molkv", 4), ("molkv-wide-window", 20)]


@pytest.mark.parametrize(("name", "context"), SHORT)
def test_a_shorter_context_is_kept_and_computes_the_same(
    name: str, context: int, bundles: Bundles, checkpoints: Callable[[str], Path], token_ids: np.ndarray
) -> None:
    path = bundles(name, graph=GraphOptions(context_length=context))
    graph = Bundle(path).manifest.graphs["cpu"]
    whole = Bundle(bundles(name)).manifest.graphs["cpu"]
    assert (graph.context_length, whole.context_length) == (context, 48)
    assert graph.expert_window == whole.expert_window  # only static graphs have a window of their own

    generator, of_whole = Generator(path), Generator(bundles(name))
    assert generator.config.max_position_embeddings == context
    found, expected = (
        each.sequences(max_length=context).prefill(0, token_ids[:context], all_logits=True)
        for each in (generator, of_whole)
    )
    np.testing.assert_array_equal(found, expected)
    report = validate(path, checkpoints(name), scope=SCOPE)
    assert report.failures == []


@pytest.mark.parametrize(("name", "context"), SHORT)
def test_texts_that_are_longer_than_the_context_are_refused(
    name: str, context: int, bundles: Bundles, token_ids: np.ndarray
) -> None:
    generator = Generator(bundles(name, graph=GraphOptions(context_length=context)))
    with pytest.raises(RequestError, match=f"the prompt has {context + 1} tokens, expected 1 to {context} "):
        list(generator.stream([token_ids[: context + 1].tolist()]))
    with pytest.raises(ArgumentError, match=f"max_length: found {context + 1}, expected 1 to {context}"):
        generator.sequences(max_length=context + 1)
    state = generator.sequences()
    state.prefill(0, token_ids[:context])
    with pytest.raises(RequestError, match=f"has 1 tokens, expected at most 0 .the rest of max_length {context}.$"):
        state.prefill(0, token_ids[:1])


@pytest.mark.parametrize("context", [-1, 0, 49])
def test_contexts_that_the_model_does_not_have_are_refused(
    context: int, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=rf"context_length: found {context}, expected 1 to 48 \(the limit of"):
        export(checkpoints("molkv"), tmp_path / "bundle", graph=GraphOptions(context_length=context))
    assert list(tmp_path.iterdir()) == []
