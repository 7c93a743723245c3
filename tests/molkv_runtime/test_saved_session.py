"""Saved sessions: how they continue. tests/molkv_bundle/test_session_file.py has hostile files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from molkv_bundle import OutputError, RequestError, SessionError
from molkv_export import GraphOptions
from molkv_runtime import Generator, Sampling, Sequences
from tests.molkv_runtime.sessions import SAMPLING, all_of, assert_close, ids_of


@pytest.mark.parametrize("appended", [[], [40, 41]])
def test_a_restored_session_continues_bit_for_bit(variant: Generator, tmp_path: Path, appended: list[int]) -> None:
    session, path = variant.session(), tmp_path / "text.session"
    all_of(session, range(1, 20))
    session.save(path)
    restored = variant.restore(path)
    assert restored.ids == session.ids
    restored.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    # The log-probabilities are float64 numbers that depend on every bit of the logits.
    assert all_of(restored, appended, 12) == all_of(session, appended, 12)


@pytest.mark.parametrize("length", [0, 1, 3, 24])
def test_a_session_that_was_rewound_is_saved_up_to_there(variant: Generator, tmp_path: Path, length: int) -> None:
    """With length 0, the text consists of tokens that were never run: the saved KV cache is empty."""
    session, path = variant.session(), tmp_path / "text.session"
    all_of(session, range(1, 20))
    session.rewind(length)
    stream = session.stream([60, 61], max_new_tokens=3)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    session.rewind(length + 1 if length else 2)
    session.save(path)
    restored = variant.restore(path)
    assert restored.ids == session.ids
    assert all_of(restored, [3]) == all_of(session, [3])


def test_refused_proposals_are_not_saved(generator: Generator, states: list[Sequences], tmp_path: Path) -> None:
    """Close an iterator after each token. The KV cache can then hold tokens that the text does not have."""
    differences = 0
    for count in range(1, 16):
        session, path = generator.session(), tmp_path / str(count)
        sampling = Sampling(4.0, logit_bias=dict.fromkeys((7, 8, 9), 60.0), seed=2)
        stream = session.stream([7, 8, 9] * 5, max_new_tokens=20, sampling=sampling, lookup=6)
        for _ in range(count):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        run = states[-1].history(0)
        differences += len(run) >= len(session.ids) and run[len(session.ids) - 1] != session.ids[-1]
        session.save(path)
        # A restored session holds none of the other tokens, so it has the reference result.
        assert_close(all_of(generator.restore(path), [1]), all_of(session, [1]))
        wanted = list(generator.stream([session.ids[:-6]], max_new_tokens=6, sampling=SAMPLING, logprobs=2))
        assert ids_of(wanted) == session.ids[-6:]
    assert differences > 2


def test_a_full_session_is_saved(variant: Generator, tmp_path: Path) -> None:
    session, context = variant.session(), variant.config.max_position_embeddings
    all_of(session, range(40), 1000)
    session.save(tmp_path / "full")
    restored = variant.restore(tmp_path / "full")
    assert restored.ids == session.ids
    assert len(restored.ids) == context + 1
    for each in (session, restored):
        each.rewind(context - 4)
    assert all_of(restored, []) == all_of(session, [])


@pytest.mark.slow
def test_another_process_continues_bit_for_bit(generator: Generator, tmp_path: Path) -> None:
    session, path = generator.session(), tmp_path / "text.session"
    all_of(session, range(1, 20))
    session.save(path)
    code = """if True:
        import json, sys
        from molkv_runtime import Generator
        session = Generator(sys.argv[1]).restore(sys.argv[2])
        print(json.dumps([[token.id, token.logprob] for token in session.stream([40], max_new_tokens=9, logprobs=0)]))
        """
    command = [sys.executable, "-c", code, str(generator.bundle.path), str(path)]
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    wanted = session.stream([40], max_new_tokens=9, logprobs=0)
    assert json.loads(printed) == [[token.id, token.logprob] for token in wanted]


def test_an_empty_session_is_not_saved(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the session is empty, expected at least one token"):
        generator.session().save(tmp_path / "empty")
    assert list(tmp_path.iterdir()) == []


def test_messages_are_saved(generator: Generator, tmp_path: Path) -> None:
    session = generator.session()
    all_of(session, [1])
    session.save(tmp_path / "chat", messages=[{"role": "user", "content": 'é "\n\0 <0x41> 你'}])
    generator.restore(tmp_path / "chat")
    with pytest.raises(RequestError, match=r"messages: found '\\ud800', expected Unicode text"):
        session.save(tmp_path / "chat", messages=[{"role": "user", "content": "\ud800"}])


@pytest.mark.slow
def test_sessions_of_another_model_or_graph_are_refused(bundles: Callable[..., Path], tmp_path: Path) -> None:
    """The message names the field that is different."""
    paths = {
        "bundle": bundles("molkv"),
        "records": bundles("molkv", "int8"),
        "model": bundles("molkv-gated"),
        "graph": bundles("molkv", graph=GraphOptions("int8")),
        "cache": bundles("molkv", graph=GraphOptions(kv_dtype="int8")),
        "profile": bundles("molkv", profiles=["coreml"], graph=GraphOptions(chunk_lengths=(4,))),
    }
    for name, bundle in paths.items():
        session = Generator(bundle).session()
        all_of(session, range(1, 10))
        session.save(tmp_path / name)
    wrong = {
        "records": r"belongs to another bundle \(tables: found .*",
        "model": r"belongs to another bundle \(tables: found .*",
        "graph": r"belongs to another graph than that of the bundle's profile cpu \(graph: found .*",
        "cache": r".*another KV cache \(past_key_values.0.key: found I8 \[2, 14, 16\], expected F32 \[2, 14, 16\]",
        "profile": r"belongs to another graph than that of the bundle's profile cpu \(graph: found .*",
    }
    generator = Generator(paths["bundle"])
    for name, message in wrong.items():
        with pytest.raises(SessionError, match=f"{name}: {message}"):
            generator.restore(tmp_path / name)
        with pytest.raises(SessionError):
            Generator(paths[name]).restore(tmp_path / "bundle")


def test_a_session_does_not_replace_other_files(generator: Generator, tmp_path: Path) -> None:
    session, other = generator.session(), tmp_path / "notes.txt"
    all_of(session, [1])
    other.write_text("important")
    tensors = generator.bundle.path / "golden.safetensors"
    for path in (other, tmp_path, tensors):
        with pytest.raises(OutputError, match="exists and is not a saved session, so it is not replaced"):
            session.save(path)
    assert other.read_text() == "important"
    with pytest.raises(OutputError, match="cannot be written"):
        session.save(tmp_path / "missing" / "file")
    assert list(tmp_path.iterdir()) == [other]
