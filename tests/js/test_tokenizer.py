"""The tokenizer of the JavaScript driver gives the same ids, texts and pieces as the library and the Python driver.

The tests need the program `tokenize.mjs` (runtimes/js/tests/conformance/tokenize.ts). `npm run build:tests` writes it
to the folder runtimes/js/.build, which the environment variable MOLKV_JS_BUILD names.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.js.programs import js_program
from tests.native.tokenizer_comparison import FEW, MANY, compare_kind
from tests.native.tokenizers_of_all_kinds import KINDS


@pytest.fixture(scope="session")
def program() -> Path:
    return js_program("tokenize.mjs")


@pytest.mark.parametrize("kind", KINDS)
def test_js_tokenizer_equals_the_library(kind: str, program: Path, tmp_path: Path) -> None:
    compare_kind(kind, FEW, ["node", program], tmp_path)


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_js_tokenizer_equals_the_library_in_many_texts(kind: str, program: Path, tmp_path: Path) -> None:
    compare_kind(kind, MANY, ["node", program], tmp_path)
