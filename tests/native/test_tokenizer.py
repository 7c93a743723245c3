"""The native tokenizer gives the same ids, texts and pieces of text as Hugging Face's tokenizers and the Python driver.

The tests need the program `tokenize` (runtimes/native/tests/tokenize.cpp). Its build folder is in the environment
variable MOLKV_NATIVE_BUILD.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.programs import native_program
from tests.native.tokenizer_comparison import FEW, MANY, compare_kind
from tests.native.tokenizers_of_all_kinds import KINDS


@pytest.fixture(scope="session")
def program() -> Path:
    return native_program("tokenize")


@pytest.mark.excerpt
@pytest.mark.parametrize("kind", KINDS)
def test_native_tokenizer_equals_the_library(kind: str, program: Path, tmp_path: Path) -> None:
    compare_kind(kind, FEW, [program], tmp_path)


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_native_tokenizer_equals_the_library_in_many_texts(kind: str, program: Path, tmp_path: Path) -> None:
    compare_kind(kind, MANY, [program], tmp_path)
