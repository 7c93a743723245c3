"""Files of saved sessions: the layout, read with other libraries, and damaged and hostile files."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from molkv_bundle import Arrays, Bundle, OutputError, RequestError, SessionError, SessionFile, write_session
from molkv_runtime import Generator

_ZEROS = "0" * 64
_IDS = np.array([5, 60, 33, 96, 0], np.int64)


@pytest.fixture(scope="module")
def bundle(bundles: Callable[..., Path]) -> Bundle:
    return Bundle(bundles("molkv"))


@pytest.fixture(scope="module")
def generator(bundle: Bundle) -> Generator:
    return Generator(bundle)


def _caches(bundle: Bundle, length: int = 3) -> Arrays:
    rng = np.random.default_rng(0)
    return {
        f"{layer}.{kind}": rng.standard_normal((heads, length, head_dim)).astype(np.float32)
        for layer, heads, head_dim in bundle.config.kv_caches()
        for kind in ("key", "value")
    }


def _metadata(bundle: Bundle) -> dict[str, str]:
    """Return the metadata that docs/bundle-format.md describes."""
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    graph = manifest["graphs"]["cpu"]
    names = [*(file["file"] for file in graph["files"]), graph["data"]]
    digests = "".join(manifest["files"][name]["sha256"] for name in names)
    return {
        "session_version": "1",
        "tables": json.dumps({name: table["id"] for name, table in manifest["tables"].items()}),
        "graph": hashlib.sha256(digests.encode()).hexdigest(),
        "sha256": _ZEROS,
    }


def _tensors(bundle: Bundle, length: int = 3) -> dict[str, Any]:
    caches = _caches(bundle, length)
    return {"input_ids": _IDS.astype(np.int32), **{f"past_key_values.{name}": array for name, array in caches.items()}}


def _sealed(metadata: dict[str, Any], tensors: dict[str, Any], entries: str = "") -> bytes:
    """Write a file with the right hash.

    Args:
        metadata: The metadata; `sha256` is 64 zeros.
        tensors: Name -> array; or name -> (dtype, shape, bytes).
        entries: JSON text to insert at the start of the header.
    """
    kinds = {"float32": "F32", "float16": "F16", "int8": "I8", "int32": "I32", "int64": "I64"}
    header, data = {"__metadata__": metadata}, b""
    for name, tensor in tensors.items():
        if not isinstance(tensor, tuple):
            tensor = kinds[tensor.dtype.name], tensor.shape, tensor.tobytes()
        dtype, shape, content = tensor
        offsets = [len(data), len(data) + len(content)]
        header[name], data = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}, data + content
    text = ("{" + entries + json.dumps(header)[1:]).encode()
    whole = len(text).to_bytes(8, "little") + text + data
    return whole.replace(_ZEROS.encode(), hashlib.sha256(whole).hexdigest().encode())


@pytest.fixture
def saved(bundle: Bundle, tmp_path: Path) -> Path:
    path = tmp_path / "text.session"
    write_session(path, bundle, _IDS, _caches(bundle))
    return path


def _open(path: Path, content: bytes, bundle: Bundle) -> None:
    """Open a session and read all of it, as a restore does."""
    path.write_bytes(content)
    session = SessionFile(path, bundle)
    session.read_into(_caches(bundle, session.length))


def test_other_libraries_read_the_documented_layout(bundle: Bundle, tmp_path: Path) -> None:
    path, messages = tmp_path / "chat.session", [{"role": "user", "content": f'你\n"{_ZEROS}"'}]
    caches = _caches(bundle)
    write_session(path, bundle, _IDS, caches, messages)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    digest = metadata.pop("sha256")
    assert json.loads(metadata.pop("messages")) == messages
    expected = _metadata(bundle)
    assert json.loads(metadata.pop("tables")) == json.loads(expected["tables"])
    assert metadata == {name: expected[name] for name in ("session_version", "graph")}
    content = path.read_bytes()
    assert content.count(digest.encode()) == 1
    assert hashlib.sha256(content.replace(digest.encode(), _ZEROS.encode())).hexdigest() == digest
    assert tensors.keys() == {"input_ids", *(f"past_key_values.{name}" for name in caches)}
    assert tensors["input_ids"].dtype == np.int32
    np.testing.assert_array_equal(tensors["input_ids"], _IDS)
    for name, array in caches.items():
        np.testing.assert_array_equal(tensors[f"past_key_values.{name}"], array)
    assert SessionFile(path, bundle).messages == messages


def test_a_file_of_another_writer_is_read(bundle: Bundle, tmp_path: Path) -> None:
    """The order of the tensors and the spaces of the header have no meaning."""
    path, tensors = tmp_path / "text.session", dict(reversed(_tensors(bundle).items()))
    path.write_bytes(_sealed(_metadata(bundle), tensors))
    session = SessionFile(path, bundle)
    assert session.ids.tolist() == _IDS.tolist()
    assert (session.ids.dtype, session.length, session.messages) == (np.int64, 3, None)
    found = {name: np.zeros_like(array) for name, array in _caches(bundle).items()}
    session.read_into(found)
    for name, array in _caches(bundle).items():
        np.testing.assert_array_equal(found[name], array)


def test_the_same_session_gives_the_same_bytes_and_only_its_user_reads_them(bundle: Bundle, saved: Path) -> None:
    before = saved.read_bytes()
    saved.chmod(0o644)
    write_session(saved, bundle, _IDS, _caches(bundle))
    assert saved.read_bytes() == before
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert list(saved.parent.iterdir()) == [saved]


def test_a_link_stays_a_link(bundle: Bundle, saved: Path) -> None:
    link = saved.with_name("link")
    link.symlink_to(saved.name)
    write_session(link, bundle, _IDS[:3], _caches(bundle))
    assert link.is_symlink()
    assert SessionFile(saved, bundle).ids.tolist() == _IDS[:3].tolist()


@pytest.mark.parametrize("broken", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_keeps_the_old_file(
    bundle: Bundle, saved: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    before = saved.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            write_session(saved, bundle, _IDS[:3], _caches(bundle))
    if isinstance(error, OSError):
        assert str(caught.value) == f"{saved}: cannot be written (No space left on device)"
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_truncated_file_is_refused(bundle: Bundle, saved: Path) -> None:
    content = saved.read_bytes()
    for length in range(0, len(content), 50):
        with pytest.raises(SessionError):
            _open(saved, content[:length], bundle)
    with pytest.raises(SessionError):
        _open(saved, content + b"\0", bundle)
    saved.unlink()
    with pytest.raises(SessionError, match="cannot be opened"):
        SessionFile(saved, bundle)


@pytest.mark.slow
def test_a_flipped_bit_is_refused(bundle: Bundle, saved: Path) -> None:
    """Flip a bit of every byte of the header, of the ids, and of every 99th byte of the KV cache."""
    content = saved.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    for at in [*range(data + 4 * len(_IDS)), *range(data, len(content), 99), len(content) - 1]:
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        with pytest.raises(SessionError):
            _open(saved, bytes(changed), bundle)


def _cases(bundle: Bundle) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Yield changes of the metadata, changes of the tensors (None: no such field), and the message."""
    key, (heads, _, size) = "past_key_values.0.key", _tensors(bundle)["past_key_values.0.key"].shape
    wrong_cache = "its tensors are not the KV cache of this model"
    context, vocab_size = bundle.config.max_position_embeddings, bundle.config.vocab_size
    nan, infinite = (np.full((heads, 3, size), number, np.float32) for number in (np.nan, np.inf))
    yield {}, {key: nan}, f"{key}: found NaN or infinity"
    yield {}, {key: infinite}, f"{key}: found NaN or infinity"
    yield {}, {key: None}, wrong_cache
    yield {}, {"past_key_values.9.key": nan}, wrong_cache
    yield {}, {"extra": np.zeros(3, np.float32)}, wrong_cache
    yield {}, {key: np.zeros((heads, 4, size), np.float32)}, wrong_cache  # not as long as the others
    yield {}, {key: np.zeros((heads + 1, 3, size), np.float32)}, rf"{key}: found F32 \[{heads + 1}, 3, {size}\]"
    yield {}, {key: np.zeros((heads, 3, size + 1), np.float32)}, rf"{key}: found F32 \[{heads}, 3, {size + 1}\]"
    yield {}, {key: np.zeros((heads, 3, size), np.float16)}, f"{key}: found F16 .*, expected F32"
    yield {}, {key: np.zeros((heads, 3 * size), np.float32)}, f"{key}: found F32"
    yield {}, {key: np.zeros((), np.float32)}, f"{key}: found F32"
    yield {}, {key: ("F32", (heads, 3, 2**61), b"")}, "does not fit the bytes"
    yield {}, {key: ("F32", (2**62, 0, 2**62), b"")}, wrong_cache
    yield {}, {key: ("F32", (heads, -3, size), b"")}, "does not fit the bytes"
    yield {}, {"input_ids": None}, "input_ids: found no tensor, expected I32"
    yield {}, {"input_ids": np.zeros(0, np.int32)}, r"input_ids: found I32 \[0\]"
    yield {}, {"input_ids": _IDS}, r"input_ids: found I64 \[5\]"
    yield {}, {"input_ids": np.zeros((1, 5), np.int32)}, r"input_ids: found I32 \[1, 5\]"
    yield {}, {"input_ids": np.zeros((), np.int32)}, r"input_ids: found I32 \[\]"
    yield {}, {"input_ids": np.zeros(2, np.int32)}, wrong_cache  # fewer tokens than the KV cache has
    yield {}, {"input_ids": np.zeros(context + 2, np.int32)}, rf"found I32 \[{context + 2}\], expected I32 \[1 to 49\]"
    yield {}, {"input_ids": ("I32", (2**60,), b"")}, "does not fit the bytes"
    for wrong in (-1, vocab_size, 2**31 - 1, -(2**31)):
        for at in (0, 4):  # in the KV cache, and behind it
            ids = _IDS.astype(np.int32)
            ids[at] = wrong
            yield {}, {"input_ids": ids}, f"input_ids: found ids from .*{wrong}.*, expected 0 to {vocab_size - 1}"
    yield {"session_version": "2"}, {}, 'session_version: found "2", expected "1"'
    yield {"session_version": None}, {}, "session_version: found null"
    yield {"session_version": "x" * 10**6}, {}, "session_version: found"
    yield {"sha256": None}, {}, 'sha256: found "", expected 64 digits'
    yield {"sha256": "\ud800"}, {}, "sha256: found .*, expected 64 digits"
    yield {"sha256": "x" * 64}, {}, "sha256: found .*, expected 64 digits"
    yield {"sha256": "1" * 64}, {}, "its sha256 does not match its contents; the file is damaged"
    yield {"tables": None}, {}, "tables: is not JSON"
    yield {"tables": "{}"}, {}, r"belongs to another bundle \(tables: found {}, expected .*"
    yield {"tables": json.dumps({"experts": "y" * 10**6})}, {}, "tables: found"
    yield {"tables": "[" * 10**5}, {}, "tables: is nested too deeply"
    yield {"tables": "9" * 10**5}, {}, "tables: "
    yield {"tables": "\ud800"}, {}, "tables: is not JSON"
    yield {"tables": '{"experts": "a", "experts": "b"}'}, {}, "tables: the key 'experts' appears twice"
    yield {"graph": None}, {}, "graph: found null, expected"
    yield {"graph": "\ud800" * 10**6}, {}, r"belongs to another graph .*\(graph: found .*"
    yield {"messages": '{"role": "user"}'}, {}, "messages: Expected `array`"
    yield {"messages": "null"}, {}, "messages: Expected `array`"
    yield {"messages": '["user"]'}, {}, "messages: Expected `object`"
    yield {"messages": '[{"role": 1}]'}, {}, "messages: Expected `str`"
    yield {"messages": '[{"role": "user", "role": "system"}]'}, {}, "messages: the key 'role' appears twice"
    yield {"messages": "\ud800"}, {}, "messages: is not JSON"
    yield {"messages": '[{"role": "\ud800"}]'}, {}, "messages: is not JSON"
    yield {"messages": 5}, {}, "its safetensors header is damaged"


def test_a_file_with_the_right_hash_and_wrong_contents_is_refused(
    bundle: Bundle, generator: Generator, tmp_path: Path
) -> None:
    path = tmp_path / "text.session"
    path.write_bytes(_sealed(_metadata(bundle), _tensors(bundle)))
    assert generator.restore(path).ids == _IDS.tolist()
    for metadata, tensors, message in _cases(bundle):
        fields, arrays = ({**old, **new} for old, new in ((_metadata(bundle), metadata), (_tensors(bundle), tensors)))
        kept = ({name: value for name, value in each.items() if value is not None} for each in (fields, arrays))
        path.write_bytes(_sealed(*kept))
        with pytest.raises(SessionError, match=message) as caught:
            generator.restore(path)
        assert len(str(caught.value)) < 600
        assert "\n" not in str(caught.value)


def test_a_kv_cache_that_is_longer_than_the_context_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """At most `context_length` tokens are run, but a text can have one more."""
    path, context = tmp_path / "text.session", bundle.config.max_position_embeddings
    ids = np.zeros(context + 1, np.int32)
    for length in (context, context + 1):
        content = _sealed(_metadata(bundle), {**_tensors(bundle, length), "input_ids": ids})
        if length == context:
            _open(path, content, bundle)
        else:
            with pytest.raises(SessionError, match="are not the KV cache of this model"):
                _open(path, content, bundle)


def test_a_key_that_occurs_twice_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    twice = '"input_ids": {"dtype": "I32", "shape": [5], "data_offsets": [0, 20]}, '
    with pytest.raises(SessionError, match="the key 'input_ids' appears twice"):
        _open(tmp_path / "text.session", _sealed(_metadata(bundle), _tensors(bundle), twice), bundle)


def test_a_large_file_of_zeros_takes_no_memory(bundle: Bundle, tmp_path: Path) -> None:
    """A file without blocks on the disk claims 2^24 ids. They are hashed in pieces and never read as a whole."""
    path, size = tmp_path / "text.session", 4 * 2**24
    path.write_bytes(_sealed(_metadata(bundle), {"input_ids": ("I32", (2**24,), bytes(size))}))
    tracemalloc.start()
    try:
        with pytest.raises(SessionError, match=re.escape("input_ids: found I32 [16777216], expected I32 [1 to 49]")):
            SessionFile(path, bundle)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 8


@pytest.mark.parametrize(
    "messages", [[{"role": "user", "content": "\ud800"}], [{"role": 5}], [{"role": None}], [{"\udfff": "x"}]]
)
def test_messages_that_are_not_text_are_not_saved(bundle: Bundle, saved: Path, messages: Any) -> None:
    before = saved.read_bytes()
    with pytest.raises(RequestError, match=r"messages: found .*, expected Unicode text"):
        write_session(saved, bundle, _IDS, _caches(bundle), messages)
    assert saved.read_bytes() == before
