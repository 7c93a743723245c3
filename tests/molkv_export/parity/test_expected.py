"""Compare a bundle with logits from other code: right logits pass, a different interpretation of the paper fails."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from molkv_bundle import Bundle
from molkv_export import GraphOptions, Report, validate
from molkv_export.corpus import standard_library
from molkv_export.parity import compare, runners
from molkv_export.parity.expected import EXPECTED, ExpectedLogits
from molkv_export.parity.report import html, print_report
from tests.models import CONFIGS, STDLIB_MINI, random_model
from tests.molkv_export.modeling.test_equations import logits as equations
from tests.molkv_export.parity.own_model import OwnModel
from tests.processes import run_cli, run_script

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
FORMATS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "float16": {"dtype": "float16"},
    "int8 experts": {"dtype": "int8"},
    "int8 dense weights": {"dtype": "float16", "graph": GraphOptions("int8")},
}
READINGS: dict[str, dict[str, Any]] = {
    "eps of the norm": {"qk_eps": 1e-3},
    "LayerNorm": {"qk_norm": "layer"},
    "no norm": {"qk_norm": "none"},
    "window + 1": {"expert_window": 33},
    "window - 1": {"expert_window": 31},
    "keys not rotated": {"rotate_keys": False},
}


@pytest.fixture
def trained(bundles: Callable[..., Path]) -> Callable[[str], Path]:
    """Return a function that exports stdlib-mini in one of FORMATS."""
    return lambda name: bundles("stdlib-mini", **FORMATS[name])


@pytest.fixture(scope="module")
def ids() -> Tensor:
    """Return two real texts [2, 512], as long as the context of stdlib-mini."""
    tokenizer = Tokenizer.from_file(str(STDLIB_MINI / "tokenizer.json"))
    return torch.tensor(tokenizer.encode("\n".join(standard_library().validation)).ids[:1024]).view(2, 512)


@pytest.fixture(scope="module")
def right(ids: Tensor) -> Tensor:
    """Return the logits of the texts, by the right model."""
    return OwnModel(STDLIB_MINI)(ids)


def _save(folder: Path, **tensors: Tensor) -> Path:
    path = folder / "expected.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _tops(logits: Tensor, count: int) -> dict[str, Tensor]:
    top = logits.topk(count)
    return {"top_ids": top.indices, "top_logits": top.values}


@pytest.mark.parametrize("name", FORMATS)
def test_the_right_logits_pass_in_every_phase(
    name: str, trained: Callable[[str], Path], ids: Tensor, right: Tensor, tmp_path: Path
) -> None:
    report = validate(trained(name), expected=_save(tmp_path, input_ids=ids, logits=right))
    assert report.failures == []
    assert [(c.phase, c.reference) for c in report.comparisons] == [(p, EXPECTED) for p in compare.EVERY_PHASE]
    assert [c.metrics.positions for c in report.comparisons] == [1024, 1024, 1024, 256, 1280, 17]
    assert (report.gate_applies, report.records, report.greedy) == (True, None, [])
    if name == "float32":  # 0.001 for the other code's arithmetic, plus the limit of the golden vectors
        assert report.rounding_limit is not None
        assert 1e-3 < report.rounding_limit < 1.1e-3
    else:
        assert report.rounding_limit is None


@pytest.mark.parametrize("form", ["all", "top"])
@pytest.mark.parametrize("reading", READINGS)
def test_a_different_reading_of_the_paper_fails_if_nothing_is_rounded(
    reading: str, form: str, trained: Callable[[str], Path], ids: Tensor, tmp_path: Path
) -> None:
    logits = OwnModel(STDLIB_MINI, **READINGS[reading])(ids[:, :96])
    held = {"logits": logits} if form == "all" else _tops(logits, 16)
    report = validate(trained("float32"), expected=_save(tmp_path, input_ids=ids[:, :96], **held))
    # A text of three windows is shorter than the context, so the phase "context end" is not compared.
    assert [c.phase for c in report.comparisons] == list(compare.EVERY_PHASE[:-1])
    for comparison, failure in zip(report.comparisons, report.failures, strict=True):
        assert failure.startswith(f"{comparison.phase} (your own code): max abs ")
        assert " is above 0.0010" in failure


# The wrong eps costs less than any rounding. A window that is one off costs about as much as int8 dense weights.
COSTLY = [
    *((name, reading) for name in ("float16", "int8 experts") for reading in list(READINGS)[1:]),
    *(("int8 dense weights", reading) for reading in ("LayerNorm", "no norm", "keys not rotated")),
]


@pytest.mark.parametrize(("name", "reading"), COSTLY)
def test_a_different_reading_of_the_paper_costs_more_than_rounding(
    name: str, reading: str, trained: Callable[[str], Path], ids: Tensor, tmp_path: Path
) -> None:
    logits = OwnModel(STDLIB_MINI, **READINGS[reading])(ids[:1, :256])
    failures = validate(trained(name), expected=_save(tmp_path, input_ids=ids[:1, :256], logits=logits)).failures
    assert re.match(r"one-shot prefill \(your own code\): (mean|p99 of) KL \S+ is above \S+$", failures[0])


def test_a_mistake_smaller_than_rounding_passes_and_the_report_says_what_to_do(
    trained: Callable[[str], Path], ids: Tensor, tmp_path: Path
) -> None:
    logits = OwnModel(STDLIB_MINI, **READINGS["eps of the norm"])(ids)
    report = validate(trained("float16"), expected=_save(tmp_path, input_ids=ids, logits=logits))
    assert report.failures == []
    assert "also compare a float32 bundle with float32 logits once" in _printed(report)
    assert "PASS the bundle agrees with your own code, within the limits for rounding" in _printed(report)


def test_a_file_of_the_likeliest_logits_is_compared_on_those_logits(
    trained: Callable[[str], Path], ids: Tensor, right: Tensor, tmp_path: Path
) -> None:
    report = validate(trained("float16"), expected=_save(tmp_path, input_ids=ids.int(), **_tops(right, 64)))
    assert report.failures == []
    assert report.quality.metrics.perplexity is None
    assert report.quality.metrics.top1_agreement > 0.999
    printed = _printed(report)
    assert "64 logits per position: max abs, rel. L2 and KL use these logits only" in printed
    assert "perplexity was not compared" in printed
    assert "perplexity x" not in printed
    assert sum(candidate.probability for candidate in report.worst[0].reference) <= 1


def test_a_missing_likeliest_token_fails_although_the_known_logits_agree(
    trained: Callable[[str], Path], ids: Tensor, right: Tensor, tmp_path: Path
) -> None:
    top = right[:, :96].topk(17)  # without the likeliest token
    held = {"top_ids": top.indices[..., 1:], "top_logits": top.values[..., 1:]}
    report = validate(trained("float32"), expected=_save(tmp_path, input_ids=ids[:, :96], **held))
    assert report.failures == ["one-shot prefill (your own code): top-1 agreement 0.00% is below 99.9%"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gate_allows_for_the_dtype_of_the_file(
    dtype: torch.dtype, trained: Callable[[str], Path], ids: Tensor, right: Tensor, tmp_path: Path
) -> None:
    report = validate(trained("float32"), expected=_save(tmp_path, input_ids=ids, logits=right.to(dtype)))
    assert report.failures == []
    assert report.rounding_limit is None
    wrong = OwnModel(STDLIB_MINI, expert_window=33)(ids[:1]).to(dtype)
    assert validate(trained("float32"), expected=_save(tmp_path, input_ids=ids[:1], logits=wrong)).failures


@pytest.mark.parametrize("name", ["molkv", "molkv-gated", "molkv-some-layers", "mole", "dense"])
def test_every_kind_of_model_agrees_with_the_equations(name: str, bundles: Callable[..., Path], tmp_path: Path) -> None:
    model = random_model(CONFIGS[name])
    state = {key: tensor.double().numpy() for key, tensor in model.state_dict().items()}
    ids = np.random.default_rng(3).integers(0, 97, (2, 12))
    logits = torch.from_numpy(np.stack([equations(text, state, model.config) for text in ids])).float()
    assert (
        validate(bundles(name), expected=_save(tmp_path, input_ids=torch.from_numpy(ids), logits=logits)).failures == []
    )
    logits[1, 7, 3] += 0.01
    path = _save(tmp_path, input_ids=torch.from_numpy(ids), logits=logits)
    assert len(validate(bundles(name), expected=path).failures) >= 3


@pytest.mark.parametrize("phase", ["chunked prefill", "step-by-step decode", "window wrap-around"])
def test_a_fault_in_one_phase_is_named(
    phase: str, trained: Callable[[str], Path], ids: Tensor, right: Tensor, tmp_path: Path, monkeypatch: Any
) -> None:
    run = runners.PHASES[phase]
    monkeypatch.setitem(runners.PHASES, phase, lambda generator, ids: run(generator, ids) + ids[-1] % 7 / 100)
    failures = _failures_of_a_fault(trained, ids, right, tmp_path)
    assert failures[0].startswith(f"{phase} (your own code): max abs ")
    assert len(failures) == 1


def test_faults_in_a_mixed_batch_and_at_the_contexts_end_are_named(
    trained: Callable[[str], Path], ids: Tensor, right: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_batch(generator: Any, texts: Any) -> Any:
        return [logits + 0.01 for logits in runners.mixed_batch(generator, texts)]

    monkeypatch.setattr(compare, "mixed_batch", broken_batch)
    monkeypatch.setattr(compare, "context_end", lambda *given: runners.context_end(*given) + 0.01)
    failures = _failures_of_a_fault(trained, ids, right, tmp_path)
    assert [failure.split(":")[0] for failure in failures] == [
        "mixed batch (your own code)",
        "context end (your own code)",
    ]


def _failures_of_a_fault(trained: Callable[[str], Path], ids: Tensor, right: Tensor, folder: Path) -> list[str]:
    return validate(trained("float32"), expected=_save(folder, input_ids=ids[:1], logits=right[:1])).failures


def test_terminal_page_and_json_name_the_reference(
    trained: Callable[[str], Path], ids: Tensor, right: Tensor, tmp_path: Path
) -> None:
    path = _save(tmp_path, input_ids=ids[:, :64], logits=right[:, :64])
    report = validate(trained("float32"), expected=path)
    note = f"logits that your own code wrote, F32, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    printed = _printed(report)
    assert f"against {path}\nreference: {note}\n" in printed
    assert "greedy text: not compared, because there is no model to generate it" in printed
    assert "PASS the bundle agrees with your own code\n" in printed
    assert note in html(report)
    assert str(path) in html(report)
    assert msgspec.json.decode(msgspec.json.encode(report))["reference_note"] == note
    assert report.worst[0].before  # the bundle has a tokenizer, so this is text
    assert "1 text " not in report.text


def _printed(report: Report) -> str:
    printed = io.StringIO()
    print_report(report, Console(file=printed, width=80))
    return printed.getvalue()


# --- the command line, and the recipe in the docs

MY_CODE = f"""
from types import SimpleNamespace
from pathlib import Path
from tokenizers import Tokenizer
from tests.molkv_export.parity.own_model import OwnModel

class Model(OwnModel):
    def float(self): return self
    def eval(self): return self

model = Model(Path({str(STDLIB_MINI)!r}))
_tokenizer = Tokenizer.from_file({str(STDLIB_MINI / "tokenizer.json")!r})
tokenizer = SimpleNamespace(encode=lambda text: _tokenizer.encode(text).ids)
"""


def test_the_recipe_in_the_docs_writes_a_valid_file(trained: Callable[[str], Path], tmp_path: Path) -> None:
    section = (ROOT / "docs" / "parity.md").read_text().partition("\n## Your own code\n")[2].partition("\n## ")[0]
    recipe, likeliest = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(recipe.splitlines()) <= 10
    (tmp_path / "my_code.py").write_text(MY_CODE)
    (tmp_path / "novel.txt").write_text("\n".join(standard_library().validation), encoding="utf-8")
    for code, is_partial in ((recipe + likeliest, True), (recipe, False)):
        (tmp_path / "recipe.py").write_text(code)
        done = run_script(Path("recipe.py"), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        file = ExpectedLogits(tmp_path / "expected.safetensors", Bundle(trained("float16")).config)
        assert (file.is_partial, file.ids.shape) == (is_partial, (8, 512))
    command = ("validate", trained("float16"), "--expected", "expected.safetensors")
    done = run_cli(*command, "--json", "--report", "page", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["text"] == "expected.safetensors: 8 texts of 512 tokens"
    assert found == json.loads((tmp_path / "page" / "report.json").read_text())
    assert "your own code wrote" in (tmp_path / "page" / "index.html").read_text()


@pytest.mark.parametrize(("name", "says"), [("molkv", True), ("mole", False), ("dense", False)])
def test_export_suggests_expected_logits_for_a_model_without_published_code(
    name: str, says: bool, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    done = run_cli("export", checkpoints(name), "out.bundle", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("molkv-export validate out.bundle --expected FILE" in done.stderr) == says
