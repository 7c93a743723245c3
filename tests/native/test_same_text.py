"""The native driver generates the same token ids and the same text as the Python driver.

Both drivers pass the same inputs to the same library of ONNX Runtime, in calls of the same lengths, and sampling is
defined to the bit. So their logits are equal, and with them all tokens. Cosines and sines are the exception: they are
computed by the C library here and by numpy there, and may be rounded to different float32 numbers. Then the last bits
of logits differ, and a draw near the border between two tokens may choose the other one (docs/bundle-format.md, "When
kernels differ"). The same is true if the drivers load libraries of different versions. If a test fails after such a
change, and the conformance suite passes, choose other seeds.

The tests need the tool `molkv` in the build folder of the environment variable MOLKV_NATIVE_BUILD.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from molkv_export import GraphOptions
from molkv_runtime import Generator, Sampling
from tests.native.programs import native_program

_PROMPTS = ["def ", "import os\n\n\nclass Reader:\n    def __init__(self, path):\n" * 6, "# é 你\n", "x"]

# options of the tool and of the Python driver's `complete`
_CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "greedy": (["--temperature=0"], {"sampling": Sampling()}),
    "seed 1": (["--temperature=0.8", "--seed=1"], {"sampling": Sampling(temperature=0.8, seed=1)}),
    "seed 2^64-1": (
        ["--temperature=1.3", "--top-p=0.9", f"--seed={2**64 - 1}"],
        {"sampling": Sampling(temperature=1.3, top_p=0.9, seed=2**64 - 1)},
    ),
    "filters": (
        ["--temperature=1", "--top-k=40", "--top-p=0.95", "--min-p=0.02", "--seed=7"],
        {"sampling": Sampling(temperature=1, top_k=40, top_p=0.95, min_p=0.02, seed=7)},
    ),
    "penalties": (
        ["--repetition-penalty=1.2", "--presence-penalty=0.5", "--frequency-penalty=-0.25"],
        {"sampling": Sampling(repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=-0.25)},
    ),
    "stop strings": (
        ["--temperature=0.9", "--seed=3", "--stop=self.", "--stop=\n\n", "--stop=:\n "],
        {"sampling": Sampling(temperature=0.9, seed=3), "stop": ["self.", "\n\n", ":\n "]},
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_native_text_equals_python_text(case: str, stdlib_mini_bundle: Path) -> None:
    _compare(stdlib_mini_bundle, _PROMPTS, *_CASES[case])


@pytest.mark.parametrize("prompt", _PROMPTS[:2])
def test_the_text_of_a_single_prompt_equals_python_text(prompt: str, stdlib_mini_bundle: Path) -> None:
    _compare(stdlib_mini_bundle, [prompt], *_CASES["seed 1"])


def test_native_text_equals_python_text_with_integers(bundles: Callable[..., Path]) -> None:
    graph = GraphOptions(dense_dtype="int4", block_size=32, kv_dtype="int8", window_dtype="int8")
    _compare(bundles("stdlib-mini", "int8", graph=graph), _PROMPTS, *_CASES["seed 1"])


def _compare(bundle: Path, prompts: list[str], arguments: list[str], options: dict[str, Any]) -> None:
    generator = Generator(bundle, prefix_cache_bytes=0)  # reuse would change the lengths of calls
    expected = [
        {"text": done.text, "tokens": [token.id for token in done.tokens], "finish": done.finish}
        for done in generator.complete(prompts, max_new_tokens=48, **options)
    ]
    found = _run(bundle, prompts, ["--max-new-tokens=48", *arguments])
    assert [{name: line[name] for name in ("text", "tokens", "finish")} for line in found] == expected
    assert [line["prompt"] for line in found] == prompts
    assert [line["timings"]["prompt_tokens"] for line in found] == [len(ids) for ids in generator.encode(prompts)]


def _run(bundle: Path, prompts: Sequence[str], arguments: Sequence[str]) -> list[dict[str, Any]]:
    tool = native_program("tokenize").parents[1] / "molkv"
    [library] = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    command = [tool, "run", bundle, "--json", *(f"--prompt={prompt}" for prompt in prompts), *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        encoding="utf-8",
        env={**os.environ, "MOLKV_ONNXRUNTIME": str(library)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
