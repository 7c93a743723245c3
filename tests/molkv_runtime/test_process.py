"""Which processes and threads may use an open bundle."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_bundle import RequestError
from molkv_runtime import BoundCall, Generator

# The child ends with os._exit, as in multiprocessing. Else ONNX Runtime waits for threads that a fork does not copy.
_FORK = """
import os, sys
from molkv_bundle import RequestError
from molkv_runtime import Generator

generator = Generator(sys.argv[1])
list(generator.stream([[1, 2, 3]], max_new_tokens=3))
state = generator.sequences()
state.prefill(0, list(range(40)))
if os.fork() == 0:
    for use in (
        lambda: list(generator.stream([[1, 2, 3]], max_new_tokens=3)),
        lambda: state.prefill(0, [1, 2]),
        lambda: state.decode([1]),
        lambda: generator.store.gather(__import__("numpy").arange(0, 97, 2)),
    ):
        try:
            use()
        except RequestError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
print(len(list(generator.stream([[1, 2, 3]], max_new_tokens=3))), "in the parent")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_is_told_to_open_the_bundle_itself(bundles: Callable[..., Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORK, bundles("molkv")], capture_output=True, text=True, timeout=60, check=True
    )
    *refused, last = done.stdout.splitlines()
    assert [line.split()[1] for line in refused] == ["Generator", "Sequences", "Sequences", "ExpertStore"]
    assert all(
        "a fork without its threads" in line and "open the bundle in the process that uses it" in line
        for line in refused
    )
    assert last == "3 in the parent"


def test_open_objects_cannot_be_pickled_or_copied(generator: Generator) -> None:
    for thing in (generator, generator.sequences(), generator.store, generator.graph):
        for use in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(RequestError, match=f"a {type(thing).__name__} cannot be pickled or copied"):
                use(thing)


def test_two_threads_on_the_same_sequences_are_refused(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    state = generator.sequences()
    state.prefill(0, [1, 2])
    running, may_end = threading.Event(), threading.Event()
    run = BoundCall.run

    def slow_run(call: BoundCall) -> None:
        running.set()
        assert may_end.wait(30)
        run(call)

    monkeypatch.setattr(BoundCall, "run", slow_run)
    other = threading.Thread(target=lambda: state.decode([3]))
    other.start()
    assert running.wait(30)
    for use in (lambda: state.decode([4]), lambda: state.prefill(0, [4])):
        with pytest.raises(RequestError, match="in use by another thread"):
            use()
    may_end.set()
    other.join()
    assert state.lengths.tolist() == [3]
    state.decode([4])
    assert state.lengths.tolist() == [4]


def test_threads_share_a_generator(generator: Generator) -> None:
    prompts = [[index + 1, 2 * index + 1, 40] for index in range(8)]
    alone = [[token.id for token in generator.stream([prompt], max_new_tokens=20)] for prompt in prompts]
    found: dict[int, list[int]] = {}

    def write(index: int) -> None:
        found[index] = [token.id for token in generator.stream([prompts[index]], max_new_tokens=20)]

    threads = [threading.Thread(target=write, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(len(prompts))] == alone
