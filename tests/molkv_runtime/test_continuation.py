"""Log-probabilities, and prompt lookup: the same text with fewer calls of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from molkv_bundle import Floats, RequestError, read_golden
from molkv_export import GraphOptions
from molkv_runtime import BoundCall, Generator, Sampling, Sequences, Token
from molkv_runtime.continuation import Continuation
from molkv_runtime.options import Settings

_PENALTIES = Sampling(1.2, top_k=30, top_p=0.9, repetition_penalty=1.2, presence_penalty=0.4, frequency_penalty=0.3)


def _written(generator: Generator, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[Token]]:
    texts: list[list[Token]] = [[] for _ in prompts]
    for token in generator.stream(prompts, **options):
        texts[token.sequence].append(token)
    return texts


def _ids(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def _log_softmax(logits: Floats) -> np.ndarray[Any, Any]:
    exact = logits.astype(np.longdouble)
    exact -= exact.max(axis=-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("count", [0, 1, 5, 97])
@pytest.mark.parametrize("sampling", [Sampling(), _PENALTIES, Sampling(logit_bias={3: 50.0})])
def test_logprobs_are_those_of_the_logits(generator: Generator, sampling: Sampling, count: int) -> None:
    """Compute the logits of the whole text in one call. Neither temperature nor penalties nor biases have an effect."""
    prompts = [[5, 60, 33], [7] * 9]
    for prompt, tokens in zip(
        prompts, _written(generator, prompts, max_new_tokens=8, sampling=sampling, logprobs=count), strict=True
    ):
        logits = generator.sequences().prefill(0, [*prompt, *_ids(tokens)], all_logits=True)
        for token, row in zip(tokens, _log_softmax(logits)[len(prompt) - 1 :], strict=False):
            order = np.argsort(-row, kind="stable")[:count].tolist()
            assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
            assert [each.logprob for each in token.best] == pytest.approx(row[order].tolist(), abs=1e-4)
            # Two logits that differ by less than rounding may change their order.
            found = [float(row[each.id]) for each in token.best]
            assert found == pytest.approx(row[order].tolist(), abs=1e-4)
            assert len({each.id for each in token.best}) == count


def test_without_a_request_there_are_no_logprobs(generator: Generator) -> None:
    [tokens] = _written(generator, [[1, 2]], max_new_tokens=3)
    assert [(token.logprob, token.best) for token in tokens] == [(None, ())] * 3
    for wrong in (-1, 98, 1.5, True):
        with pytest.raises(RequestError, match=r"logprobs: found .*, expected (an integer, )?0 to 97"):
            generator.stream([[1]], logprobs=wrong)  # type: ignore[arg-type]


@given(st.lists(st.sampled_from([-1e30, -2.0, 0.0, 0.5, 3.0, 80.0]), min_size=1, max_size=12), st.data())
def test_equal_logits_are_ordered_by_id(numbers: list[float], data: st.DataObject) -> None:
    logits = np.array(numbers, np.float32)
    count = data.draw(st.integers(0, len(numbers)))
    settings = Settings(1, logprobs=count)
    token = Continuation(0, np.zeros(1, np.int64), 1, settings).add(logits)
    order = sorted(range(len(numbers)), key=lambda each: (-logits[each], each))[:count]
    expected = _log_softmax(logits)
    assert [each.id for each in token.best] == order
    assert [each.logprob for each in token.best] == pytest.approx(expected[order].tolist())
    assert token.logprob == pytest.approx(float(expected[token.id]))
    assert token.best[:1] in ((), ((token.id, token.logprob),))  # the greedy token is the likeliest one


def _proposed(ids: Sequence[int], most: int) -> list[int]:
    """Search all places for the last tokens, beginning with the latest place."""
    for count in (4, 3, 2):
        for start in range(len(ids) - count - 1, -1, -1):
            if list(ids[start : start + count]) == list(ids[len(ids) - count :]):
                extended = list(ids)  # the text goes on as it did after that place
                while len(extended) < len(ids) + most:
                    extended.append(extended[start + count + len(extended) - len(ids)])
                return extended[len(ids) :]
    return []


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=14),
    st.lists(st.integers(0, 2), max_size=14),
    st.integers(0, 6),
)
def test_proposals_are_what_followed_the_longest_ngram_at_its_latest_place(
    prompt: list[int], added: list[int], lookup: int
) -> None:
    settings = Settings(20, lookup=lookup)
    text = Continuation(0, np.array(prompt), 100, settings)
    ids = list(prompt)
    for number, token_id in enumerate(added):
        if number % 3 != 1:  # not after every token, as if proposed tokens were accepted
            assert text.propose() == _proposed(ids, min(lookup, 19 - number)) == text.proposed
        ids.append(text.add(np.eye(3, dtype=np.float32)[token_id]).id)
    assert text.propose() == _proposed(ids, min(lookup, 19 - len(added)))


@pytest.mark.parametrize(("new", "context", "most"), [(1, 9, 0), (2, 9, 1), (9, 3, 2), (9, 1, 0)])
def test_no_more_tokens_are_proposed_than_the_text_has_room(new: int, context: int, most: int) -> None:
    settings = Settings(new, lookup=8)
    text = Continuation(0, np.array([1, 2, 1, 2, 1, 2, 1, 2, 1]), context, settings)
    assert len(text.propose()) == most


class _Runs:
    """The numbers of positions of the graph's calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prefills, self.decodes = list[int](), 0
        prefill, decode = Sequences.prefill, Sequences.decode

        def noted_prefill(state: Sequences, sequence: int, ids: Sequence[int], **options: Any) -> Floats:
            self.prefills.append(len(ids))
            return prefill(state, sequence, ids, **options)

        def noted_decode(state: Sequences, *arguments: Any) -> Floats:
            self.decodes += 1
            return decode(state, *arguments)

        monkeypatch.setattr(Sequences, "prefill", noted_prefill)
        monkeypatch.setattr(Sequences, "decode", noted_decode)


def _certain(generator: Generator, prompt: Sequence[int], tokens: Sequence[Token], sampling: Sampling) -> int:
    """Return the number of first tokens of a text that rounding cannot change.

    Two ways to compute a logit differ by at most twice the limit of the golden vectors.
    """
    ids, sequence = _ids(tokens), tokens[0].sequence
    limit = 2 * read_golden(generator.bundle).limits.max_abs
    logits = generator.sequences().prefill(0, [*prompt, *ids[:-1]], all_logits=True)[len(prompt) - 1 :]
    margins = (sampling.margin(logits[at], prompt, ids[:at], sequence).logits for at in range(len(ids)))
    return next((at for at, margin in enumerate(margins) if margin <= limit), len(ids))


_REPETITIVE = [[7, 8, 9] * 5, [1, 2, 3, 4, 5, 1, 2], [20, 30] * 6 + [21], [50]]


@pytest.mark.parametrize("name", ["molkv", "molkv-one-slot", "mole", "dense"])
def test_lookup_does_not_change_the_text(
    name: str, bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the tokens up to the first draw near a border. Some proposals are accepted, and some are refused."""
    generator = Generator(bundles(name), prefix_cache_bytes=0)
    compared = proposals = 0
    samplings = [Sampling(), *(Sampling(0.5, top_p=0.8, seed=seed) for seed in range(3))]
    samplings += [Sampling(0.7, repetition_penalty=1.1, frequency_penalty=0.1, seed=seed) for seed in range(3)]
    for sampling in samplings:
        # Up to the end of the context: 48 tokens are run, and the last token is not.
        options = {"sampling": sampling, "max_new_tokens": 60}
        plain = _written(generator, _REPETITIVE, **options)
        with monkeypatch.context() as patch:
            runs = _Runs(patch)
            found = _written(generator, _REPETITIVE, lookup=5, **options)
        proposals += len(runs.prefills) - len(_REPETITIVE)
        for prompt, with_lookup, without in zip(_REPETITIVE, found, plain, strict=True):
            assert len(prompt) + len(without) == 49
            certain = _certain(generator, prompt, without, sampling)
            compared += certain
            assert with_lookup[:certain] == without[:certain]
            assert len(with_lookup) == len(without)
    assert proposals > 20
    assert compared > 700


def test_lookup_keeps_stops_and_limits(generator: Generator) -> None:
    """A token that ends a text may be any of the tokens that a call returns."""
    prompt, sampling = [7, 8, 9] * 5, Sampling(logit_bias={7: 25, 8: 25, 9: 25, 33: 22}, seed=1)
    [tokens] = _written(generator, [prompt], sampling=sampling, max_new_tokens=24)
    assert _certain(generator, prompt, tokens, sampling) == 24
    for count in range(1, 25):
        for lookup in (1, 4, 30):
            found = _written(generator, [prompt], sampling=sampling, max_new_tokens=count, lookup=lookup)
            assert _ids(found[0]) == _ids(tokens)[:count]
            assert [token.finish for token in found[0]] == [None] * (count - 1) + ["length"]
    for stop_id in set(_ids(tokens)):
        found = _written(generator, [prompt], sampling=sampling, max_new_tokens=24, lookup=4, stop_ids=[stop_id])
        wanted = _ids(tokens)[: _ids(tokens).index(stop_id) + 1]
        assert _ids(found[0]) == wanted
        assert [token.finish for token in found[0]] == [None] * (len(wanted) - 1) + ["stop"]


def test_lookup_returns_the_logprobs_of_each_token(generator: Generator) -> None:
    prompts = [[7, 8, 9] * 5, [20, 30] * 6]
    options: dict[str, Any] = {"sampling": Sampling(), "max_new_tokens": 20, "logprobs": 3}
    for found, wanted in zip(
        _written(generator, prompts, lookup=6, **options), _written(generator, prompts, **options), strict=True
    ):
        assert _ids(found) == _ids(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [each.logprob for each in one.best] == pytest.approx([each.logprob for each in other.best], abs=1e-4)


_CODE = "self.a = a\nself.b = b\nself.c = c\nself.d"


def test_lookup_needs_fewer_calls_for_repetitive_text(
    stdlib_mini_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trained model repeats code. Stop strings end the same text at the same place."""
    generator = Generator(stdlib_mini_bundle, prefix_cache_bytes=0)
    [prompt] = generator.encode([_CODE])
    calls, run = list[int](), BoundCall.run
    monkeypatch.setattr(BoundCall, "run", lambda call: (calls.append(1), run(call))[1])
    [plain] = generator.complete([_CODE], max_new_tokens=40, stop_ids=[])
    without = len(calls)
    [found] = generator.complete([_CODE], max_new_tokens=40, stop_ids=[], lookup=8)
    assert _certain(generator, prompt, plain.tokens, Sampling()) == 40
    assert found.text == plain.text
    assert _ids(found.tokens) == _ids(plain.tokens)
    assert len(calls) - without < without * 2 / 3
    for start in range(0, len(plain.text) - 6, 9):
        string = plain.text[start : start + 6]
        results = [
            generator.complete([_CODE], max_new_tokens=40, stop_ids=[], stop=[string], lookup=lookup)[0]
            for lookup in (0, 8)
        ]
        assert [result.text for result in results] == [plain.text[: plain.text.index(string)]] * 2
        assert [result.finish for result in results] == ["stop"] * 2
        assert _ids(results[0].tokens) == _ids(results[1].tokens)


def test_text_without_repetition_needs_the_same_calls(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each next token is determined by a bias on ids that have not occurred yet."""
    runs, prompts = _Runs(monkeypatch), [list(range(10)), list(range(20))]
    sampling = Sampling(
        frequency_penalty=2, presence_penalty=2, repetition_penalty=100, logit_bias=dict.fromkeys(range(97), 1000.0)
    )
    counts = []
    for lookup in (0, 8):
        texts = _written(generator, prompts, max_new_tokens=20, sampling=sampling, lookup=lookup)
        ids = [*prompts[1], *_ids(texts[1])]
        assert len(set(ids)) == len(ids)
        counts.append((runs.decodes, len(runs.prefills)))
        runs.decodes, runs.prefills = 0, []
    assert counts == [(19, 2), (19, 2)]


def test_lookup_is_for_the_profile_cpu(bundles: Callable[..., Path]) -> None:
    generator = Generator(bundles("molkv", profiles=["coreml"], graph=GraphOptions(chunk_lengths=(4,))))
    message = "lookup: found 5, expected 0 for profile coreml, whose graphs return the logits of one position"
    with pytest.raises(RequestError, match=message):
        generator.stream([[1]], lookup=5)
    with pytest.raises(RequestError, match=message):
        generator.session().stream([1], lookup=5)
    assert len(list(generator.stream([[1]], lookup=0, max_new_tokens=2))) == 2


@pytest.mark.parametrize("lookup", [-1, 257, 1.5, None, True])
def test_an_impossible_lookup_is_refused(generator: Generator, lookup: Any) -> None:
    with pytest.raises(RequestError, match=r"lookup: found .*, expected (an integer, )?0 to 256"):
        generator.stream([[1]], lookup=lookup)
    assert len(list(generator.stream([[1, 2] * 8], lookup=256, max_new_tokens=40))) == 33
