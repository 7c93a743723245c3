"""Generation: batches, stop tokens, the end of the context, streamed text."""

from __future__ import annotations

import gc
import logging
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from molkv_bundle import ProviderError, RequestError
from molkv_export.commands import cli
from molkv_export.corpus import standard_library
from molkv_runtime import BoundCall, ExpertStore, Generator, Sampling, Sequences, Target
from tests.manifests import edit_manifest
from tests.models import STDLIB_MINI, random_model
from tests.recording import record

ROOT = Path(__file__).parents[2]


def _written(generator: Generator, prompts: list[list[int]], **options: object) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in prompts]
    for token in generator.stream(prompts, **options):  # type: ignore[arg-type]
        texts[token.sequence].append(token.id)
    return texts


def test_greedy_tokens_are_those_of_the_reference_model_token_by_token(generator: Generator) -> None:
    """Compare with a simple loop: run PyTorch on all tokens so far and append the likeliest token."""
    model, ids = random_model(generator.config), [5, 60, 33]
    for _ in range(15):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert _written(generator, [ids[:3]], max_new_tokens=15) == [ids[3:]]


@pytest.mark.parametrize("name", ["molkv", "molkv-one-slot", "mole", "dense"])
def test_a_batch_of_different_lengths_gives_what_each_prompt_gives_alone(
    name: str, bundles: Callable[..., Path]
) -> None:
    generator = Generator(bundles(name))
    prompts = [[1], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15, 16, 17]]
    alone = [_written(generator, [prompt], max_new_tokens=12)[0] for prompt in prompts]
    assert _written(generator, prompts, max_new_tokens=12) == alone


def test_a_sequence_ends_with_a_stop_token_and_the_others_go_on(generator: Generator) -> None:
    prompts = [[1, 2, 3], [40, 50]]
    free = _written(generator, prompts, max_new_tokens=10)
    stop = free[0][3]
    assert stop not in free[1]
    stopped = list(generator.stream(prompts, max_new_tokens=10, stop_ids=frozenset([stop])))
    first = [token for token in stopped if token.sequence == 0]
    assert [token.id for token in first] == free[0][: free[0].index(stop) + 1]
    assert [token.finish for token in first][-1] == "stop"
    assert [token.id for token in stopped if token.sequence == 1] == free[1]


def test_the_logged_speed_of_decode_counts_only_decode(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Use a clock on which a prefill takes 4 seconds, a decode step 2, and the caller 100 for each token."""
    clock = [0.0]

    def slow(call: Any, seconds: float) -> Any:
        def slowed(*arguments: Any) -> Any:
            clock[0] += seconds
            return call(*arguments)

        return slowed

    monkeypatch.setattr("molkv_runtime.continuation.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Sequences, "prefill", slow(Sequences.prefill, 4))
    monkeypatch.setattr(Sequences, "decode", slow(Sequences.decode, 2))
    caplog.set_level(logging.INFO, "molkv_runtime.continuation")
    stop = _written(generator, [[1, 2, 3]], max_new_tokens=1)[0][0]
    assert caplog.messages == ["prefill: 3 tokens in 4.000 s, 0.8 tokens/s, 0 tokens reused"]  # no decode step
    caplog.clear()
    for _ in generator.stream([[1, 2, 3], [40]], max_new_tokens=4, stop_ids=frozenset([stop])):
        clock[0] += 100
    # The first sequence ends at once. Three decode steps write the last tokens of the second one.
    assert caplog.messages[-1] == "decode: 3 tokens in 6.000 s, 0.5 tokens/s, 3 steps"


def test_generation_ends_at_the_context(generator: Generator) -> None:
    context = generator.config.max_position_embeddings
    prompts = [list(range(40)), [1]]
    tokens = list(generator.stream(prompts, max_new_tokens=1000))
    lengths = [sum(token.sequence == index for token in tokens) for index in range(2)]
    # The last token is generated, but does not enter the KV cache.
    assert lengths == [context - 40 + 1, context]
    assert tokens[-1].finish == "length"
    full = list(generator.stream([list(range(context))], max_new_tokens=5))
    assert len(full) == 1


def test_the_same_seed_draws_the_same_text_and_another_seed_another(generator: Generator) -> None:
    def draw(seed: int) -> list[list[int]]:
        return _written(generator, [[1, 2], [3]], max_new_tokens=20, sampling=Sampling(temperature=2.0, seed=seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_draw_depends_on_the_prompt_and_the_generated_tokens(generator: Generator) -> None:
    """Compare with a simple loop: run each prompt alone, and pass all ids so far to each choice."""
    sampling = Sampling(
        1.5, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=1, logit_bias={7: 3}, seed=4
    )
    prompts, expected = [[1, 2, 2], [3], [4] * 9], []
    for index, prompt in enumerate(prompts):
        state, written = generator.sequences(), list[int]()
        logits = state.prefill(0, prompt)
        for _ in range(20):
            written.append(sampling.choose(logits[0], prompt, written, index))
            logits = state.decode(written[-1:])
        expected.append(written)
    assert _written(generator, prompts, max_new_tokens=20, sampling=sampling) == expected
    with pytest.raises(RequestError, match="logit_bias: found token id 97, expected 0 to 96"):
        generator.stream([[1]], sampling=Sampling(logit_bias={97: 1.0}))


def test_the_trained_model_knows_python(stdlib_mini_bundle: Path) -> None:
    """Check its loss on held-out modules. Uniform guesses have 8.3 nats per token (ln 4096)."""
    generator = Generator(stdlib_mini_bundle)
    ids = generator.tokenizer.encode(standard_library().validation[0]).ids[:400]
    logits = generator.sequences().prefill(0, ids, all_logits=True)[:-1]
    losses = np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    assert losses.mean() < 5.5


def test_stop_tokens_come_from_the_bundle(stdlib_mini_bundle: Path) -> None:
    assert Generator(stdlib_mini_bundle).bundle.manifest.generation.eos_token_ids == (0,)
    assert (STDLIB_MINI / "generation_config.json").exists()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts: found an empty list, expected a list of prompts, at least one"),
        ([[1], []], "prompt 2 of 2 has 0 tokens, expected 1 to 48"),
        ([list(range(49))], "the prompt has 49 tokens, expected 1 to 48"),
        ([[1, 97]], "token id 97 is outside the vocabulary, expected 0 to 96"),
        ([[-1]], "token id -1 is outside the vocabulary, expected 0 to 96"),
    ],
)
def test_impossible_prompts_are_refused(generator: Generator, prompts: list[list[int]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        list(generator.stream(prompts))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("def ", "prompts: found str, expected a list of prompts"),
        (5, "prompts: found int, expected a list of prompts"),
        (np.array(5), "prompts: found ndarray, expected a list of prompts"),
        ([1, 2], "a prompt: found int, expected a list of token ids"),
        (["def "], "a prompt: found str, expected a list of token ids"),
        ([[[1, 2]]], r"a prompt: found an array of shape \[1, 2\], expected a list"),
        ([[1, [2, 3]]], "a prompt: expected a list of token ids"),
        ([[1.0]], "token ids have dtype float64, expected integers"),
        ([[2**70]], "token ids have dtype object, expected integers"),
        ([[True]], "token ids have dtype bool, expected integers"),
        ([None], "a prompt: found NoneType, expected a list of token ids"),
    ],
)
def test_arguments_that_are_not_a_list_of_prompts_are_refused(generator: Generator, prompts: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        generator.stream(prompts)


def test_arrays_are_prompts(generator: Generator) -> None:
    prompts = [[1, 2, 3], [40, 50, 60]]
    wanted = list(generator.stream(prompts, max_new_tokens=4))
    for dtype in (np.int64, np.int32, np.uint8):
        arrays = np.array(prompts, dtype)
        assert list(generator.stream(arrays, max_new_tokens=4)) == wanted
        assert list(generator.stream(list(arrays), max_new_tokens=np.int64(4))) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, seed=1)])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_the_error_for_nan_or_infinite_logits_names_the_position(
    generator: Generator, sampling: Sampling, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Sequences.decode

    def broken_decode(state: Sequences, *arguments: Any) -> Any:
        logits = decode(state, *arguments)
        if state.lengths[1] == 5:
            logits[1, 33] = wrong
        return logits

    monkeypatch.setattr(Sequences, "decode", broken_decode)
    tokens = generator.stream([[1], [2, 3]], max_new_tokens=10, sampling=sampling)
    with pytest.raises(ProviderError, match=rf"position 5 of sequence 1: the logit of token id 33 is {wrong}"):
        list(tokens)


def test_impossible_options_are_refused(generator: Generator) -> None:
    for count in (None, 1.5, "3", True):
        with pytest.raises(RequestError, match=f"max_new_tokens: found {count!r}, expected (an integer, )?1 or more"):
            generator.stream([[1]], max_new_tokens=count)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="stop_ids: found int, expected a list of token ids"):
        generator.stream([[1]], stop_ids=1)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="sampling: found a str, expected a Sampling"):
        generator.stream([[1]], sampling="greedy")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="max_new_tokens: found 0, expected 1 or more"):
        generator.stream([[1]], max_new_tokens=0)
    with pytest.raises(RequestError, match="max_length: found 49, expected 1 to 48"):
        generator.sequences(max_length=49)
    with pytest.raises(RequestError, match="batch_size: found 0"):
        generator.sequences(batch_size=0)


def test_the_graph_writes_into_the_caches_of_the_host(generator: Generator) -> None:
    recorder = record(generator)
    state = generator.sequences()
    state.prefill(0, [1, 2, 3])
    first = state.decode([4])
    assert np.shares_memory(first, state.decode([5]))
    decode_step = recorder.bound[0].inputs
    caches = [array for name, array in decode_step.items() if name.startswith("past_key_values.")]
    assert len(caches) == 2 * generator.config.num_hidden_layers
    for cache in caches:
        filled = cache[0].any(axis=(0, 2))
        assert filled.tolist() == [True] * 5 + [False] * 43


def test_wrong_arguments_change_nothing(generator: Generator) -> None:
    state = generator.sequences(2)
    for call in (
        lambda: state.decode([5]),
        lambda: state.prefill(2, [1]),
        lambda: state.prefill(-1, [1]),
        lambda: state.prefill(0, [1.5]),
        lambda: state.prefill(0, [*range(20), 97]),
        lambda: state.prefill("0", [1]),  # type: ignore[arg-type]
        lambda: state.prefill(0, [[1]]),
        lambda: state.decode([1, 2], [True]),  # type: ignore[arg-type]
        lambda: state.decode([1, 2], True),  # type: ignore[arg-type]
        lambda: state.decode([1, 2], [[True], [False]]),  # type: ignore[arg-type]
        lambda: state.decode([1, 2], [1, 0]),  # type: ignore[arg-type]
    ):
        with pytest.raises(RequestError):
            call()
    assert state.lengths.tolist() == [0, 0]


def test_threads_beyond_the_cores_are_refused(bundles: Callable[..., Path]) -> None:
    for threads in (0, -1, 10**9):
        with pytest.raises(RequestError, match=rf"threads: found {threads}, expected 1 to \d+ \(the cores"):
            Generator(bundles("molkv"), target=Target(threads=threads))
    assert Generator(bundles("molkv"), target=Target(threads=1))


def test_closed_generators_leave_no_open_files(bundles: Callable[..., Path]) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    Generator(bundles("molkv"))
    gc.collect()
    before = opened()
    for _ in range(3):
        Generator(bundles("molkv"))
    gc.collect()
    assert opened() == before


@pytest.mark.parametrize("name", ["molkv", "mole"])
def test_the_next_chunk_is_read_before_the_graph_runs_on_the_current_one(
    name: str, bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = Generator(bundles(name)).sequences(prefill_chunk=16)
    happened: list[str] = []
    start_gather, run = ExpertStore.start_gather, BoundCall.run

    def noted_gather(store: ExpertStore, ids: Any, out: Any) -> Any:
        happened.append(f"read {len(ids)}")
        return start_gather(store, ids, out)

    def noted_run(call: BoundCall) -> None:
        happened.append("run")
        run(call)

    monkeypatch.setattr(ExpertStore, "start_gather", noted_gather)
    monkeypatch.setattr(BoundCall, "run", noted_run)
    sequences.prefill(0, list(range(44)))
    reads = [event for event in happened if event != "run"]
    assert happened == [reads[0], *(event for read in reads[1:] for event in (read, "run")), "run"]
    assert len(reads) >= 3


def test_generation_runs_the_files_that_the_architecture_lists(stdlib_mini_bundle: Path) -> None:
    """Compare the files that run after the state is made with `docs/architecture.md`, "From a prompt to text"."""
    pieces = Generator(stdlib_mini_bundle).text("def ", max_new_tokens=8)
    passed: set[str] = set()

    def note(frame: FrameType, _event: str, _argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if "runtimes" in path.parts:
            passed.add(path.name)

    sys.setprofile(note)
    threading.setprofile(note)
    try:
        assert "".join(pieces)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    way = ROOT.joinpath("docs", "architecture.md").read_text().split("## From a prompt to text")[1].split("##")[0]
    listed = set(re.findall(r"^    (?:commands/)?(\w+\.py) ", way, re.MULTILINE))
    assert passed - {"checks.py", "prefix_cache.py"} == listed - {"run.py"}
    assert len(listed) <= 12


def test_the_sampling_of_the_bundle_is_the_default(stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(stdlib_mini_bundle, tmp_path / "bundle")
    edit_manifest(bundle, lambda m: m["generation"]["sampling"].update(temperature=0.9, top_k=20))
    said, silent = Generator(bundle), Generator(stdlib_mini_bundle)
    chosen = Sampling(temperature=0.9, top_k=20)
    assert (said.default_sampling, silent.default_sampling) == (chosen, Sampling())

    def text(generator: Generator, sampling: Sampling | None = None) -> str:
        return "".join(generator.text("def ", max_new_tokens=24, sampling=sampling))

    assert text(said) == text(silent, chosen) != text(silent) == text(said, Sampling())
    run = CliRunner().invoke(cli, ["run", str(bundle), "--prompt", "def ", "--max-new-tokens", "24"])
    assert run.output == f"def {text(said)}\n"
    run = CliRunner().invoke(cli, ["run", str(bundle), "--prompt", "def ", "--temperature", "0", "--top-k", "0"])
    assert run.output.startswith(f"def {text(silent)}")
