"""The examples in docs/python.md run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_DOCS = Path(__file__).parent.parent.parent / "docs"


def _blocks(name: str, language: str) -> list[str]:
    text = (_DOCS / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_examples_run(
    stdlib_mini_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (template,) = _blocks("command-line.md", "jinja")
    (tmp_path / "template.jinja").write_text(template)
    (tmp_path / "mini.bundle").symlink_to(stdlib_mini_bundle)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = _blocks("python.md", "python")
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert capsys.readouterr().out.endswith("max_new_tokens: found 0, expected 1 or more\n")  # the comment of the last
    assert len(blocks) == (_DOCS / "python.md").read_text(encoding="utf-8").count("```") // 2
