"""A bundle of Gemma 4 computes what the reference model computes, in every phase and format."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models

from molkv_bundle import ArgumentError, Bundle, ConfigError, DenseDtype, KVDtype, RequestError, RowDtype
from molkv_export import GraphOptions, Scope, export, inspect, validate
from molkv_runtime import Generator, selftest
from tests.molkv_export.gemma4.models import VARIANTS, save_text_model

Folders = Callable[[str], Path]
SCOPE = Scope(sequences=2, continuations=1, new_tokens=6)
IDS = np.random.default_rng(1).integers(0, 97, 40)

# Each dtype of weights, of records and of the KV cache, and each variant of the model, occurs at least once.
FORMATS: list[tuple[str, DenseDtype, RowDtype, KVDtype]] = [
    ("base", "float32", "float16", "float32"),
    ("no-sharing", "float16", "float32", "float32"),
    ("base", "int8", "int8", "float32"),
    ("one-shared", "int4", "int4", "float32"),
    ("base", "float32", "float32", "int8"),
    ("most-shared", "int4", "int8", "int8"),
    ("all-full", "int8", "int4", "float32"),
    ("long-window", "float32", "float32", "float32"),
    ("one-position", "float32", "float32", "float32"),
    ("default-types", "float32", "float32", "float32"),
    ("rotation", "float32", "float32", "float32"),
    ("same-heads", "float32", "float16", "float32"),
]


def test_the_formats_include_every_variant() -> None:
    assert {variant for variant, *_ in FORMATS} == VARIANTS.keys()
    assert {experts for *_, experts, _ in FORMATS} | {"nf4"} == set(get_args(RowDtype))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS, ids="-".join)
def test_the_bundle_computes_what_the_source_computes(
    form: tuple[str, DenseDtype, RowDtype, KVDtype], folders: Folders, tmp_path: Path
) -> None:
    variant, dense, experts, kv = form
    graph = GraphOptions(dense, block_size=16 if dense == "int4" else None, kv_dtype=kv)
    export(folders(variant), tmp_path / "bundle", experts_dtype=experts, graph=graph)
    report = validate(tmp_path / "bundle", folders(variant), scope=SCOPE, with_bisection=True)
    assert report.failures == []
    assert selftest(tmp_path / "bundle").failures == []


@pytest.mark.slow
def test_the_head_can_be_int4(folders: Folders, tmp_path: Path) -> None:
    graph = GraphOptions("int4", block_size=32, lm_head_dtype="int4")
    export(folders("rotation"), tmp_path / "bundle", experts_dtype="int8", graph=graph)
    assert validate(tmp_path / "bundle", folders("rotation"), scope=SCOPE, with_bisection=True).failures == []
    assert selftest(tmp_path / "bundle").failures == []


@pytest.mark.slow
def test_records_can_be_nf4(tmp_path: Path) -> None:
    save_text_model(tmp_path / "checkpoint", hidden_size_per_layer_input=64)
    export(tmp_path / "checkpoint", tmp_path / "bundle", experts_dtype="nf4")
    assert validate(tmp_path / "bundle", tmp_path / "checkpoint", scope=SCOPE).failures == []


@pytest.mark.slow
def test_the_multimodal_folder_is_exported(folders: Folders, tmp_path: Path) -> None:
    export(folders("multimodal"), tmp_path / "bundle")
    assert validate(tmp_path / "bundle", folders("multimodal"), scope=SCOPE).failures == []
    assert Bundle(tmp_path / "bundle").manifest.generation.eos_token_ids == (1,)


@pytest.mark.slow
def test_a_tokenizer_without_bos_gives_a_warning(folders: Folders, tmp_path: Path) -> None:
    checkpoint, out = shutil.copytree(folders("base"), tmp_path / "checkpoint"), io.StringIO()
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "<bos>": 2}, unk_token="<unk>"))
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    export(checkpoint, tmp_path / "bundle", console=Console(file=out, width=500))
    assert "tokenizer.json: does not begin texts with <bos>, which the model expects; begin prompts" in out.getvalue()


def test_only_layers_with_a_cache_have_one(bundle: Folders) -> None:
    ours = Bundle(bundle("base"))
    assert [tuple(cache) for cache in ours.config.kv_caches()] == [(0, 1, 32), (1, 1, 32), (2, 1, 64), (3, 1, 32)]
    assert ours.config.shared_kv_caches() == {4: 3, 5: 3, 6: 2}
    assert inspect(bundle("base")).sizes.ram_kv_cache == 64 * 4 * 2 * (3 * 32 + 64)


def test_parts_batches_and_steps_compute_the_same_as_one_prompt(bundle: Folders) -> None:
    generator = Generator(bundle("base"))
    whole = generator.sequences(prefill_chunk=40).prefill(0, IDS, all_logits=True)
    state = generator.sequences(3, prefill_chunk=7)
    found = [state.prefill(1, IDS[:20], all_logits=True)]
    state.prefill(0, IDS[5:9])
    state.prefill(2, IDS[:30])
    for index, token in enumerate(IDS[20:]):
        step = state.decode([3, token, IDS[min(30 + index, 39)]])
        found.append(step[1:2].copy())
        if index < 10:
            np.testing.assert_allclose(step[2], whole[30 + index], atol=2e-5)
    np.testing.assert_allclose(np.concatenate(found), whole, atol=2e-5)
    assert np.abs(whole).max() > 1


@pytest.mark.parametrize("length", [1, 7, 8, 9, 40])
def test_the_last_logits_do_not_depend_on_how_many_are_wanted(bundle: Folders, length: int) -> None:
    """With one logit, the layers that share a cache compute one position; the caches must hold all positions."""
    state = Generator(bundle("base")).sequences(2)
    every = state.prefill(0, IDS[:length], all_logits=True)
    last = state.prefill(1, IDS[:length])
    np.testing.assert_allclose(last[0], every[-1], atol=2e-5)
    first, second = state.decode([11, 11])
    np.testing.assert_allclose(first, second, atol=2e-5)


def test_a_sequence_can_be_shortened_beyond_its_window(bundle: Folders) -> None:
    state = Generator(bundle("base")).sequences(2)
    state.prefill(0, IDS)
    state.rewind(0, 12)
    state.prefill(1, IDS[:12])
    rewound, new = state.prefill(0, IDS[20:30], all_logits=True), state.prefill(1, IDS[20:30], all_logits=True)
    np.testing.assert_allclose(rewound, new, atol=2e-5)


def test_a_copy_of_a_sequence_continues_like_it(bundle: Folders) -> None:
    state = Generator(bundle("base")).sequences(2)
    state.prefill(0, IDS[:21])
    assert state.fork(0) == 1
    first, second = state.decode([7, 7])
    np.testing.assert_array_equal(first, second)
    first, second = state.decode([7, 9])
    assert np.abs(first - second).max() > 0.1
    assert {*state.caches(0)} == {f"{layer}.{kind}" for layer in range(4) for kind in ("key", "value")}


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_a_saved_session_continues(kv_dtype: KVDtype, folders: Folders, tmp_path: Path) -> None:
    export(folders("rotation"), tmp_path / "bundle", graph=GraphOptions(kv_dtype=kv_dtype))
    generator = Generator(tmp_path / "bundle", prefix_cache_bytes=0)
    session, prompt, more = generator.session(), IDS[:20].tolist(), IDS[20:25].tolist()
    found = [token.id for token in session.stream(prompt, max_new_tokens=6, stop_ids=frozenset())]
    session.save(tmp_path / "session")
    whole = [*prompt, *found, *more]
    expected = [token.id for token in generator.stream([whole], max_new_tokens=6, stop_ids=frozenset())]
    restored = Generator(tmp_path / "bundle").restore(tmp_path / "session")
    assert restored.ids == [*prompt, *found]
    assert [token.id for token in restored.stream(more, max_new_tokens=6, stop_ids=frozenset())] == expected
    assert len({*found, *expected}) > 4


def test_the_context_is_at_most_4096_unless_the_user_chooses(folders: Folders, tmp_path: Path) -> None:
    save_text_model(tmp_path / "long", max_position_embeddings=131_072)
    manifest = export(tmp_path / "long", tmp_path / "long.bundle", graph=GraphOptions("float16"))
    assert (manifest.graphs["cpu"].context_length, manifest.model.max_position_embeddings) == (4096, 131_072)
    export(folders("base"), tmp_path / "short.bundle", graph=GraphOptions(context_length=20))
    generator = Generator(tmp_path / "short.bundle")
    assert generator.config.max_position_embeddings == 20
    with pytest.raises(RequestError, match="20"):
        generator.sequences().prefill(0, IDS[:21])
    assert selftest(tmp_path / "short.bundle").failures == []


def test_only_profile_cpu_exists(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="profile: found coreml, expected cpu for a model of type gemma4_text"):
        export(folders("base"), tmp_path / "bundle", profiles=["coreml"])


def test_a_head_size_that_onnxruntime_lacks_is_refused(tmp_path: Path) -> None:
    save_text_model(tmp_path / "checkpoint", global_head_dim=40)
    with pytest.raises(ConfigError, match="global_head_dim is 40, expected a multiple of 16"):
        export(tmp_path / "checkpoint", tmp_path / "bundle")


def test_the_lm_head_is_stored_once(bundle: Folders) -> None:
    graph = onnx.load(bundle("base") / "model.onnx", load_external_data=False).graph
    assert [tensor.name for tensor in graph.initializer if 97 in tensor.dims] == ["lm_head.weight"]
