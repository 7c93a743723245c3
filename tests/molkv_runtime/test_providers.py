"""Providers are presets; an absent one is an error that says what is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_runtime import Generator, ProviderError
from molkv_runtime.providers import resolve


def test_cpu_is_always_there() -> None:
    assert resolve("cpu").provider == "CPUExecutionProvider"


def test_an_absent_provider_is_an_error_that_lists_what_is_there(bundles: Callable[..., Path]) -> None:
    with pytest.raises(ProviderError, match=r"'coreml' \(CoreMLExecutionProvider\) is not in this .*; here: cpu"):
        Generator(bundles("molkv"), target="coreml")


def test_an_unknown_provider_is_an_error_that_lists_the_presets() -> None:
    with pytest.raises(ProviderError, match=r"'tpu' is unknown, expected one of cpu, .*; here: cpu"):
        resolve("tpu")
