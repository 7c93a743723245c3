"""The reuse of earlier calls: what is computed again, which states are kept, and the results."""

from __future__ import annotations

import gc
import logging
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from molkv_bundle import ArgumentError, Arrays, BundleError, RequestError, read_golden
from molkv_export import GraphOptions
from molkv_runtime import BoundCall, Call, Generator, Graph, Sampling, Sequences, Token

_PROMPT = [int(each) for each in np.random.default_rng(3).integers(0, 97, 24)]
_SAMPLING = Sampling(0.9, seed=5)


def _ids(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def _call(generator: Generator, prompts: Sequence[Sequence[int]], count: int = 6, **options: Any) -> list[Token]:
    options = {"sampling": _SAMPLING, "logprobs": 97, **options}
    return list(generator.stream(prompts, max_new_tokens=count, **options))


@pytest.fixture
def reused(caplog: pytest.LogCaptureFixture) -> Callable[[], list[int]]:
    """Return a function that returns the numbers of reused tokens of the calls since it was last called."""
    caplog.set_level(logging.INFO, "molkv_runtime.continuation")

    def numbers() -> list[int]:
        found = [re.search(r"(\d+) tokens reused", message) for message in caplog.messages]
        caplog.clear()
        return [int(match[1]) for match in found if match]

    return numbers


def _assert_within_the_limits(generator: Generator, found: list[Token], wanted: list[Token]) -> None:
    """Compare all log-probabilities. A logit and the logarithm of a sum can each differ by the golden limit."""
    limit = 2 * read_golden(generator.bundle).limits.max_abs
    assert [(token.sequence, token.id, token.finish) for token in found] == [
        (token.sequence, token.id, token.finish) for token in wanted
    ]
    for one, other in zip(found, wanted, strict=True):
        rows = [[logprob for _, logprob in sorted(token.best)] for token in (one, other)]
        np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=limit)


@pytest.fixture(params=["molkv", "molkv-one-slot", "molkv-wide-window", "mole", "static", "int8"])
def kinds(request: pytest.FixtureRequest, bundles: Callable[..., Path]) -> Path:
    """Return bundles with different windows, graphs and KV caches."""
    match request.param:
        case "static":
            return bundles("molkv", profiles=["coreml"], graph=GraphOptions(chunk_lengths=(4,)))
        case "int8":
            return bundles("molkv", graph=GraphOptions(kv_dtype="int8"))
    return bundles(request.param)


def test_a_conversation_gives_the_results_of_calls_without_reuse(kinds: Path, reused: Callable[[], list[int]]) -> None:
    """Continue a text, return to its beginning, and continue it in another way."""
    generator, plain = Generator(kinds), Generator(kinds, prefix_cache_bytes=0)
    first = _ids(_call(generator, [_PROMPT]))
    longer = [*_PROMPT, *first, 1, 2, 3]
    prompts = [longer, _PROMPT, [*_PROMPT[:20], 50, 51], [*longer, 4], longer[:17]]
    reused()
    results = [_call(generator, [prompt]) for prompt in prompts]
    assert reused() == [29, 23, 20, 20, 16]
    for prompt, result in zip(prompts, results, strict=True):
        _assert_within_the_limits(generator, result, _call(plain, [prompt]))


class _CountingGraph:
    """A `Graph` that counts the positions that it computes."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self.positions = graph, 0

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> Call:
        call = self._graph.bind(length, inputs, outputs)

        def run() -> None:
            self.positions += inputs["inputs_embeds"].shape[1]
            call.run()

        return SimpleNamespace(run=run)


def test_a_longer_prompt_computes_only_its_new_tokens(generator: Generator, reused: Callable[[], list[int]]) -> None:
    generator.graph = counting = _CountingGraph(generator.graph)

    def computed(prompt: list[int]) -> tuple[list[int], int, int]:
        """Return the new ids, the number of reused tokens, and the number of computed tokens of the prompt."""
        before = counting.positions
        ids = _ids(_call(generator, [prompt], 6))
        return ids, reused()[0], counting.positions - before - 5

    ids, *counts = computed(_PROMPT)
    assert counts == [0, 24]
    longer = [*_PROMPT, *ids, 1, 2, 3]
    assert computed(longer)[1:] == (29, 4)  # the last token of the first call was not run
    assert computed(longer)[1:] == (32, 1)  # the last token is run again, for its logits
    assert computed([*longer[:20], 96])[1:] == (20, 1)
    assert computed(longer[:16])[1:] == (15, 1)
    assert computed(longer[1:])[1:] == (0, 32)
    assert computed([*longer[:15], 96, 95, 94])[1:] == (0, 18)  # a shorter prefix is not worthwhile


def test_without_the_cache_equal_calls_are_equal_bit_for_bit(
    bundles: Callable[..., Path], reused: Callable[[], list[int]]
) -> None:
    generator = Generator(bundles("molkv"), prefix_cache_bytes=0)
    first = _call(generator, [_PROMPT])
    assert _call(generator, [_PROMPT]) == first
    assert reused() == [0, 0]
    for wrong in (-1, 1.5, None, True):
        with pytest.raises(RequestError, match="prefix_cache_bytes: found"):
            Generator(bundles("molkv"), prefix_cache_bytes=wrong)  # type: ignore[arg-type]


@pytest.fixture
def exact_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocate for a call no more room than it needs, so that a test can count the bytes of states."""
    monkeypatch.setattr("molkv_runtime.generator.ROOM_TO_GROW", 0)


@pytest.mark.usefixtures("exact_room")
def test_the_least_recently_used_state_is_dropped(
    bundles: Callable[..., Path], reused: Callable[[], list[int]]
) -> None:
    prompts = [[first, *_PROMPT] for first in range(3)]
    size = Generator(bundles("molkv")).sequences(1, len(prompts[0]) + 6).state_bytes
    generator = Generator(bundles("molkv"), prefix_cache_bytes=2 * size)
    for number in (0, 1, 0, 2, 0, 1):
        _call(generator, [prompts[number]])
    # Prompt 2 drops prompt 1, since prompt 0 was used later. Then prompt 1 is computed again.
    assert reused() == [0, 0, 24, 0, 24, 0]
    _call(generator, [[each] * 24 for each in range(60, 63)])  # this state is too large, and drops no other state
    _call(generator, [prompts[1]])
    assert reused() == [0, 24]
    small = Generator(bundles("molkv"), prefix_cache_bytes=size - 1)
    for _ in range(2):
        _call(small, [prompts[0]])
    assert reused() == [0, 0]


def test_a_conversation_has_room_for_its_next_calls(stdlib_mini_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, original = list[Sequences](), Sequences.__init__

    def noted(state: Sequences, *arguments: Any, **options: Any) -> None:
        original(state, *arguments, **options)
        made.append(state)

    monkeypatch.setattr(Sequences, "__init__", noted)
    generator, ids = Generator(stdlib_mini_bundle), list(range(30))
    for turn in range(20):
        ids += _ids(_call(generator, [[*ids, turn]], 3, logprobs=None))
    assert len(made) == 1


@pytest.mark.usefixtures("exact_room")
def test_the_state_of_a_conversation_doubles(
    stdlib_mini_bundle: Path, monkeypatch: pytest.MonkeyPatch, reused: Callable[[], list[int]]
) -> None:
    """Without this, each call would copy the KV cache to a slightly longer one."""
    rooms, original = list[int](), Sequences.__init__

    def noted(state: Sequences, *arguments: Any, **options: Any) -> None:
        original(state, *arguments, **options)
        rooms.append(state.max_length)

    monkeypatch.setattr(Sequences, "__init__", noted)
    generator, ids = Generator(stdlib_mini_bundle), list(range(30))
    for turn in range(20):
        ids += _ids(_call(generator, [[*ids, turn]], 3, logprobs=None))
    assert rooms == [34, 68, 136]
    assert reused()[0] == 0
    ids += _ids(_call(generator, [ids], 400, logprobs=None, stop_ids=[]))
    assert rooms == [34, 68, 136, 490]


def test_a_state_that_other_prompts_share_is_kept(generator: Generator, reused: Callable[[], list[int]]) -> None:
    """The common prefix is less than half of the state, so it is copied, and the whole state is still there."""
    long = [*_PROMPT[:18], *range(20)]
    _call(generator, [long])
    _call(generator, [[*long[:18], 90]])
    _call(generator, [long])
    assert reused() == [0, 18, len(long) - 1]


def test_a_batch_of_equal_prompts_computes_the_prefix_once(
    bundles: Callable[..., Path], reused: Callable[[], list[int]]
) -> None:
    plain = Generator(bundles("molkv"), prefix_cache_bytes=0)
    prompts = [_PROMPT, [*_PROMPT, 1], [7, 8], _PROMPT]
    tokens = _call(plain, prompts)
    assert reused() == [24 + 23]
    for sequence, prompt in enumerate(prompts[:2]):
        alone = [token._replace(sequence=sequence) for token in _call(plain, [prompt], sampling=Sampling())]
        batch = [token for token in _call(plain, prompts, sampling=Sampling()) if token.sequence == sequence]
        _assert_within_the_limits(plain, batch, alone)
    generator = Generator(bundles("molkv"))
    _call(generator, [_PROMPT])
    reused()
    _assert_within_the_limits(generator, _call(generator, prompts), tokens)
    assert reused() == [23 + 24 + 23]
    _call(generator, [[*_PROMPT, 1, 2]])  # a sequence of the batch
    assert reused()[0] >= 24


@pytest.mark.parametrize("ending", ["close", "garbage", "last token"])
def test_the_state_of_an_abandoned_stream_is_reused(
    generator: Generator, bundles: Callable[..., Path], reused: Callable[[], list[int]], ending: str
) -> None:
    for lookup in (0, 8):
        prompt = [lookup, 1, 2, 3] * 6
        stream = generator.stream([prompt], max_new_tokens=3, sampling=_SAMPLING, lookup=lookup)
        ids = [next(stream).id for _ in range(3 if ending == "last token" else 2)]
        if ending == "close":
            stream.close()  # type: ignore[attr-defined]
        del stream
        gc.collect()
        longer = [*prompt, *ids, 9]
        wanted = _call(Generator(bundles("molkv"), prefix_cache_bytes=0), [longer])
        reused()
        found = _call(generator, [longer])
        assert reused()[0] >= len(prompt)
        _assert_within_the_limits(generator, found, wanted)


def test_the_state_of_a_call_that_failed_is_not_reused(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, reused: Callable[[], list[int]]
) -> None:
    _call(generator, [_PROMPT])
    run, calls = BoundCall.run, list[int]()

    def failing(call: BoundCall) -> None:
        calls.append(1)
        run(call)
        if len(calls) == 3:
            raise BundleError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(BoundCall, "run", failing)
        with pytest.raises(BundleError, match="broken"):
            _call(generator, [_PROMPT])
    _call(generator, [_PROMPT])
    assert reused() == [0, 23, 0]


def test_an_impossible_request_drops_no_state(generator: Generator, reused: Callable[[], list[int]]) -> None:
    _call(generator, [_PROMPT])
    for arguments in ((1, 10**9), (0,), (1, 8, 0)):
        with pytest.raises(ArgumentError):
            generator.sequences(*arguments)
    _call(generator, [[*_PROMPT, 1]])
    assert reused() == [0, len(_PROMPT)]


@pytest.mark.usefixtures("exact_room")
def test_states_make_room_for_a_new_call(
    bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, reused: Callable[[], list[int]]
) -> None:
    """The machine has RAM for two states. The RAM of a state is free when no object refers to the state."""
    generator = Generator(bundles("molkv"))
    size = generator.sequences(1, 30).state_bytes
    limit = 2.5 * size
    alive, original = weakref.WeakSet[Sequences](), Sequences.__init__

    def noted(state: Sequences, *arguments: Any, **options: Any) -> None:
        original(state, *arguments, **options)
        alive.add(state)

    def free() -> float:
        return limit - sum(state.state_bytes for state in alive)

    monkeypatch.setattr(Sequences, "__init__", noted)
    monkeypatch.setattr("molkv_runtime.memory.available_memory", free)
    prompts = [[first, *_PROMPT[:23]] for first in range(3)]
    for prompt in prompts:
        _call(generator, [prompt])
    _call(generator, [prompts[2]])
    _call(generator, [prompts[0]])
    assert reused() == [0, 0, 0, 23, 0]
    # A longer call of the same text needs a larger state. Without RAM for both, nothing is reused.
    limit = 1.5 * size
    _call(generator, [prompts[0]], count=20)
    assert reused() == [0]
    session = generator.session()  # needs the room of the states
    assert len(list(session.stream(prompts[0], max_new_tokens=2))) == 2
    with pytest.raises(RequestError, match="MiB are free"):
        _call(generator, prompts)


def test_threads_get_the_results_of_one_thread(bundles: Callable[..., Path]) -> None:
    plain = Generator(bundles("molkv"), prefix_cache_bytes=0)
    prompts = [[*_PROMPT[: 16 + number % 4], number] for number in range(12)]
    wanted = [_call(plain, [prompt], 3) for prompt in prompts]
    generator = Generator(bundles("molkv"), prefix_cache_bytes=3 * plain.sequences(1, 24).state_bytes)
    results: dict[tuple[int, int], list[Token]] = {}

    def run(thread: int) -> None:
        for number in range(thread, thread + 24):
            results[thread, number] = _call(generator, [prompts[number % 12]], 3)

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 72
    for (_, number), result in results.items():
        _assert_within_the_limits(plain, result, wanted[number % 12])
