"""Conversations that grow, and saved sessions, compared with computing all tokens again."""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.sessions import in_turns, ratio, table
from molkv_bundle import Arrays, Bundle
from molkv_runtime import Generator, Target, Token

_NEW, _REPLY = 12, 16  # tokens of a new line, and of the reply to it


def conversations(bundles: dict[str, Path], length: int, runs: int, threads: int) -> str:
    """Return a table: the time to the first token with and without prefix reuse, and the time to copy a sequence."""
    rows = []
    for name, bundle in bundles.items():
        cached = Generator(bundle, target=Target(threads=threads))
        plain = Generator(bundle, graph=cached.graph, store=cached.store, prefix_cache_bytes=0)
        turns = [_conversation(cached, plain, length, seed) for seed in range(runs + 1)][1:]
        for turn, title in enumerate(("second call", "third call")):
            with_reuse, without = zip(*(run[turn] for run in turns), strict=True)
            rows.append(_row(name, title, with_reuse, without))
        copied, computed = _copy(plain, length, runs)
        rows.append(_row(name, f"`Sequences.copy` of {length:,} tokens", copied, computed))
    return table(("dense weights", "", "seconds", "seconds without", "ratio", "lowest ratio"), rows)


def _row(name: str, title: str, fast: tuple[float, ...], slow: tuple[float, ...]) -> list[str]:
    lowest = min(b / a for a, b in zip(fast, slow, strict=True))
    medians = [f"{statistics.median(seconds):.4f}" for seconds in (fast, slow)]
    return [name, title, *medians, f"{ratio(slow, fast):.1f}", f"{lowest:.1f}"]


def _conversation(cached: Generator, plain: Generator, length: int, seed: int) -> list[tuple[float, float]]:
    """Return the seconds to the first token with and without prefix reuse, of the second and third call."""
    random, vocab_size = np.random.default_rng(seed), cached.config.vocab_size
    text = random.integers(0, vocab_size, length).tolist()
    text += _first_token(cached, text)[1]
    seconds = []
    for _ in range(2):
        text += random.integers(0, vocab_size, _NEW).tolist()
        without, _ = _first_token(plain, text)
        with_reuse, reply = _first_token(cached, text)
        text += reply
        seconds.append((with_reuse, without))
    return seconds


def _first_token(generator: Generator, text: list[int]) -> tuple[float, list[int]]:
    """Generate a reply. Return the seconds to its first token, and its token ids."""
    start = time.perf_counter()
    stream: Iterator[Token] = generator.stream([text], max_new_tokens=_REPLY, stop_ids=[])
    first = next(stream)
    seconds = time.perf_counter() - start
    return seconds, [first.id, *(token.id for token in stream)]


def _copy(generator: Generator, length: int, runs: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the seconds to copy a sequence, and to compute it again."""
    ids = np.random.default_rng(0).integers(0, generator.config.vocab_size, length)
    state = generator.sequences(3, length + _REPLY)
    state.prefill(0, ids)

    def copy() -> float:
        state.reset(1)
        start = time.perf_counter()
        state.copy(1, state, 0, length)
        return time.perf_counter() - start

    def prefill() -> float:
        state.reset(2)
        start = time.perf_counter()
        state.prefill(2, ids)
        return time.perf_counter() - start

    seconds = in_turns({"copy": copy, "prefill": prefill}, runs)
    return tuple(seconds["copy"]), tuple(seconds["prefill"])


def saved_sessions(bundles: dict[str, Path], length: int, runs: int, threads: int) -> str:
    """Return a table: the time to save and restore a session, the parts of this time, and the time of prefill."""
    rows = []
    for name, bundle in bundles.items():
        with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
            rows.append([name, *_saved(bundle, Path(folder), length, runs, threads)])
    columns = "bytes", "save", "restore", "prefill", "prefill / restore", "SHA-256", "write, fsync", "read", "experts"
    return table(("format", *columns), rows)


def _saved(bundle: Path, folder: Path, length: int, runs: int, threads: int) -> list[str]:
    opened = Bundle(bundle)
    generator = Generator(opened, target=Target(threads=threads))
    ids = np.random.default_rng(0).integers(0, generator.config.vocab_size, length).tolist()
    session, file, copy = generator.session(), folder / "session", folder / "copy"
    list(session.stream(ids, max_new_tokens=1))
    session.save(file)
    contents, state = file.read_bytes(), generator.sequences(1, length)

    def nothing(arrays: Arrays) -> None:
        """Read no KV cache."""

    def write() -> None:
        with copy.open("wb") as out:
            out.write(contents)
            out.flush()
            os.fsync(out.fileno())

    def prefill() -> None:
        list(generator.session().stream(ids, max_new_tokens=1))

    def timed(action: Callable[[], object]) -> float:
        state.reset(0)
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    actions: dict[str, Callable[[], object]] = {
        "save": lambda: session.save(file),
        "restore": lambda: generator.restore(file),
        "prefill": prefill,
        "SHA-256": lambda: hashlib.sha256(contents).digest(),
        "write": write,
        "read": file.read_bytes,
        "experts": lambda: state.load(0, ids, nothing),
    }
    seconds = in_turns({name: partial(timed, action) for name, action in actions.items()}, runs)
    save, restore, computed, *parts = (f"{statistics.median(times):.3f}" for times in seconds.values())
    faster = f"{ratio(seconds['prefill'], seconds['restore']):.1f}"
    return [f"{len(contents) / 1e6:.1f} MB", save, restore, computed, faster, *parts]
