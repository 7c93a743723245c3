"""Sampling: the tokens of the format's test vectors, their probabilities, and the margin of a choice."""

from __future__ import annotations

import json
import math
import random
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from molkv_bundle import Floats, ProviderError, RequestError
from molkv_runtime import Sampling
from molkv_runtime.sampling import exp64, threefry, total_weight, uniform
from runtimes.conformance.make import plain_sampling, sampling_vectors

VECTORS = json.loads(sampling_vectors.FILE.read_text(encoding="utf-8"))
LOGITS = np.log(np.array([0.05, 0.4, 0.3, 0.2, 0.05], np.float32))


def _floats(bits: list[str]) -> list[float]:
    return [struct.unpack(">d", bytes.fromhex(one))[0] for one in bits]


def _sampling(options: dict[str, Any]) -> Sampling:
    options = dict(options)
    if "seed" in options:
        options["seed"] = int(options["seed"])
    if "logit_bias" in options:
        options["logit_bias"] = {int(token): bias for token, bias in options["logit_bias"].items()}
    return Sampling(**options)


def test_the_vectors_are_those_that_their_script_makes() -> None:
    assert sampling_vectors.contents() == sampling_vectors.FILE.read_text(encoding="utf-8")
    assert sampling_vectors.FILE.stat().st_size < 300_000


def test_threefry_gives_the_published_answers() -> None:
    """Compare with `kat_vectors` of Random123, for threefry2x32 with 20 rounds."""
    ones = 0xFFFFFFFF
    assert threefry((0, 0), (0, 0)) == (0x6B200159, 0x99BA4EFE)
    assert threefry((ones, ones), (ones, ones)) == (0x1CB996FC, 0xBB002BE7)
    assert threefry((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)) == (0xC4923A9C, 0x483DF7A0)


def test_random_numbers_are_those_of_the_vectors() -> None:
    for case in VECTORS["threefry"]:
        key, counter, output = ([int(half, 16) for half in case[name]] for name in ("key", "counter", "output"))
        assert list(threefry((key[0], key[1]), (counter[0], counter[1]))) == output
    for case in VECTORS["uniform"]:
        assert [uniform(int(case["seed"]), case["sequence"], case["position"])] == _floats([case["u"]])


def test_exp64_gives_the_bits_of_the_vectors() -> None:
    y, expected = (np.array(_floats(list(column))) for column in zip(*VECTORS["exp64"], strict=True))
    np.testing.assert_array_equal(exp64(y).view(np.int64), expected.view(np.int64))
    np.testing.assert_array_equal(exp64(np.resize(y, 100_003)), np.resize(expected, 100_003))  # many blocks


def test_exp64_is_the_exponential_function() -> None:
    y = -np.random.default_rng(0).random(100_000) * 64
    np.testing.assert_allclose(exp64(y), np.exp(y), rtol=4e-16)  # each of them is within 2e-16
    assert exp64(np.array([0.0, -64.1, -1e46])).tolist() == [1, 0, 0]


def test_weights_are_summed_from_left_to_right() -> None:
    y = -np.random.default_rng(0).random(50_001) * 20
    expected = 0.0
    for weight in exp64(y).tolist():
        expected += weight
    assert total_weight(y) == expected != exp64(y).sum()


@pytest.mark.parametrize("index", range(len(VECTORS["cases"])))
def test_tokens_are_those_of_the_vectors(index: int) -> None:
    case = VECTORS["cases"][index]
    logits = np.array(sampling_vectors.numbers(VECTORS["logits"][case["logits"]]), np.float32)

    def choose() -> int:
        return _sampling(case["sampling"]).choose(logits, case["prompt"], case["generated"], case["sequence"])

    if "error" in case:
        with pytest.raises({"provider": ProviderError, "request": RequestError}[case["error"]]):
            choose()
    else:
        assert choose() == case["token"]


_OPTIONS = st.fixed_dictionaries(
    {"temperature": st.floats(0.01, 5) | st.sampled_from([0, 1e-6, 1.0, 1e6]), "seed": st.integers(0, 2**64 - 1)},
    optional={
        "top_k": st.integers(0, 60),
        "top_p": st.floats(0, 1, exclude_min=True) | st.sampled_from([0.25, 0.5, 0.75, 1 - 2**-53]),
        "min_p": st.floats(0, 1) | st.sampled_from([0.25, 1e-20]),
        "repetition_penalty": st.floats(0.01, 100) | st.just(1.1),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, 1), st.floats(-1e6, 1e6) | st.just(0.5)),
    },
)
_LOGITS = st.lists(st.integers(-20, 20).map(lambda number: number / 4) | st.floats(-1e3, 1e3, width=32), min_size=2)


@given(options=_OPTIONS, logits=_LOGITS, data=st.data())
def test_any_choice_is_that_of_the_plain_description(options: dict[str, Any], logits: list[float], data: Any) -> None:
    ids = st.lists(st.integers(0, len(logits) - 1), max_size=8)
    prompt, generated, sequence = data.draw(ids), data.draw(ids), data.draw(st.integers(0, 2**32 - 1))
    expected = plain_sampling.sample(logits, options, prompt, generated, sequence)
    assert _sampling(options).choose(np.array(logits, np.float32), prompt, generated, sequence) == expected


def test_large_vocabularies_are_sampled_as_the_plain_description_says() -> None:
    """Test vocabularies so large that only a part of them is sorted and summed."""
    choose = random.Random(0)
    for number in range(60):
        logits = np.random.default_rng(number).normal(0, choose.choice([0.1, 1, 4, 15]), 2000).astype(np.float32)
        if number % 3 == 0:
            logits = np.round(logits)
        options: dict[str, Any] = {
            "temperature": choose.choice([0.3, 1, 2]),
            "top_p": choose.choice([1, 1e-3, 0.5, 0.95, 0.999, 1 - 2**-53]),
            "top_k": choose.choice([0, 0, 1, 40, 1999, 2000, 2001]),
            "min_p": choose.choice([0, 0, 0.05, 1e-5]),
            "seed": number,
        }
        for position in range(1, 6):
            expected = plain_sampling.sample(logits.tolist(), options, [0] * position, [], 0)
            assert Sampling(**options).choose(logits, [0] * position) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.05, 0.4, 0.3, 0.2, 0.05]),
        ({"top_k": 2}, [0, 4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.71}, [0, 4 / 9, 3 / 9, 2 / 9, 0]),
        ({"top_p": 1e-9}, [0, 1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 3 / 7, 0, 0]),
        ({"min_p": 0.45}, [0, 4 / 9, 3 / 9, 2 / 9, 0]),
        ({"temperature": 0.5}, np.square([0.05, 0.4, 0.3, 0.2, 0.05]) / 0.295),
        ({"logit_bias": {0: math.log(8)}}, np.array([0.4, 0.4, 0.3, 0.2, 0.05]) / 1.35),
    ],
)
def test_draws_follow_the_probabilities(options: dict[str, Any], expected: list[float]) -> None:
    """Check chi-square. With 4 degrees of freedom it is above this bound once in 100,000 times."""
    sampling, positions = Sampling(**{"temperature": 1.0, "seed": 3} | options), 4_000 if options else 20_000
    prompt = np.zeros(positions, np.int64)
    drawn = [sampling.choose(LOGITS, prompt[:position]) for position in range(positions)]
    counts, wanted = np.bincount(drawn, minlength=5), np.array(expected) * positions
    assert not counts[wanted == 0].any()
    some = wanted > 0
    assert (np.square(counts[some] - wanted[some]) / wanted[some]).sum() < 28.5


def test_random_numbers_of_sequences_and_positions_are_independent() -> None:
    """Check that they are uniform and that neighbours are not correlated, within five standard deviations."""
    u = np.array([[uniform(7, sequence, position) for position in range(150)] for sequence in range(150)])
    n = u.size
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * n)
    assert np.square(np.bincount((u.ravel() * 64).astype(int), minlength=64) - n / 64).sum() / (n / 64) < 63 + 5 * 11.3
    for first, second in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u[1:, 1:], u[:-1, :-1])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / math.sqrt(first.size)


def test_a_random_number_on_a_border_draws_the_next_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molkv_runtime.sampling.uniform", lambda *_: 0.5)
    assert Sampling(temperature=1.0).choose(np.zeros(4, np.float32)) == 2


def test_a_choice_depends_on_its_own_sequence_and_position_only() -> None:
    sampling = Sampling(temperature=1.0, seed=5)
    assert sampling.choose(LOGITS, [1, 2], [3]) == sampling.choose(LOGITS, [9], [4, 1])
    assert len({sampling.choose(LOGITS, [1], sequence=sequence) for sequence in range(20)}) > 1
    assert len({sampling.choose(LOGITS, [1] * position) for position in range(20)}) > 1


def test_the_margin_of_a_greedy_choice_is_the_distance_to_the_second_best() -> None:
    logits = np.array([1, 3, 2.25], np.float32)
    assert Sampling().margin(logits) == (0.75, 0.375)
    assert Sampling(repetition_penalty=1.5).margin(logits, [1]) == (0.25, 0.25 / 3)
    assert Sampling().margin(logits[:1]).logits == math.inf


def test_the_margin_of_a_draw_is_the_distance_to_the_next_border() -> None:
    sampling = Sampling(temperature=1.0, seed=2)
    for position in range(50):
        borders = np.cumsum([0.05, 0.4, 0.3, 0.2])
        distance = np.abs(borders - uniform(2, 0, position)).min()
        assert sampling.margin(LOGITS, [0] * position).choice == pytest.approx(distance, abs=1e-6)
    assert Sampling(temperature=1.0, top_k=1).margin(LOGITS).choice == math.inf


def _hardest_moves(logits: Floats, by: float) -> list[Floats]:
    """Move logits by almost the margin: those below a border up and the others down, by id and by size."""
    size, moves = len(logits), []
    for places in (np.arange(size), np.argsort(np.argsort(logits))):
        for border in range(1, size):
            sign = np.where(places < border, 1, -1)
            moves += [(logits + 0.999 * by * each).astype(np.float32) for each in (sign, -sign)]
    return moves


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 3.0},
        {"temperature": 0.0, "repetition_penalty": 0.3, "presence_penalty": 1.0},
        {},
        {"temperature": 0.1},
        {"repetition_penalty": 3.0, "frequency_penalty": 0.5},
        {"top_k": 4},
        {"temperature": 3.0, "top_p": 0.8},
        {"temperature": 10.0, "top_p": 0.5},
        {"temperature": 3.0, "min_p": 0.2},
        {"temperature": 2.0, "top_k": 10, "top_p": 0.9, "min_p": 0.1, "logit_bias": {3: 2.0}},
    ],
)
def test_logits_that_move_by_less_than_the_margin_give_the_same_token(options: dict[str, Any]) -> None:
    random_numbers, tried = np.random.default_rng(1), 0
    for seed in range(60):
        sampling = Sampling(**{"temperature": 1.0, "seed": seed} | options)
        logits = random_numbers.normal(0, 2, 12).astype(np.float32)
        ids = np.arange(12)[:: random_numbers.choice([-1, 1])]
        by = sampling.margin(logits, ids[:6], ids[6:]).logits
        if by < 1e-4:  # float32 cannot move by so little
            continue
        tried += 1
        token = sampling.choose(logits, ids[:6], ids[6:])
        for moved in _hardest_moves(logits, by):
            assert sampling.choose(moved, ids[:6], ids[6:]) == token
    assert tried > 40


def test_logits_that_move_by_more_than_the_margin_often_give_another_token() -> None:
    """Check that the margin is tight.

    It is exact for greedy choices, and for draws with the border c at a half. For other draws it is up to
    4 c (1 - c) of the exact margin.
    """
    random_numbers, changed = np.random.default_rng(0), {0.0: 0, 1.0: 0}
    for seed in range(100):
        logits = random_numbers.normal(0, 2, 12).astype(np.float32)
        for temperature, factor in ((0.0, 1.01), (1.0, 3)):
            sampling = Sampling(temperature=temperature, seed=seed)
            moves = _hardest_moves(logits, factor * sampling.margin(logits).logits)
            changed[temperature] += any(sampling.choose(moved) != sampling.choose(logits) for moved in moves)
    assert changed[0.0] == 100
    assert changed[1.0] > 50


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": "0.5"},
        {"temperature": 10**400},
        {"temperature": None},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": True},
        {"top_k": 2.5},
        {"top_p": None},
        {"top_p": float("nan")},
        {"top_p": True},
        {"top_p": Fraction(1, 10**400)},
        {"min_p": None},
        {"min_p": Fraction(10**400)},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": "1"},
        {"logit_bias": None},
        {"logit_bias": [1, 2]},
        {"seed": None},
        {"seed": 1.0},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(options))}: found .* expected"):
        Sampling(**options)


def test_options_are_taken_as_numbers_of_binary64() -> None:
    """Check that numbers of any type are converted before they are checked, so that the checks hold."""
    found = Sampling(np.float32(0.5), np.int64(3), Fraction(1, 3), Fraction(1, 10**400), logit_bias={np.int64(2): 1})
    assert found == Sampling(0.5, 3, 1 / 3, 0.0, logit_bias={2: 1.0})
    assert {type(value) for value in (found.temperature, found.top_p, found.min_p, found.logit_bias[2])} == {float}
    assert type(found.top_k) is int
    assert found.choose(LOGITS) in range(5)


def test_an_invalid_bias_is_refused() -> None:
    for token in (1.5, -1, True):
        with pytest.raises(RequestError, match=rf"logit_bias: found token id {token}, expected .*0 to 2147483647"):
            Sampling(logit_bias={token: 1.0})  # type: ignore[dict-item]
    with pytest.raises(RequestError, match="logit_bias: found token id 3 with True, expected"):
        Sampling(logit_bias={3: True})
    with pytest.raises(RequestError, match=r"logit_bias: found token id 3 with nan, expected -1e\+06 to 1e\+06"):
        Sampling(logit_bias={3: math.nan})
    with pytest.raises(RequestError, match=r"seed: found 18446744073709551616, expected 0 to 18446744073709551615"):
        Sampling(seed=2**64)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    penalized = Sampling(repetition_penalty=2.0)
    with pytest.raises(RequestError, match=r"prompt: found token id 5, expected 0 to 4 \(the vocabulary\)"):
        penalized.choose(LOGITS, [5])
    with pytest.raises(RequestError, match="generated: found token id -1, expected 0 to 4"):
        penalized.choose(LOGITS, [0], [-1])
    with pytest.raises(RequestError, match="prompt: found dtype float64, expected token ids"):
        penalized.choose(LOGITS, [0.5])
    with pytest.raises(RequestError, match="logit_bias: found token id 7, expected 0 to 4"):
        Sampling(logit_bias={7: 1.0}).choose(LOGITS)


def test_choosing_a_token_does_not_change_the_logits() -> None:
    logits = LOGITS.copy()
    Sampling(temperature=0.5, repetition_penalty=2.0, logit_bias={0: 3.0}, top_p=0.5).choose(logits, [1], [2])
    np.testing.assert_array_equal(logits, LOGITS)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_nan_and_infinite_logits_are_refused(wrong: float) -> None:
    for sampling in (Sampling(), Sampling(temperature=1.0), Sampling(logit_bias={0: 1.0})):
        with pytest.raises(ProviderError, match=f"the logit of token id 3 is {wrong}, expected a finite number"):
            sampling.choose(np.array([1, 2, 3, wrong], np.float32))
