"""The conformance suite: the Python driver passes it, broken drivers fail, and making it again gives the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from molkv_bundle import Arrays, Bundle, Gemma4Config, RecordChecksum, RequestError, SessionFile, ValueDecoder
from molkv_runtime import ExpertStore, Generator, Sampling, Sequences
from molkv_runtime.sequences import common_prefix
from molkv_runtime.tokenizer import StopStrings, TextStream
from molkv_runtime.window import ExpertWindow
from runtimes.conformance.python_driver import Suite, count_tokens

SUITE = Path(__file__).parent.parent / "runtimes" / "conformance"
KINDS = {
    *("golden", "tokens", "text", "refused", "damage"),
    *("sequences", "calls", "session", "session-refused", "chat"),
}
MOST_LEFT_OUT = 0.02


def _run(folder: Path = SUITE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SUITE / "python_driver.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONUTF8": "1"})


def _cases(folder: Path = SUITE) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((folder / "cases.json").read_text(encoding="utf-8"))["cases"]
    return cases


def _tokens(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    batches = [found for case in cases if case["kind"] == "tokens" for found in case["expected"]]
    return batches + [case["expected"] for case in cases if case["kind"] == "text"]


def test_the_python_driver_passes_every_case() -> None:
    done, cases = _run(), _cases()
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert lines == [f"ok {case['name']}" for case in cases]
    assert last.startswith(f"{len(cases)} of {len(cases)} cases passed; ")


def test_the_suite_is_small_and_leaves_out_little() -> None:
    cases = _cases()
    assert sum(path.stat().st_size for path in SUITE.rglob("*") if path.is_file()) < 4_500_000
    counts = Counter(case["kind"] for case in cases)
    assert counts.keys() == KINDS
    assert counts["damage"] > 40
    assert len({case["name"] for case in cases}) == len(cases)
    assert {case["bundle"] for case in cases if case["kind"] == "tokens"} == {
        path.name for path in (SUITE / "bundles").iterdir()
    }
    total, compared = (sum(counts) for counts in zip(*map(count_tokens, cases), strict=True))
    assert total - compared <= MOST_LEFT_OUT * total


def _change_token(cases: list[dict[str, Any]]) -> str:
    case = next(case for case in cases if case["kind"] == "tokens" and "sampled" in case["name"])
    case["expected"][1]["ids"][3] ^= 1
    return str(case["name"])


def _change_piece(cases: list[dict[str, Any]]) -> str:
    case = next(case for case in cases if case["kind"] == "text")
    case["expected"]["pieces"] = ["".join(case["expected"]["pieces"])]
    return str(case["name"])


def _change_finish(cases: list[dict[str, Any]]) -> str:
    case = next(case for case in cases if "stop_ids" in case)
    case["expected"][0]["finish"] = "length"
    return str(case["name"])


def _undo_damage(cases: list[dict[str, Any]]) -> str:
    case = next(case for case in cases if case["kind"] == "damage")
    case["patches"] = []
    return str(case["name"])


def _change_kind(cases: list[dict[str, Any]]) -> str:
    case = next(case for case in cases if case["kind"] == "refused")
    case["error"] = "provider"
    return str(case["name"])


def _change_step(cases: list[dict[str, Any]]) -> str:
    case = next(case for case in cases if case["kind"] == "sequences")
    case["steps"][-1]["logits"][0][1] += 0.1
    return str(case["name"])


def _change_later_call(cases: list[dict[str, Any]]) -> str:
    case = next(case for case in cases if case["kind"] == "calls")
    case["calls"][-1]["expected"][0]["ids"][0] ^= 1
    return str(case["name"])


def _change_logprob(cases: list[dict[str, Any]]) -> str:
    case = next(case for case in cases if case["name"] == "molkv/logprobs")
    case["expected"][0]["logprobs"][2][1] += 0.01
    return str(case["name"])


def _change_chat(cases: list[dict[str, Any]]) -> str:
    case = next(case for case in cases if case["kind"] == "chat")
    case["add_generation_prompt"] = False
    return str(case["name"])


def _undo_session_damage(cases: list[dict[str, Any]]) -> str:
    case = next(case for case in cases if case["kind"] == "session-refused")
    case["patches"] = []
    return str(case["name"])


_CHANGES = [
    *(_change_token, _change_piece, _change_finish, _undo_damage, _change_kind),
    *(_change_step, _change_later_call, _change_logprob, _change_chat, _undo_session_damage),
]


@pytest.mark.parametrize("change", _CHANGES)
def test_a_driver_that_does_something_else_fails(change: Any, tmp_path: Path) -> None:
    """Change an expected result of the suite, so that the result of the driver differs from it."""
    cases = _cases()
    name = change(cases)
    content = json.loads((SUITE / "cases.json").read_text(encoding="utf-8"))
    content["cases"] = [case for case in cases if case["name"] == name]
    (tmp_path / "cases.json").write_text(json.dumps(content))
    for folder in ("bundles", "sessions"):
        (tmp_path / folder).symlink_to(SUITE / folder)
    done = _run(tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith(f"FAIL {name}: ")
    assert done.stdout.splitlines()[-1].startswith("0 of 1 cases passed")


def _scaled_values(patch: pytest.MonkeyPatch) -> None:
    original = ValueDecoder.decode
    patch.setattr(ValueDecoder, "decode", lambda self, codes, scales, out: original(self, codes, scales * 1.02, out))


def _scaled_window(patch: pytest.MonkeyPatch) -> None:
    original = ExpertWindow.take_in
    scales = "expert_value_scale"

    def take_in(self: ExpertWindow, *part: Any) -> Any:
        return {name: array * (1.02 if name.startswith(scales) else 1) for name, array in original(self, *part).items()}

    patch.setattr(ExpertWindow, "take_in", take_in)


def _no_ends(patch: pytest.MonkeyPatch) -> None:
    original = Generator.__init__

    def init(self: Generator, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        generation = msgspec.structs.replace(self.bundle.manifest.generation, eos_token_ids=())
        self.bundle.manifest = msgspec.structs.replace(self.bundle.manifest, generation=generation)

    patch.setattr(Generator, "__init__", init)


def _no_defaults(patch: pytest.MonkeyPatch) -> None:
    original = Generator.__init__

    def init(self: Generator, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self.default_sampling = Sampling()

    patch.setattr(Generator, "__init__", init)


def _shows_special_tokens(patch: pytest.MonkeyPatch) -> None:
    original = TextStream.__init__
    patch.setattr(TextStream, "__init__", lambda self, tokenizer, ids: original(self, _AllShown(tokenizer), ids))


class _AllShown:
    """A tokenizer for which no token is special."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.id_to_token = tokenizer.id_to_token

    def decode(self, ids: Sequence[int], **_: bool) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return {}


def _cuts_bytes(patch: pytest.MonkeyPatch) -> None:
    push = TextStream.push
    patch.setattr(TextStream, "push", lambda self, token_id: push(self, token_id) + self.finish())


def _ignores_checksums(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RecordChecksum, "of", lambda _self, record, _row: int.from_bytes(record[-4:], "little"))


def _keeps_the_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ExpertWindow, "restore", lambda *_: None)


def _shifts_the_cache(patch: pytest.MonkeyPatch) -> None:
    read = SessionFile.read_into

    def read_into(self: SessionFile, caches: Arrays) -> None:
        read(self, caches)
        for array in caches.values():
            array[:, 1:] = array[:, :-1].copy()

    patch.setattr(SessionFile, "read_into", read_into)


def _writes_to_another_cache(patch: pytest.MonkeyPatch) -> None:
    """Let layers that share a cache write to the cache of the first layer of their type, not to that of the last."""
    first = {"sliding_attention": 0, "full_attention": 1}
    shared = Gemma4Config.shared_kv_caches

    def other(self: Gemma4Config) -> dict[int, int]:
        return {layer: first[self.layer_types[layer]] for layer in shared(self)}

    patch.setattr(Gemma4Config, "shared_kv_caches", other)


def _rejects_too_late(patch: pytest.MonkeyPatch) -> None:
    """Keep the keys and values of a proposed token that was not chosen."""
    rewind = Sequences.rewind
    patch.setattr(Sequences, "rewind", lambda self, at, to: rewind(self, at, min(to + 1, int(self.lengths[at]))))


def _shows_stop_strings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StopStrings, "push", lambda _self, piece: piece)


def _counts_too_much(patch: pytest.MonkeyPatch) -> None:
    """Take one token more from an earlier call than the texts have in common."""
    patch.setattr("molkv_runtime.continuation.common_prefix", lambda a, b: min(common_prefix(a, b) + 1, len(a), len(b)))


@pytest.mark.parametrize(
    ("fault", "bundle", "kinds"),
    [
        (_scaled_values, "experts-int8", {"golden"}),
        (_scaled_values, "experts-int4", {"golden"}),
        (_scaled_values, "experts-nf4", {"golden"}),
        (_scaled_values, "gemma4", {"golden"}),
        (_writes_to_another_cache, "gemma4", {"golden"}),
        (_scaled_window, "window-int8", {"golden"}),
        (_scaled_window, "window-int8-float16", {"golden"}),
        (_no_ends, "bytes", {"text"}),
        (_no_defaults, "byte-fallback", {"text"}),
        (_shows_special_tokens, "bytes", {"text"}),
        (_cuts_bytes, "bytes", {"text"}),
        (_ignores_checksums, "molkv", {"damage"}),
        *((_keeps_the_window, name, {"sequences"}) for name in ("molkv", "window-int8", "kv-int8", "coreml")),
        (_keeps_the_window, "molkv", {"session"}),
        *((_shifts_the_cache, name, {"session"}) for name in ("molkv", "mole", "kv-int8", "coreml", "gemma4")),
        *((_rejects_too_late, name, {"tokens"}) for name in ("mole", "gemma4")),
        (_shows_stop_strings, "bytes", {"text"}),
        (_shows_stop_strings, "byte-fallback", {"text"}),
        *((fault, "gemma4", {"text"}) for fault in (_no_ends, _no_defaults, _shows_special_tokens, _cuts_bytes)),
        (_counts_too_much, "molkv", {"calls"}),
    ],
)
def test_a_faulty_driver_fails(
    fault: Callable[[pytest.MonkeyPatch], None], bundle: str, kinds: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = Suite(SUITE)
    cases = [case for case in suite.cases if case["bundle"] == bundle and case["kind"] in kinds]
    assert [suite.run(case) for case in cases] == [""] * len(cases)
    fault(monkeypatch)
    broken = Suite(SUITE)

    def fails(case: dict[str, Any]) -> bool:
        try:
            return bool(broken.run(case))
        except RequestError:
            return True

    assert any(map(fails, cases))


def test_a_bundle_of_another_model_fails(tmp_path: Path) -> None:
    shutil.copytree(SUITE, tmp_path / "suite")
    bundles = tmp_path / "suite" / "bundles"
    (bundles / "molkv").rename(bundles / "other")
    (bundles / "molkv-foreign").rename(bundles / "molkv")
    failed = [line for line in _run(tmp_path / "suite").stdout.splitlines() if line.startswith("FAIL molkv/")]
    assert len(failed) >= 6
    assert not any("golden" in line for line in failed)  # the bundle agrees with its own model


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_new_suite_equals_the_old_one_within_tolerance(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "runtimes.conformance.make", str(tmp_path)],
        check=True,
        capture_output=True,
        cwd=SUITE.parents[1],
    )
    old, new = _cases(), _cases(tmp_path)
    assert [case["name"] for case in new] == [case["name"] for case in old]
    # Rounding can make a prompt of the old suite unfit. The new suite then has another one.
    asked = ("prompts", "sampling")
    pairs = [(a, b) for a, b in zip(old, new, strict=True) if all(a.get(name) == b.get(name) for name in asked)]
    assert len(pairs) >= 0.95 * len(old)
    for before, after in zip(_tokens([a for a, _ in pairs]), _tokens([b for _, b in pairs]), strict=True):
        same = min(before["compared"], after["compared"])
        assert before["ids"][:same] == after["ids"][:same]
    for bundle in (SUITE / "bundles").iterdir():
        _is_the_same(bundle, tmp_path / "bundles" / bundle.name)


def _is_the_same(old: Path, new: Path) -> None:
    assert sorted(path.name for path in old.iterdir()) == sorted(path.name for path in new.iterdir())
    first, second = Bundle(old), Bundle(new)
    assert first.manifest.model == second.manifest.model
    ids = np.arange(first.config.vocab_size)
    with ExpertStore(first) as before, ExpertStore(second) as after:
        one, other = before.gather(ids), after.gather(ids)
    np.testing.assert_array_equal(one["embedding"], other["embedding"])
    for name in one["layers"].dtype.names or () if "layers" in (one.dtype.names or ()) else ():
        different = np.abs(one["layers"][name].astype(np.float64) - other["layers"][name].astype(np.float64))
        assert different.max() <= (1 if one["layers"][name].dtype.kind in "iu" else 2e-3), (old.name, name)
    golden = [load_file(bundle.path / bundle.graph().golden) for bundle in (first, second)]
    for name, array in golden[0].items():
        assert array.shape == golden[1][name].shape
        if name.endswith("projection"):
            np.testing.assert_allclose(golden[1][name], array, atol=1e-3 * np.abs(array).max())
