"""Sampling: the choice of the next token from logits, bit by bit as docs/bundle-format.md, "Sampling", defines it.

Drivers in other languages must get the same results, so a change here must not change any result. Sums are sequential.
numpy's exp, random numbers and pairwise sums are not used, since other languages do not have them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from molkv_bundle import ArgumentError, Floats, Ids, ProviderError, sampling_number, sampling_range
from molkv_runtime.checks import inside_vocabulary, token_ids, whole_number

Doubles = npt.NDArray[np.float64]

CUTOFF = -64.0  # tokens whose logit / temperature is further below the largest have weight 0
_LOG2_E, _LN2_HIGH, _LN2_LOW = map(float.fromhex, ("0x1.71547652b82fep+0", "0x1.62e42feep-1", "0x1.a39ef35793c76p-33"))
_COEFFICIENTS = (  # coefficients of r^0, r^1, ... in the polynomial for exp(r), |r| <= ln(2) / 2
    1.0,
    1.0,
    0.5,
    float.fromhex("0x1.5555555554eb5p-3"),
    float.fromhex("0x1.5555555553b0cp-5"),
    float.fromhex("0x1.11111112d2ae2p-7"),
    float.fromhex("0x1.6c16c179ff28ep-10"),
    float.fromhex("0x1.a019f7c5fd11ep-13"),
    float.fromhex("0x1.a019b39c36ee6p-16"),
    float.fromhex("0x1.71f4b150fbc5cp-19"),
    float.fromhex("0x1.28976591b6f1dp-22"),
    float.fromhex("0x1.8abb61a62f2a1p-26"),
)
_BLOCK = 16_384  # number of items that exp64 computes at a time; they fit into the processor's cache
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_WORD = 2**32 - 1


def _checked(name: str, value: object, what: str) -> float:
    """Return a parameter as a Python number. `what` is the text before the value in the message."""
    try:
        return sampling_number(name, value)
    except ValueError as error:
        raise ArgumentError(name, f"{what}{value!r:.80}", sampling_range(name)) from error


class Margin(NamedTuple):
    """The margin of a choice: the changes up to which the same token is chosen."""

    choice: float  # greedy: gap of the two largest adjusted logits; else distance from u to the nearest border
    logits: float  # the choice stays the same if every logit changes by less than this


@dataclass(frozen=True)
class Sampling:
    """The parameters of sampling. The default is greedy, without penalties.

    Args:
        temperature: 0 for greedy; else 1e-6 to 1e6.
        top_k: Keep the k most likely tokens; 0: off.
        top_p: Keep the most likely tokens until their total probability reaches this value; 1: off.
        min_p: Keep tokens whose probability is at least this fraction of the largest probability; 0: off.
        repetition_penalty: For all tokens in prompt and generated text, divide positive logits by this number, and
            multiply negative logits by it; 1: off.
        presence_penalty: Number to subtract from the logits of tokens in the generated text.
        frequency_penalty: Number to subtract from the logits of tokens in the generated text, once for each occurrence.
        logit_bias: Token id -> number to add to its logit.
        seed: Seed of the random numbers.

    Raises:
        ArgumentError: A parameter has an invalid value.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int = 0

    def __post_init__(self) -> None:
        given: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        biases = given.pop("logit_bias")
        if not isinstance(biases, Mapping):
            raise ArgumentError("logit_bias", repr(biases), "a dict of token ids and numbers")
        tokens = [whole_number("logit_bias", token, 0, most=2**31 - 1, what="token id ") for token in biases]
        checked: dict[str, Any] = {name: _checked(name, value, "") for name, value in given.items()}
        checked["logit_bias"] = {
            token: _checked("logit_bias", bias, f"token id {token} with ")
            for token, bias in zip(tokens, biases.values(), strict=True)
        }
        for name, value in checked.items():  # Python numbers, and a new dict, which the caller cannot change
            object.__setattr__(self, name, value)

    def choose(
        self, logits: Floats, prompt: npt.ArrayLike = (), generated: npt.ArrayLike = (), sequence: int = 0
    ) -> int:
        """Return the next token. The result depends only on the parameters and these arguments.

        Args:
            logits: float32 [vocab_size].
            prompt: Token ids of the prompt.
            generated: Token ids that follow the prompt. The position of the new token is the number of ids in both.
            sequence: Index of the prompt in its batch. It selects the random numbers, so equal prompts in a batch can
                give different texts.

        Raises:
            ProviderError: A logit is NaN or infinite.
            RequestError: An id in prompt, generated or logit_bias is outside the vocabulary.
        """
        before, after = token_ids("prompt", prompt), token_ids("generated", generated)
        adjusted = self._adjusted(logits, before, after)
        if self.temperature == 0:
            return int(adjusted.argmax())
        ids, sums = self._candidates(self._scaled(adjusted))
        u = uniform(self.seed, sequence, len(before) + len(after))
        place = int(np.searchsorted(sums, u * float(sums[-1]), side="right"))
        return place if ids is None else int(ids[place])

    def margin(
        self, logits: Floats, prompt: npt.ArrayLike = (), generated: npt.ArrayLike = (), sequence: int = 0
    ) -> Margin:
        """Return the margin of the choice of `choose`, which has the same arguments and errors.

        Two kernels whose logits differ by less than `Margin.logits` give the same token ("When kernels differ" in
        docs/bundle-format.md explains why). `Margin.logits` is a lower bound: larger differences often change no token.
        """
        before, after = token_ids("prompt", prompt), token_ids("generated", generated)
        adjusted = self._adjusted(logits, before, after)
        slope = max(self.repetition_penalty, 1 / self.repetition_penalty)
        if self.temperature == 0:
            gap = float(np.diff(np.sort(adjusted.astype(np.float64))[-2:]).sum()) if len(adjusted) > 1 else math.inf
            return Margin(gap, gap / (2 * slope))
        scaled = self._scaled(adjusted)
        _, sums = self._candidates(scaled)
        u = uniform(self.seed, sequence, len(before) + len(after))
        choice = float(np.abs(sums[:-1] / sums[-1] - u).min(initial=math.inf))
        # The limit 8 keeps the weights of tokens below the cutoff negligible. 1e-9 allows for the rounding of sums.
        room = min([8.0, 2 * choice, *self._room_of_filters(scaled)]) - 1e-9
        return Margin(choice, max(room, 0.0) * self.temperature / slope)

    def _adjusted(self, logits: Floats, prompt: npt.NDArray[Any], generated: npt.NDArray[Any]) -> Floats | Doubles:
        """Return logits after bias and penalties, or the same array if there are no bias and penalties."""
        if not np.isfinite(logits).all():
            wrong = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise ProviderError(
                f"the logit of token id {wrong} is {logits[wrong]}, expected a finite number; the weights are damaged "
                "or the provider computes wrong numbers: see `molkv-export selftest`"
            )
        repetition, counted = self.repetition_penalty != 1, self.presence_penalty != 0 or self.frequency_penalty != 0
        if not (self.logit_bias or repetition or counted):
            return logits
        size, x = len(logits), logits.astype(np.float64)
        if self.logit_bias:
            ids = inside_vocabulary("logit_bias", np.fromiter(self.logit_bias, np.int64), size)
            x[ids] += np.fromiter(self.logit_bias.values(), np.float64)
        prompt, generated = inside_vocabulary("prompt", prompt, size), inside_vocabulary("generated", generated, size)
        if repetition:
            there = np.zeros(size, bool)
            there[prompt] = there[generated] = True
            ids = np.flatnonzero(there)
            penalty = self.repetition_penalty
            x[ids] = np.where(x[ids] > 0, x[ids] / penalty, x[ids] * penalty)
        if counted and generated.size:
            counts = np.bincount(generated)
            ids = np.flatnonzero(counts)
            x[ids] = (x[ids] - self.frequency_penalty * counts[ids]) - self.presence_penalty
        return x

    def _scaled(self, adjusted: Floats | Doubles) -> Doubles:
        scaled = adjusted.astype(np.float64)
        scaled -= scaled.max()
        scaled /= self.temperature
        return scaled

    def _candidates(self, scaled: Doubles) -> tuple[Ids | None, Doubles]:
        """Return the ids that pass the filters, ascending (None: all), and the cumulative sums of their weights."""
        ids, y = None, scaled
        if 0 < self.top_k < len(scaled):
            place = len(scaled) - self.top_k
            ids = _largest(scaled, float(np.partition(scaled, place)[place]), self.top_k)
            y = scaled[ids]
        least = CUTOFF
        if self.min_p and self.top_p == 1:  # skip tokens far below min_p early; the exact comparison follows
            least = max(least, math.log(self.min_p) - 1e-6)
        if np.count_nonzero(y >= least) < len(y) // 2:
            ids, y = _narrowed(ids, y, np.flatnonzero(y >= least))
        if self.top_p < 1:
            ids, y = _narrowed(ids, y, _nucleus(y, self.top_p))
        weights = exp64(y)
        if self.min_p:
            ids, weights = _narrowed(ids, weights, np.flatnonzero(weights >= self.min_p))
        return ids, np.cumsum(weights, out=weights)

    def _room_of_filters(self, scaled: Doubles) -> list[float]:
        """Return limits: if every scaled logit changes by less than all of them, the same tokens pass the filters."""
        y, room = np.sort(scaled)[::-1], []
        if 0 < self.top_k < len(y):
            room.append(float(y[self.top_k - 1] - y[self.top_k]) / 2)
            y = y[: self.top_k]
        if self.top_p < 1:
            sums = np.cumsum(exp64(y))
            shares = sums / sums[-1]
            last = min(int(np.searchsorted(shares, self.top_p)), len(y) - 1)
            if last:
                room.append(2 * (self.top_p - float(shares[last - 1])))
            if last + 1 < len(y):
                room += [2 * (float(shares[last]) - self.top_p), float(y[last] - y[last + 1]) / 2]
            y = y[: last + 1]
        if self.min_p:
            room.append(float(np.abs(y[1:] - math.log(self.min_p)).min(initial=math.inf)) / 2)
        return room


def _narrowed(ids: Ids | None, values: Doubles, kept: Ids) -> tuple[Ids, Doubles]:
    return kept if ids is None else ids[kept], values[kept]


def _largest(y: Doubles, border: float, count: int) -> Ids:
    """Return the indices of the `count` largest numbers. `border` is the smallest of them. Ties: the first ones."""
    marks = y > border
    marks[np.flatnonzero(y == border)[: count - np.count_nonzero(marks)]] = True
    return np.flatnonzero(marks)


def _nucleus(y: Doubles, share: float) -> Ids:
    """Return the indices of the fewest largest numbers whose weights add up to at least `share` of all weights."""
    total = total_weight(y)
    # All numbers below the first `least` together have less than 1 - share of the weight, so the sum reaches the share
    # without them. If rounding prevents this, the second pass sorts all numbers.
    for least in (math.log(max(1 - share, 1e-16) * total / len(y)) - 1e-6, -math.inf):
        order = y[y >= least]
        order.sort()
        sums = exp64(order[::-1])
        reached = int(np.searchsorted(np.cumsum(sums, out=sums), share * total))
        if reached < len(order):
            return _largest(y, float(order[-1 - reached]), reached + 1)
    return np.arange(len(y))


def total_weight(y: Doubles) -> float:
    """Return the sum of exp64(y), from left to right, without memory for all weights at once."""
    total = 0.0
    for first in range(0, len(y), _BLOCK):
        weights = exp64(y[first : first + _BLOCK])
        weights[0] += total
        total = float(np.cumsum(weights, out=weights)[-1])
    return total


def exp64(y: Doubles) -> Doubles:
    """Return exp(y) for y <= 0 [n], bit by bit as the bundle format defines it; 0 below the cutoff."""
    out = np.empty_like(y)
    n, p = np.empty((2, min(len(y), _BLOCK)))
    for first in range(0, len(y), _BLOCK):
        part = y[first : first + _BLOCK]
        _exp_block(part, out[first : first + _BLOCK], n[: len(part)], p[: len(part)])
    return out


def _exp_block(y: Doubles, r: Doubles, n: Doubles, p: Doubles) -> None:
    """Write exp(y) to r; n and p are scratch memory."""
    np.maximum(y, CUTOFF, out=r)
    np.multiply(r, _LOG2_E, out=n)
    n += 0.5
    np.floor(n, out=n)
    np.multiply(n, _LN2_HIGH, out=p)
    r -= p
    np.multiply(n, _LN2_LOW, out=p)
    r -= p
    np.multiply(r, _COEFFICIENTS[-1], out=p)
    for coefficient in _COEFFICIENTS[-2:0:-1]:
        p += coefficient
        p *= r
    p += _COEFFICIENTS[0]
    exponents = n.astype(np.int64)
    exponents <<= 52  # adding this to the bits of p multiplies p by 2^n
    np.add(p.view(np.int64), exponents, out=r.view(np.int64))
    r[y < CUTOFF] = 0


def threefry(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Return two 32-bit words: Threefry-2x32 with 20 rounds, applied to a counter."""
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + keys[0]) & _WORD, (counter[1] + keys[1]) & _WORD
    for number in range(1, 6):
        for turn in _ROTATIONS[:4] if number % 2 else _ROTATIONS[4:]:
            x = (x + y) & _WORD
            y = ((y << turn | y >> (32 - turn)) & _WORD) ^ x
        x = (x + keys[number % 3]) & _WORD
        y = (y + keys[(number + 1) % 3] + number) & _WORD
    return x, y


def uniform(seed: int, sequence: int, position: int) -> float:
    """Return the random number of a position in a sequence: 0 <= u < 1, a multiple of 2^-53."""
    high, low = threefry((seed & _WORD, seed >> 32), (sequence, position))
    return ((high >> 5) * 2**26 + (low >> 6)) / 2**53
