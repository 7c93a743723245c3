"""A thousand damaged bundles: each is refused, or behaves like the undamaged one."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from molkv_bundle import Bundle, BundleError, MolkvError, read_manifest
from molkv_export import export
from molkv_runtime import ExpertStore, Generator
from tests.manifests import edit_manifest, replace_file

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]

PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def bundle(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small bundle with a tokenizer and two shards."""
    folder = tmp_path_factory.mktemp("fuzz")
    checkpoint = shutil.copytree(checkpoints("molkv"), folder / "checkpoint")
    Tokenizer(WordLevel({"a": 1, "b": 2, "?": 3}, unk_token="?")).save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "tokenizer_config.json").write_text("{}")
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 96}')
    export(checkpoint, folder / "bundle", shard_size=150_000, experts_dtype="float32")
    return folder / "bundle"


def _behaviour(bundle: Path) -> tuple[str, Any]:
    """Read every record in a prompt, generate, and use the tokenizer."""
    try:
        generator = Generator(bundle)
        prompts = [range(0, 40), range(40, 80), range(57, 97)]
        tokens = [(token.sequence, token.id) for token in generator.stream(prompts, max_new_tokens=4)]
        pieces = list(generator.text("a b", max_new_tokens=2))
    except MolkvError as error:
        return "refused", str(error)
    return "ran", (tokens, pieces)


def _serve(connection: Connection) -> None:
    """Run bundles in a separate process, which may crash."""
    while True:
        connection.send(_behaviour(connection.recv()))


class Victim:
    """A process that opens bundles."""

    def __init__(self) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()

    def behaviour(self, bundle: Path) -> tuple[str, Any]:
        self._connection.send(bundle)
        deadline = PATIENCE_SECONDS
        while not self._connection.poll(0.2):
            deadline -= 0.2
            assert self._process.is_alive(), f"the driver crashed with {self._process.exitcode}"
            assert deadline > 0, "the driver hangs"
        found: tuple[str, Any] = self._connection.recv()
        return found

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    process = Victim()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def sound(victim: Victim, bundle: Path) -> tuple[str, Any]:
    behaviour = victim.behaviour(bundle)
    assert behaviour[0] == "ran"
    return behaviour


FILES = [
    "manifest.json",
    "model.onnx",
    "model.onnx.data",
    "experts-00001-of-00002.safetensors",
    "experts-00002-of-00002.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]

# A place in a file, relative to its size. Half of them are near the start, where the header is.
place = st.one_of(st.floats(0, 1, exclude_max=True), st.floats(0, 0.01))
damage = st.one_of(
    st.tuples(st.just("flip"), place, st.integers(0, 7)),
    st.tuples(st.just("overwrite"), place, st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("truncate"), place, st.none()),
    st.tuples(st.just("cut out"), place, place),
    st.tuples(st.just("repeat"), place, place),
    st.tuples(st.just("zero"), place, place),
    st.tuples(st.just("replace by"), st.just(0.0), st.sampled_from(FILES)),
)


def _damaged(data: bytes, kind: str, where: float, what: Any, bundle: Path) -> bytes:
    at = int(where * len(data))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << what]) + data[at + 1 :]
    if kind == "overwrite":
        return (data[:at] + what + data[at + len(what) :])[: len(data)]
    if kind == "insert":
        return data[:at] + what + data[at:]
    if kind == "truncate":
        return data[:at]
    if kind == "replace by":
        return (bundle / what).read_bytes()
    start, end = sorted((at, int(what * len(data))))
    return {
        "cut out": data[:start] + data[end:],
        "repeat": data[:end] + data[start:],
        "zero": data[:start] + bytes(end - start) + data[end:],
    }[kind]


def _fuzz(count: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@_fuzz(1000)
@given(name=st.sampled_from(FILES), mutation=damage)
def test_damage_is_refused_or_has_no_effect(
    name: str, mutation: Any, bundle: Path, victim: Victim, sound: tuple[str, Any]
) -> None:
    """Damage a file by accident: sizes, hashes and checksums stay the old ones."""
    path = bundle / name
    data = path.read_bytes()
    changed = _damaged(data, *mutation, bundle)
    try:
        path.write_bytes(changed)
        behaviour = victim.behaviour(bundle)
    finally:
        path.write_bytes(data)
    if behaviour[0] == "refused":
        assert changed != data
        assert "\n" not in behaviour[1]
        assert str(bundle) in behaviour[1]  # the file is named
    else:
        assert behaviour == sound


@_fuzz(300)
@given(name=st.sampled_from(FILES[1:]), mutation=damage)
def test_damage_with_a_fitting_manifest_neither_crashes_nor_hangs(
    name: str, mutation: Any, bundle: Path, victim: Victim, sound: tuple[str, Any]
) -> None:
    """Damage a file on purpose: size and hash match, so this is another bundle and may behave differently."""
    data, manifest = (bundle / name).read_bytes(), (bundle / "manifest.json").read_bytes()
    try:
        replace_file(bundle, name, _damaged(data, *mutation, bundle))
        behaviour = victim.behaviour(bundle)
    finally:
        (bundle / name).write_bytes(data)
        (bundle / "manifest.json").write_bytes(manifest)
    if behaviour[0] == "refused":
        assert "\n" not in behaviour[1]
    elif name.startswith("experts"):
        assert behaviour == sound  # records have checksums of their own


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(FILES),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=4,
)


@_fuzz(300)
@given(choices=st.lists(st.integers(0, 1000), min_size=6, max_size=6), value=values, remove=st.booleans())
def test_a_manifest_with_any_value_anywhere_neither_crashes_nor_hangs(
    choices: list[int], value: Any, remove: bool, bundle: Path, victim: Victim
) -> None:
    def edit(manifest: Any) -> None:
        for choice in choices:
            keys = list(manifest) if isinstance(manifest, dict) else list(range(len(manifest)))
            key = keys[choice % len(keys)]
            if choice == choices[-1] or not isinstance(manifest[key], dict | list) or not manifest[key]:
                break
            manifest = manifest[key]
        if remove:
            del manifest[key]
        else:
            manifest[key] = value

    before = (bundle / "manifest.json").read_bytes()
    try:
        edit_manifest(bundle, edit)
        behaviour = victim.behaviour(bundle)
    finally:
        (bundle / "manifest.json").write_bytes(before)
    if behaviour[0] == "refused":
        assert "\n" not in behaviour[1]


def test_no_byte_of_a_manifest_can_change_unnoticed(bundle: Path, tmp_path: Path) -> None:
    data = (bundle / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").write_bytes(data)
    read_manifest(tmp_path)
    for at in range(0, len(data), 3):
        (tmp_path / "manifest.json").write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(BundleError, match=r"manifest\.json"):
            read_manifest(tmp_path)


def test_no_byte_of_a_shard_header_can_change_with_an_effect(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    path = copy / FILES[4]
    data = path.read_bytes()
    first, refused = Bundle(bundle).manifest.experts.shards[1].first_row, 0
    expected = ExpertStore(Bundle(bundle)).gather(np.arange(first, 97)).tobytes()
    for at in range(4096):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            assert ExpertStore(Bundle(copy)).gather(np.arange(first, 97)).tobytes() == expected
        except BundleError as error:
            assert path.name in str(error)  # noqa: PT017 (most are refused, not all)
            refused += 1
    assert refused > 4000


def test_every_bit_of_a_small_record_is_checked(bundle: Path, tmp_path: Path) -> None:
    """Flip every bit, one at a time: the checksum finds it, and the error names record and token."""
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    generator = Generator(copy)
    store = generator.store
    path = copy / FILES[4]
    data = bytearray(path.read_bytes())
    start = len(data) - store.record_dtype.itemsize
    with path.open("r+b", buffering=0) as file:
        for byte in range(0, store.record_dtype.itemsize, 7):
            for bit in range(8):
                file.seek(start + byte)
                file.write(bytes([data[start + byte] ^ 1 << bit]))
                with pytest.raises(MolkvError, match=r"experts-00002-of-00002.safetensors: record \d+ \(token id 96\)"):
                    store.gather(np.array([96]))
            file.seek(start + byte)
            file.write(data[start + byte : start + byte + 1])
    store.gather(np.array([96]))
