"""Files of expected logits with wrong tensors or of another format are refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from molkv_bundle import Bundle, RequestError
from molkv_export import validate
from molkv_export.parity.compared_texts import QUICK
from molkv_export.parity.expected import ExpectedLogits
from tests.models import CONFIGS
from tests.processes import run_cli

ROOT = Path(__file__).parents[3]


def _save(folder: Path, **tensors: Tensor) -> Path:
    path = folder / "expected.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


SMALL = {"input_ids": torch.arange(24).view(2, 12), "logits": torch.zeros(2, 12, 97)}
TOP = {
    "input_ids": SMALL["input_ids"],
    "top_ids": torch.arange(6).expand(2, 12, 6),
    "top_logits": torch.zeros(2, 12, 6),
}


def _with(tensors: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}


def _set(tensor: Tensor, index: tuple[int, ...], value: float) -> Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "nothing": ({}, "holds no tensors, expected input_ids and logits, or input_ids, top_ids and top_logits"),
    "no ids": (_with(SMALL, input_ids=None), "holds logits, expected input_ids and logits"),
    "no logits": (_with(SMALL, logits=None), "holds input_ids, expected input_ids and logits"),
    "half of the likeliest": (_with(TOP, top_ids=None), "holds input_ids, top_logits, expected"),
    "both forms": ({**SMALL, **TOP}, "holds input_ids, logits, top_ids, top_logits, expected"),
    "a mask": (_with(SMALL, attention_mask=torch.ones(2, 12)), "holds attention_mask, input_ids, logits, expected"),
    "ids that are floats": (_with(SMALL, input_ids=torch.ones(2, 12)), "input_ids has dtype F32, expected I32 or I64"),
    "logits in double": (_with(SMALL, logits=torch.zeros(2, 12, 97).double()), "logits has dtype F64, expected F32"),
    "ids of one text": (_with(SMALL, input_ids=torch.arange(12)), r"input_ids has shape \[12\], expected \[B, T\]"),
    "no text": (_with(SMALL, input_ids=torch.zeros(0, 12).long()), r"input_ids has shape \[0, 12\], expected \[B, T\]"),
    "one token": (_with(SMALL, input_ids=torch.zeros(2, 1).long()), "texts of 1 tokens, expected 10 to 48; shorter"),
    "less than two windows": (_with(SMALL, input_ids=torch.zeros(2, 9).long()), "9 tokens, expected 10 to 48; shorter"),
    "beyond the context": (_with(SMALL, input_ids=torch.zeros(2, 49).long()), "49 tokens, expected 10 to 48"),
    "another vocabulary": (
        _with(SMALL, logits=torch.zeros(2, 12, 96)),
        r"logits has shape \[2, 12, 96\], expected \[2, 12, 97\], since input_ids has shape \[2, 12\], and the "
        "vocabulary has 97 tokens",
    ),
    "logits shifted": (
        _with(SMALL, logits=torch.zeros(2, 11, 97)),
        r"logits has shape \[2, 11, 97\], expected \[2, 12, 97\]",
    ),
    "logits of one text": (
        _with(SMALL, logits=torch.zeros(12, 97)),
        r"logits has shape \[12, 97\], expected \[2, 12, 97\]",
    ),
    "ids too large": (
        _with(SMALL, input_ids=SMALL["input_ids"] + 80),
        "input_ids holds ids from 80 to 103, expected token ids from 0",
    ),
    "ids below 0": (
        _with(SMALL, input_ids=SMALL["input_ids"] - 100),
        "input_ids holds ids from -100 to -77, expected token ids",
    ),
    "a text twice": (_with(SMALL, input_ids=torch.zeros(2, 12).long()), "holds a text twice"),
    "NaN": (
        _with(SMALL, logits=_set(SMALL["logits"], (1, 3, 5), np.nan)),
        r"logits\[1, 3, 5\] is nan, expected a finite",
    ),
    "-inf": (
        _with(SMALL, logits=_set(SMALL["logits"], (0, 3, 5), -np.inf)),
        r"logits\[0, 3, 5\] is -inf, expected a fin",
    ),
    "NaN among the likeliest": (_with(TOP, top_logits=_set(TOP["top_logits"], (1, 3, 5), np.nan)), "is nan, expected"),
    "too few": (
        _with(TOP, top_ids=TOP["top_ids"][..., :4], top_logits=TOP["top_logits"][..., :4]),
        r"top_ids has shape \[2, 12, 4\], expected \[B, T, K\] with K from 5 to 97 \(vocab_size\)",
    ),
    "other numbers of ids and logits": (
        _with(TOP, top_logits=TOP["top_logits"][..., :5]),
        r"top_logits has shape \[2, 12, 5\], expected \[2, 12, 6\], since input_ids has shape \[2, 12\], and top_ids "
        "has 6 ids",
    ),
    "an id twice": (_with(TOP, top_ids=_set(TOP["top_ids"], (1, 7, 5), 2)), r"top_ids\[1, 7\] holds an id twice"),
    "a likeliest id too large": (
        _with(TOP, top_ids=TOP["top_ids"] + 95),
        "top_ids holds ids from 95 to 100, expected token ids",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_fit_the_model_is_an_error_of_one_line(name: str, tmp_path: Path) -> None:
    tensors, message = BAD[name]
    path = _save(tmp_path, **tensors)
    with pytest.raises(RequestError, match=message) as caught:
        ExpectedLogits(path, CONFIGS["molkv"])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_texts_that_are_too_short_for_a_sliding_window_are_an_error(tmp_path: Path) -> None:
    config = Bundle(ROOT / "runtimes" / "conformance" / "bundles" / "gemma4").config
    window = config.longest_window
    assert config.attended_positions == 0 < window
    path = _save(tmp_path, **{name: tensor[:, : window - 1] for name, tensor in SMALL.items()})
    why = f"shorter texts do not test a window of {window}"
    with pytest.raises(RequestError, match=f"texts of {window - 1} tokens, expected {2 * window} to .*; {why}$"):
        ExpectedLogits(path, config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be opened"),
        (b"", "is not a safetensors file"),
        (b"PK\x03\x04 a file of torch.save", "is not a safetensors file"),
        (b"\x02" + b"\0" * 7 + b"[]", "header is damaged"),
    ],
)
def test_a_file_of_another_format_is_an_error_of_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "expected").write_bytes(content)
    with pytest.raises(RequestError, match=rf"expected: .*{message}"):
        ExpectedLogits(tmp_path / "expected", CONFIGS["molkv"])
    with pytest.raises(RequestError, match=r"cannot be read at byte 0 \(Is a directory\)"):
        ExpectedLogits(tmp_path, CONFIGS["molkv"])


def test_options_that_choose_texts_are_refused(stdlib_mini_bundle: Path, tmp_path: Path) -> None:
    for name, value in (("scope", QUICK), ("text", tmp_path)):
        with pytest.raises(RequestError, match=f"{name}: found with --expected, expected without it: the file of"):
            validate(stdlib_mini_bundle, expected=tmp_path, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="with_bisection: found --expected, expected --checkpoint"):
        validate(stdlib_mini_bundle, expected=tmp_path, with_bisection=True)


def test_wrong_logits_exit_with_1_and_bad_input_is_an_error_of_one_line(
    bundles: Callable[..., Path], tmp_path: Path
) -> None:
    _save(tmp_path, **SMALL)
    command = ("validate", bundles("molkv"), "--expected", "expected.safetensors")
    done = run_cli(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "FAIL one-shot prefill (your own code): max abs" in done.stdout
    _save(tmp_path, **_with(SMALL, logits=None))
    done = run_cli(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: expected.safetensors: holds input_ids, expected input_ids and logits")
    assert done.stderr.count("\n") == 1
    done = run_cli(*command, "--quick", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --quick: found with --expected, expected without it")
