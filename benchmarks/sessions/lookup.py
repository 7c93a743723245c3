"""Prompt lookup: tokens a call, speed, and the acceptance that pays for a call of several positions."""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.sessions import in_turns, ratio, table
from benchmarks.sessions.texts import Text
from molkv_bundle import Arrays, Floats, Ids
from molkv_runtime import Call, Generator, Graph, Options, Sequences, Target

LOOKUPS = (2, 4, 8)
Array = npt.NDArray[Any]


class CountingGraph:
    """A graph that counts its calls."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self.calls = graph, 0

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> Call:
        """Bind buffers, see `Graph`."""
        return _Counted(self, self._graph.bind(length, inputs, outputs))


class _Counted:
    def __init__(self, graph: CountingGraph, call: Call) -> None:
        self._graph, self._call = graph, call

    def run(self) -> None:
        self._graph.calls += 1
        self._call.run()


class ScriptedGraph:
    """A graph that computes nothing. Its logits make greedy decoding write a given text."""

    def __init__(self, vocab_size: int) -> None:
        self.text: list[int] = []
        self._noise = np.random.default_rng(0).standard_normal(vocab_size, np.float32)

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> Call:  # noqa: ARG002
        """Bind buffers, see `Graph`."""
        return _Scripted(self, self._noise, inputs["seqlens_k"], outputs["logits"])


class _Scripted:
    def __init__(self, graph: ScriptedGraph, noise: Floats, last: Array, logits: Array) -> None:
        self._graph, self._noise, self._last, self._logits = graph, noise, last, logits

    def run(self) -> None:
        rows = self._logits[0]
        rows[...] = self._noise
        end = int(self._last[0]) + 2  # the index after the token that the last row chooses
        for row, token in zip(rows, self._graph.text[end - len(rows) : end], strict=False):
            row[token] = 100.0


def copied(generator: Generator, graph: ScriptedGraph, counted: CountingGraph, found: dict[str, list[Text]]) -> str:
    """Return a table: tokens a call if the model writes exactly the text."""
    rows = []
    for kind, own in found.items():
        cells = []
        for lookup in LOOKUPS:
            counted.calls = 0
            for text in own:
                graph.text = [*text.prompt, *text.answer]
                _generate(generator, text, lookup=lookup)
            cells.append(f"{_later_tokens(own) / (counted.calls - _prefills(own)):.2f}")
        rows.append([kind, *cells])
    return table(("tokens a call, if the model writes the text", *(f"k = {k}" for k in LOOKUPS)), rows)


def generated(generator: Generator, counted: CountingGraph, found: dict[str, list[Text]], runs: int) -> str:
    """Return a table: tokens a call and speed, with the text that the model writes."""
    rows = []
    for kind, own in found.items():
        plain = [_generate(generator, text) for text in own]
        cells, same = [], []
        seconds = in_turns({str(k): partial(_seconds, generator, own, k) for k in (0, *LOOKUPS)}, runs)
        for lookup in LOOKUPS:
            counted.calls = 0
            texts = [_generate(generator, text, lookup=lookup) for text in own]
            each = _later_tokens(own) / (counted.calls - _prefills(own))
            cells.append(f"{each:.2f}, x {ratio(seconds['0'], seconds[str(lookup)]):.2f}")
            same.append(sum(a == b for a, b in zip(plain, texts, strict=True)))
        rows.append([kind, *cells, f"{min(same)} of {len(own)}"])
    columns = "tokens a call, speed with lookup / without", *(f"k = {k}" for k in LOOKUPS), "same text"
    return table(columns, rows)


def _later_tokens(own: list[Text]) -> int:
    """Return the number of tokens after the first ones, which come from the calls for the prompts."""
    return sum(len(text.answer) - 1 for text in own)


def _prefills(own: list[Text]) -> int:
    """Return the number of calls for the prompts, which have at most 128 tokens in each call."""
    return sum(-(-len(text.prompt) // 128) for text in own)


def _generate(generator: Generator, text: Text, lookup: int = 0) -> list[int]:
    stream = generator.stream([text.prompt], max_new_tokens=len(text.answer), stop_ids=[], lookup=lookup)
    return [token.id for token in stream]


def _seconds(generator: Generator, own: list[Text], lookup: int) -> float:
    """Return the seconds to generate the texts, without their first tokens."""
    seconds = 0.0
    for text in own:
        stream = generator.stream([text.prompt], max_new_tokens=len(text.answer), stop_ids=[], lookup=lookup)
        next(stream)
        start = time.perf_counter()
        for _ in stream:
            pass
        seconds += time.perf_counter() - start
    return seconds


def cost_of_calls(bundles: dict[str, Path], context: int, runs: int, threads: int) -> str:
    """Return a table: the time of a call of k + 1 positions and a rewind, divided by the time of a decode step."""
    rows = []
    for name, bundle in bundles.items():
        state = Generator(bundle, target=Target(threads=threads)).sequences(1, context + 16)
        ids = np.random.default_rng(0).integers(0, 256, context + 16)
        state.prefill(0, ids[:context])
        seconds = in_turns({str(k): partial(_call, state, ids[context:][: k + 1]) for k in (0, *LOOKUPS)}, runs)
        step = seconds["0"]
        rows.append([name, f"{1e3 * statistics.median(step):.1f} ms"])
        rows[-1] += [f"{ratio(seconds[str(k)], step):.2f}" for k in LOOKUPS]
    return table(("dense weights", "decode step", *(f"k = {k}" for k in LOOKUPS)), rows)


def _call(state: Sequences, ids: Ids) -> float:
    """Return the seconds of a decode step (one id), or of a call that checks proposals which are all wrong."""
    length = int(state.lengths[0])
    start = time.perf_counter()
    if len(ids) == 1:
        state.decode(ids)
    else:
        state.prefill(0, ids, all_logits=True)
        state.rewind(0, length + 1)
    seconds = time.perf_counter() - start
    state.rewind(0, length)
    return seconds


def costs_of_options(
    generator: Generator, scripted: Generator, graph: ScriptedGraph, found: dict[str, list[Text]], runs: int
) -> str:
    """Return a table: the microseconds that each option adds to a token, where the graph takes no time.

    The text has no repetition, so prompt lookup proposes almost nothing.
    """
    [text, *_] = found["random tokens"]
    graph.text = [*text.prompt, *text.answer]
    base: Options = {"max_new_tokens": len(text.answer), "stop_ids": []}
    options: dict[str, tuple[Generator, Options]] = {
        "a decode step of stdlib-mini, with text": (generator, base),
        "without options and graph": (scripted, base),
        "4 stop strings": (scripted, {**base, "stop": ["\nclass ", "\ndef ", "<|end|>", "```"]}),
        "`lookup=8`, nothing found": (scripted, {**base, "lookup": 8}),
        "`logprobs=0`": (scripted, {**base, "logprobs": 0}),
        "`logprobs=5`": (scripted, {**base, "logprobs": 5}),
    }

    def run(used: Generator, wanted: Options) -> float:
        stream = used.session().stream(text.prompt, **wanted)
        next(stream)
        start = time.perf_counter()
        count = sum(1 for _ in stream)
        return 1e6 * (time.perf_counter() - start) / count

    spent = in_turns({name: partial(run, *option) for name, option in options.items()}, runs)
    step, plain, *_ = spent.values()
    rows = []
    for name, times in spent.items():
        of = statistics.median(times) if times is step or times is plain else _median_difference(times, plain)
        rows.append([name, f"{of:.0f}", f"{of / statistics.median(step):.1%}"])
    return table(("", "us a token", "share of a step"), rows)


def _median_difference(first: list[float], second: list[float]) -> float:
    return statistics.median(a - b for a, b in zip(first, second, strict=True))
