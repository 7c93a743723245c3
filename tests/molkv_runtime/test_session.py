"""Sessions: texts that grow, are rewound, forked, saved and restored."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from molkv_bundle import Arrays, BundleError, ProviderError, RequestError
from molkv_export import export
from molkv_runtime import BoundCall, Generator, Sequences, Target
from molkv_runtime.window import ExpertWindow
from tests.models import CONFIGS, random_model, save_checkpoint
from tests.molkv_runtime.sessions import SAMPLING, all_of, assert_close, ids_of


def test_a_session_writes_the_text_of_a_call_with_the_whole_prompt(generator: Generator) -> None:
    session, ids = generator.session(), list[int]()
    for added in ([5, 6, 7], [8] * 13, [], [90]):
        ids += added
        wanted = list(generator.stream([ids], max_new_tokens=5, sampling=SAMPLING, logprobs=2))
        assert_close(all_of(session, added, 5), wanted)
        ids += ids_of(wanted)
        assert session.ids == ids


def test_only_new_tokens_are_computed(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, original = list[int](), Sequences.prefill

    def noted(state: Sequences, sequence: int, ids: Sequence[int], **options: Any) -> Any:
        lengths.append(len(ids))
        return original(state, sequence, ids, **options)

    monkeypatch.setattr(Sequences, "prefill", noted)
    session = generator.session()
    all_of(session, range(10))
    all_of(session, [3, 4])
    session.rewind(12)
    all_of(session, [])
    all_of(session.fork(), [9, 9, 9])
    all_of(session, [8])  # the fork has a KV cache of its own
    # The last token of a text was never run. A text that is rewound runs its last token again, for its logits.
    assert lengths == [10, 3, 1, 4, 2]


def test_a_rewound_session_continues_like_its_beginning(variant: Generator) -> None:
    session, other = variant.session(), variant.session()
    all_of(session, range(1, 20), 20)
    for length in (25, 19, 7, 1):
        session.rewind(length)
        assert session.ids == list(range(1, 20))[:length] + session.ids[19:]
        other.rewind(0)
        assert_close(all_of(session.fork(), [50]), all_of(other, [*session.ids, 50]))
    session.rewind(0)
    assert session.ids == []
    with pytest.raises(RequestError, match="the prompt has 0 tokens"):
        session.stream([])
    for wrong in (1, -1, 2.0, None):
        with pytest.raises(RequestError, match="length: found"):
            session.rewind(wrong)  # type: ignore[arg-type]


def test_forks_are_independent(variant: Generator) -> None:
    session = variant.session()
    all_of(session, range(12))
    before, fork = session.ids, session.fork()
    first = all_of(session, [40])
    second = all_of(fork, [41])
    again = variant.session()
    assert_close(all_of(again, [*before, 40]), first)
    again.rewind(0)
    assert_close(all_of(again, [*before, 41]), second)
    assert (session.ids, fork.ids) == ([*before, 40, *ids_of(first)], [*before, 41, *ids_of(second)])
    assert variant.session().fork().ids == []


def test_the_context_ends_a_session(generator: Generator) -> None:
    session, context = generator.session(), generator.config.max_position_embeddings
    tokens = all_of(session, range(40), 1000)
    assert (len(session.ids), tokens[-1].finish) == (context + 1, "length")
    with pytest.raises(RequestError, match="the session has 49 tokens with this prompt, expected at most 48"):
        session.stream([])
    full = session.fork()
    assert full.ids == session.ids
    full.rewind(context)
    assert len(all_of(full, [])) == 1


@pytest.fixture(scope="module")
def long_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a small model with a context of 4,000 tokens."""
    folder = tmp_path_factory.mktemp("long")
    config = msgspec.structs.replace(CONFIGS["molkv"], max_position_embeddings=4000)
    export(save_checkpoint(random_model(config), folder / "checkpoint"), folder / "bundle", experts_dtype="float32")
    return folder / "bundle"


def test_a_session_grows_with_its_text(
    long_bundle: Path, states: list[Sequences], caplog: pytest.LogCaptureFixture
) -> None:
    generator = Generator(long_bundle, prefix_cache_bytes=0)
    caplog.set_level(logging.INFO, "molkv_runtime.continuation")
    session, rng = generator.session(), np.random.default_rng(1)
    rooms, ids = [states[-1].max_length], list[int]()
    for _ in range(4):
        added = rng.integers(0, 97, 300).tolist()
        ids += added
        tokens = all_of(session, added, 3)
        rooms.append(states[-1].max_length)
        wanted = list(generator.stream([ids], max_new_tokens=3, sampling=SAMPLING, logprobs=2))
        states.pop()  # of the second call
        assert_close(tokens, wanted)
        ids += ids_of(tokens)
    assert rooms == [512, 512, 1024, 1024, 2048]
    caplog.clear()
    all_of(session, rng.integers(0, 97, 1100).tolist(), 3)
    assert states[-1].max_length == 4000
    assert caplog.messages[0].endswith(f", {len(ids) - 1} tokens reused")
    assert session.fork().ids == session.ids
    assert states[-1].max_length >= len(session.ids) - 1


def test_a_session_grows_only_as_needed_if_there_is_little_memory(
    long_bundle: Path, states: list[Sequences], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(long_bundle)
    free = generator.sequences(1, 700).state_bytes
    session = generator.session()
    monkeypatch.setattr("molkv_runtime.memory.available_memory", lambda: free)
    all_of(session, [1] * 600, 5)
    assert states[-1].max_length == 605
    with pytest.raises(RequestError, match="MiB are free"):
        session.stream([1] * 100)
    assert len(session.ids) == 605
    assert len(all_of(session, [2] * 9, 5)) == 5


def test_a_later_call_ends_an_earlier_one_and_is_not_disturbed_by_it(generator: Generator) -> None:
    """The earlier iterator must not run its next token, which would enter the KV cache of the later call."""
    session = generator.session()
    first = session.stream(range(1, 9), max_new_tokens=9, sampling=SAMPLING)
    begun = [*range(1, 9), next(first).id, next(first).id]
    second = session.stream([30], max_new_tokens=9, sampling=SAMPLING)
    tokens = [next(second)]
    for _ in range(2):
        with pytest.raises((RequestError, StopIteration)) as caught:
            next(first)
        tokens.append(next(second))
    assert isinstance(caught.value, StopIteration)
    tokens += second
    wanted = list(generator.stream([[*begun, 30]], max_new_tokens=9, sampling=SAMPLING))
    assert ids_of(tokens) == ids_of(wanted)
    assert session.ids == [*begun, 30, *ids_of(wanted)]


@pytest.mark.parametrize("later", ["stream", "rewind"])
@pytest.mark.parametrize("is_begun", [False, True])
def test_an_iterator_that_a_later_call_ended_reports_it(generator: Generator, is_begun: bool, later: str) -> None:
    session = generator.session()
    first = session.stream([1, 2, 3], max_new_tokens=9)
    if is_begun:
        next(first)
    before = session.ids
    if later == "stream":
        session.stream([4])
    else:
        session.rewind(0)
        before = []
    with pytest.raises(RequestError, match="the session is in use by a later call, which ended this one"):
        next(first)
    assert session.ids == before


def test_a_session_goes_on_after_its_iterator_is_closed(generator: Generator) -> None:
    """Ctrl-C ends an iterator between two tokens, also in the middle of tokens that prompt lookup proposed."""
    for lookup in (0, 8):
        session = generator.session()
        stream = session.stream([7, 8, 9] * 5, max_new_tokens=20, sampling=SAMPLING, lookup=lookup)
        ids = [*([7, 8, 9] * 5), *(next(stream).id for _ in range(4))]
        stream.close()  # type: ignore[attr-defined]
        assert session.ids == ids
        del stream
        gc.collect()
        wanted = list(generator.stream([[*ids, 1]], max_new_tokens=6, sampling=SAMPLING, logprobs=2))
        assert_close(all_of(session, [1]), wanted)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ProviderError])
def test_a_session_goes_on_after_an_error(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    session, run, calls = generator.session(), BoundCall.run, list[int]()

    def failing(call: BoundCall) -> None:
        calls.append(1)
        run(call)
        if len(calls) == 4:
            raise error("broken")

    stream = session.stream(range(10), max_new_tokens=9, sampling=SAMPLING)
    with monkeypatch.context() as patch:
        patch.setattr(BoundCall, "run", failing)
        with pytest.raises(error, match="broken"):
            list(stream)
    ids = session.ids
    assert 10 < len(ids) < 15
    wanted = list(generator.stream([[*ids, 4]], max_new_tokens=6, sampling=SAMPLING, logprobs=2))
    assert_close(all_of(session, [4]), wanted)


def test_a_refused_call_leaves_the_session_as_it_was(generator: Generator) -> None:
    session = generator.session()
    all_of(session, [1, 2, 3])
    before = session.ids
    for ids, options, message in (
        ([97], {}, "token id 97 is outside the vocabulary"),
        ([-1], {}, "token id -1 is outside the vocabulary"),
        ([1.5], {}, "token ids have dtype float64"),
        ([[1]], {}, "ids: found an array of shape"),
        ("abc", {}, "ids: found str"),
        ([1] * 60, {}, "the session has 69 tokens with this prompt, expected at most 48"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens: found 0"),
        ([1], {"logprobs": 98}, "logprobs: found 98, expected 0 to 97"),
    ):
        with pytest.raises(RequestError, match=message):
            session.stream(ids, **options)  # type: ignore[arg-type]
        assert session.ids == before
    wanted = list(generator.stream([[*before, 5]], max_new_tokens=6, sampling=SAMPLING, logprobs=2))
    assert_close(all_of(session, [5]), wanted)


def test_special_tokens_are_added_only_at_the_start(stdlib_mini_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, added = Generator(stdlib_mini_bundle), list[bool]()
    encode = generator.encode

    def noted(texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        added.append(add_special_tokens)
        return encode(texts, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(generator, "encode", noted)
    session = generator.session()
    "".join(session.text("def f(", max_new_tokens=3))
    pieces = "".join(session.text("a, b", max_new_tokens=5, stop_ids=[]))
    session.rewind(0)
    "".join(session.text("x", max_new_tokens=1))
    assert added == [True, False, True]
    assert pieces
    # A text shows neither the text before the call nor the text that the call appends.
    session.rewind(0)
    text = "".join(session.text("def f(a, b", max_new_tokens=8, stop_ids=[]))
    assert text == generator.complete(["def f(a, b"], max_new_tokens=8, stop_ids=[])[0].text


def test_a_text_needs_a_tokenizer_and_ids_do_not(generator: Generator) -> None:
    with pytest.raises(BundleError, match=r"has no tokenizer\.json"):
        generator.session().text("def ")
    assert all(token.text == "" for token in generator.session().stream([1], max_new_tokens=2))


@pytest.mark.parametrize("error", [BundleError, KeyboardInterrupt])
def test_a_call_after_a_failed_call_gives_the_tokens_of_a_session_without_it(
    error: type[BaseException], bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failing call writes NaN to the KV cache, or writes wrong experts to the window."""
    outputs, init, run, finish = list[Arrays](), BoundCall.__init__, BoundCall.run, ExpertWindow.finish

    def noted(call: BoundCall, session: Any, inputs: Arrays, results: Arrays, target: Target) -> None:
        init(call, session, inputs, results, target)
        outputs.append(results)

    def writes_nan(call: BoundCall) -> None:
        run(call)
        for array in outputs[-1].values():
            array[...] = np.nan
        raise BundleError("a damaged graph")

    def is_interrupted(window: ExpertWindow, sequence: int, end: int) -> None:
        finish(window, sequence, end + 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(BoundCall, "__init__", noted)
    generator = Generator(bundles("molkv"))
    session, other = generator.session(), generator.session()
    for each in (session, other):
        all_of(each, range(1, 20))
    with monkeypatch.context() as patch:
        if error is BundleError:
            patch.setattr(BoundCall, "run", writes_nan)
        else:
            patch.setattr(ExpertWindow, "finish", is_interrupted)
        with pytest.raises(error):
            all_of(session, [5, 6, 7])
    assert session.ids == other.ids
    assert_close(all_of(session, [5, 6, 7]), all_of(other, [5, 6, 7]))
