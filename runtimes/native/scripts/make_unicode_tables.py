"""Write src/unicode_tables.h: the character classes and the NFC data of Hugging Face's tokenizers library.

The library uses several versions of Unicode: one in the regular expressions of pre-tokenizers, one at the borders of
added tokens, and an older one for NFC. So this program asks the installed library about each code point. The values of
combining classes and the two parts of a decomposition come from Python's unicodedata. They are the same in all versions
of Unicode.

    python runtimes/native/scripts/make_unicode_tables.py [--check]
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

_TABLES = Path(__file__).parent.parent / "src" / "unicode_tables.h"
_CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
_HANGUL = range(0xAC00, 0xD7A4)  # Hangul syllables are computed, not looked up


def main() -> int:
    """Write the tables; with --check, return 1 if they would change."""
    text = _header()
    if "--check" in sys.argv:
        return int(_TABLES.read_text("utf-8") != text)
    _TABLES.write_text(text, "utf-8")
    return 0


def _header() -> str:
    decompositions = _decompositions()
    compose = normalizers.NFC().normalize_str
    compositions = sorted(
        (first, second, code)
        for code, first, second in decompositions
        if second and compose(chr(first) + chr(second)) == chr(code)
    )
    classes = "\n".join(
        f"inline constexpr CodeRange {name}[] = {{{_ranges(codes)}}};"
        for name, codes in [
            ("letter_ranges", _matches(r"\p{L}")),
            ("number_ranges", _matches(r"\p{N}")),
            ("space_ranges", _matches(r"\s")),
            ("word_ranges", _word_characters()),
        ]
    )
    return f"""// The character classes and NFC data of tokenizers {tokenizers.__version__}.
// Made by scripts/make_unicode_tables.py; do not edit.
// clang-format off
#pragma once

#include <cstdint>

namespace molkv::tables {{

struct CodeRange {{
    char32_t first, last;
}};

// Characters with the same canonical combining class, which is not 0.
struct CombiningRange {{
    char32_t first, last;
    std::uint8_t combining_class;
}};

// A character and its canonical decomposition; `second` is 0 if it is one character.
struct Decomposition {{
    char32_t code, first, second;
}};

// Two characters that NFC replaces by one.
struct Composition {{
    char32_t first, second, code;
}};

// NOLINTBEGIN(modernize-avoid-c-arrays): the compiler counts the rows
{classes}
inline constexpr CombiningRange combining_ranges[] = {{{_combining_ranges()}}};
inline constexpr Decomposition decompositions[] = {{{_rows(decompositions)}}};
inline constexpr Composition compositions[] = {{{_rows(compositions)}}};
// NOLINTEND(modernize-avoid-c-arrays)

}}  // namespace molkv::tables
"""


def _matches(pattern: str) -> list[int]:
    """Return the code points that a regular expression of the library matches."""
    kept = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    words = kept.pre_tokenize_str("".join(map(chr, _CODES)))
    return sorted(ord(character) for word, _ in words for character in word)


def _word_characters() -> list[int]:
    """Return the characters of words: an added token with `single_word` is not found before them."""
    tokenizer = Tokenizer(models.BPE(vocab={}, merges=[]))
    tokenizer.add_tokens([AddedToken("#", single_word=True, normalized=False)])
    encodings = tokenizer.encode_batch([f"#{chr(code)}" for code in _CODES])
    return [code for code, encoding in zip(_CODES, encodings, strict=True) if not encoding.ids]


def _decompositions() -> list[tuple[int, int, int]]:
    decompose = normalizers.NFD().normalize_str
    rows = []
    for code in _CODES:
        parts = unicodedata.decomposition(chr(code)).split()
        if not parts or parts[0].startswith("<") or code in _HANGUL or decompose(chr(code)) == chr(code):
            continue
        first, second = [*(int(part, 16) for part in parts), 0][:2]
        rows.append((code, first, second))
    return rows


def _combining_ranges() -> str:
    rows: list[tuple[int, int, int]] = []
    for code in _CODES:
        value = unicodedata.combining(chr(code))
        if value == 0 or not _is_moved(chr(code), value):
            continue
        if rows and rows[-1][1] == code - 1 and rows[-1][2] == value:
            rows[-1] = (rows[-1][0], code, value)
        else:
            rows.append((code, code, value))
    return _rows(rows)


def _is_moved(mark: str, value: int) -> bool:
    """Return whether the library knows a mark: it moves marks of lower classes before marks of higher classes."""
    decompose = normalizers.NFD().normalize_str
    if value > 1:
        return decompose(f"a{mark}\u0334") == f"a\u0334{mark}"
    return decompose(f"a\u0301{mark}") == f"a{mark}\u0301"


def _ranges(codes: Sequence[int]) -> str:
    rows: list[tuple[int, int]] = []
    for code in codes:
        if rows and rows[-1][1] == code - 1:
            rows[-1] = (rows[-1][0], code)
        else:
            rows.append((code, code))
    return _rows(rows)


def _rows(rows: Iterable[Sequence[int]]) -> str:
    """Return C++ initializers in lines of at most 120 columns."""
    lines, line = [], ""
    for row in rows:
        item = "{" + ",".join(hex(value) if value > 9 else str(value) for value in row) + "},"
        if len(line) + len(item) > 118:
            lines.append(line)
            line = ""
        line += item
    return "\n" + "\n".join([*lines, line]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
