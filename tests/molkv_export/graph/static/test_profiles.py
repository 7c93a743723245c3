"""Static graphs compute the model in every phase, on two evaluators, for every length of a prompt."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import onnx
import pytest

from molkv_bundle import Arrays, Bundle, BundleError, DenseDtype, MolkvError, RequestError
from molkv_export import GraphOptions, export, inspect, validate
from molkv_export.families import open_checkpoint
from molkv_export.lint import lint, optimized_graph
from molkv_export.parity.compared_texts import Scope
from molkv_export.parity.runners import ONNX_REFERENCE, load_generator
from molkv_export.source.model import SourceModel
from molkv_runtime import PRESETS, Call, Generator, Graph, Target, selftest
from molkv_runtime.probe import probe
from molkv_runtime.record_decoder import RecordDecoder
from molkv_runtime.static_calls import StaticCalls
from tests.manifests import edit_manifest, replace_file
from tests.models import CONFIGS, STDLIB_MINI, random_model, save_checkpoint

pytestmark = pytest.mark.slow

LENGTHS = (1, 4, 7)
VARIANTS: dict[str, tuple[str, DenseDtype]] = {
    "coreml": ("coreml", "float32"),
    "coreml-float16": ("coreml", "float16"),
    "nnapi": ("nnapi", "float32"),
    "nnapi-qdq-int8": ("nnapi", "qdq-int8"),
}


@pytest.fixture
def static(bundles: Callable[..., Path]) -> Callable[[str, str], Path]:
    def bundle(name: str, variant: str) -> Path:
        profile, dtype = VARIANTS[variant]
        return bundles(name, profiles=[profile], graph=GraphOptions(dtype, chunk_lengths=LENGTHS))

    return bundle


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, "coreml") for name in CONFIGS]
    + [("molkv-plain", "nnapi"), ("mole", "nnapi")]
    + [(name, variant) for name in ("molkv-gated", "mole") for variant in ("coreml-float16", "nnapi-qdq-int8")],
)
def test_every_phase_computes_what_the_model_computes(
    name: str, variant: str, static: Callable[..., Path], checkpoints: Callable[[str], Path]
) -> None:
    scope = Scope(sequences=1, continuations=2, new_tokens=8)
    report = validate(static(name, variant), checkpoints(name), scope=scope, with_bisection=True)
    assert report.failures == []
    assert selftest(static(name, variant)).failures == []


@pytest.mark.parametrize("variant", ["coreml", "coreml-float16"])
@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 1}, {"expert_layers": (2,)}, {"expert_layers": (0, 1)}, {"expert_layers": ()}],
    ids=["one layer", "the last", "all but the last", "none"],
)
@pytest.mark.parametrize("name", ["molkv", "mole"])
def test_models_work_if_longer_calls_need_few_inputs(
    name: str, changes: dict[str, Any], variant: str, tmp_path: Path
) -> None:
    profile, dtype = VARIANTS[variant]
    fields = {**msgspec.structs.asdict(CONFIGS[name]), "expert_layers": None, **changes}
    config = msgspec.convert(fields, type(CONFIGS[name]))
    save_checkpoint(random_model(config), tmp_path / "checkpoint")
    graph = GraphOptions(dtype, chunk_lengths=LENGTHS)
    export(tmp_path / "checkpoint", tmp_path / "bundle", profiles=[profile], graph=graph)
    assert selftest(tmp_path / "bundle").failures == []


@pytest.mark.parametrize("variant", ["coreml", "nnapi"])
@pytest.mark.parametrize("name", CONFIGS)
def test_onnx_reference_computes_the_model_with_standard_operators_only(
    name: str,
    variant: str,
    static: Callable[..., Path],
    checkpoints: Callable[[str], Path],
    token_ids: np.ndarray[Any, Any],
) -> None:
    bundle = Bundle(static(name, variant))
    state = load_generator(bundle, Target(ONNX_REFERENCE)).sequences()
    ids = token_ids[:17]
    found = [state.prefill(0, ids[:13], all_logits=True), *(state.decode(ids[t : t + 1]).copy() for t in range(13, 17))]
    with open_checkpoint(checkpoints(name)) as source:
        exact = SourceModel(source).logits(ids)
    np.testing.assert_allclose(np.concatenate(found), exact, atol=5e-6)


def test_float16_is_close_if_every_operator_rounds_to_float16(
    static: Callable[..., Path], checkpoints: Callable[[str], Path], token_ids: np.ndarray[Any, Any]
) -> None:
    bundle = Bundle(static("molkv-gated", "coreml-float16"))
    state = load_generator(bundle, Target(ONNX_REFERENCE)).sequences()
    found = [state.prefill(0, token_ids[:12], all_logits=True), state.decode(token_ids[12:13]).copy()]
    with open_checkpoint(checkpoints("molkv-gated")) as source:
        exact = SourceModel(source, bundle).logits(token_ids[:13])
    np.testing.assert_allclose(np.concatenate(found), exact, atol=0.05)  # the logits have a spread of about 1


@pytest.mark.parametrize("name", ["molkv", "mole"])
def test_prompts_of_any_length_end_with_the_same_logits(
    name: str, static: Callable[..., Path], bundles: Callable[..., Path], token_ids: np.ndarray[Any, Any]
) -> None:
    fixed, dynamic = Generator(static(name, "coreml")), Generator(bundles(name))
    states = fixed.sequences(2), dynamic.sequences(2)
    for length in range(1, 24):
        for state in states:
            state.lengths[:] = 0
            state.prefill(1, token_ids[40:45])  # another sequence, which must not affect this one
        first, second = (state.prefill(0, token_ids[:length]) for state in states)
        np.testing.assert_allclose(first, second, atol=2e-5)
        # Continue after the end of the prompt, with another prompt and with a step.
        first, second = (state.prefill(0, token_ids[length : length + 9]) for state in states)
        np.testing.assert_allclose(first, second, atol=2e-5)
        first, second = (state.decode([3, 4]).copy() for state in states)
        np.testing.assert_allclose(first, second, atol=2e-5)


def test_a_prompt_is_divided_into_the_longest_calls_that_it_fills(static: Callable[..., Path]) -> None:
    generator = Generator(static("molkv", "coreml"))
    graph = generator.bundle.graph()
    decoder = RecordDecoder(generator.config, "float16")
    calls = StaticCalls(generator.config, generator.graph, graph.kv_dtype, 1, graph.lengths, None, decoder)

    def cut(length: int) -> list[tuple[int, int]]:
        return [(part.length, part.rows or part.length) for part in calls.parts(0, 5, length, all_logits=False)]

    assert cut(1) == [(1, 1)]
    assert cut(2) == [(1, 1), (1, 1)]
    assert cut(3) == [(2, 4), (1, 1)]
    assert cut(8) == [(7, 7), (1, 1)]
    assert cut(22) == [(7, 7), (7, 7), (7, 7), (1, 1)]
    assert cut(13) == [(7, 7), (4, 4), (1, 1), (1, 1)]
    assert cut(20) == [(7, 7), (7, 7), (4, 4), (1, 1), (1, 1)]
    assert cut(18) == [(7, 7), (7, 7), (3, 4), (1, 1)]


def test_a_prompt_that_fails_leaves_its_sequence_as_it_was(
    static: Callable[..., Path], token_ids: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    sound = static("molkv", "coreml")
    damaged = shutil.copytree(sound, tmp_path / "bundle")
    # A prompt of 20 is cut into 7, 7, 4, 1 and 1: a record of the third part cannot be read.
    token = next(iter(set(token_ids[34:38]) - set(token_ids[:34])))
    [shard] = Bundle(damaged).manifest.experts.shards
    content = bytearray((damaged / shard.file).read_bytes())
    header, stride = 8 + int.from_bytes(content[:8], "little"), Bundle(damaged).manifest.experts.stride
    content[header + token * stride] ^= 1
    (damaged / shard.file).write_bytes(content)
    state, whole = Generator(damaged).sequences(), Generator(sound).sequences()
    state.prefill(0, token_ids[:9])
    whole.prefill(0, token_ids[:9])
    with pytest.raises(BundleError, match=rf"token id {token}\) fails its checksum"):
        state.prefill(0, token_ids[20:40])
    assert state.lengths[0] == 9
    np.testing.assert_array_equal(state.decode(token_ids[9:10]), whole.decode(token_ids[9:10]))


def test_sequences_in_a_batch_do_not_affect_each_other(static: Callable[..., Path]) -> None:
    generator = Generator(static("molkv", "coreml"))
    prompts = [[5, 17, 3], [42], list(range(20))]
    batch: list[list[int]] = [[], [], []]
    for token in generator.stream(prompts, max_new_tokens=9):
        batch[token.sequence].append(token.id)
    assert batch == [[token.id for token in generator.stream([prompt], max_new_tokens=9)] for prompt in prompts]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["molkv", "mole"])
def test_exported_graphs_have_no_lint_findings(name: str, variant: str, static: Callable[..., Path]) -> None:
    bundle = Bundle(static(name, variant))
    target: Any = VARIANTS[variant][0]
    for file in bundle.graph().files:
        path = bundle.path / file.file
        for model in (onnx.load(path, load_external_data=False), optimized_graph(path, ["MatMulAddFusion"])):
            found = lint(model, target)
            assert (found.findings, found.partitions) == ([], 1)


def test_weights_are_stored_once(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    sizes = []
    for lengths in ((1,), (1, 4, 7, 16)):
        folder = tmp_path / str(len(lengths))
        graph = GraphOptions(chunk_lengths=lengths)
        manifest = export(checkpoints("molkv"), folder, profiles=["coreml"], graph=graph)
        sizes.append(manifest.files[manifest.graphs["coreml"].data].size)
        assert manifest.graphs["coreml"].lengths == list(lengths)
    assert sizes[0] == sizes[1]


def test_a_shorter_context_and_window_equal_a_model_with_that_configuration(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    graph = GraphOptions(chunk_lengths=(4,), context_length=20, expert_window=3)
    export(checkpoints("molkv"), tmp_path / "b", profiles=["nnapi"], graph=graph, experts_dtype="float32")
    generator = Generator(tmp_path / "b")
    assert (generator.config.max_position_embeddings, generator.config.expert_window) == (20, 3)
    scope = Scope(sequences=1, continuations=1, new_tokens=4)
    assert validate(tmp_path / "b", checkpoints("molkv"), scope=scope).failures == []
    with pytest.raises(RequestError, match=r"max_length: found 21, expected 1 to 20"):
        generator.sequences(max_length=21)


# --- every graph is compared with the golden vectors


class _Lengths:
    """A graph that records the lengths of its calls."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self.seen = graph, set[int]()

    def bind(self, length: int, inputs: Arrays, outputs: Arrays) -> Call:
        call, run = self._graph.bind(length, inputs, outputs), self.seen.add
        length = len(inputs["inputs_embeds"])
        return cast(Call, SimpleNamespace(run=lambda: (run(length), call.run())))


def test_selftest_and_probe_run_every_graph(bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [1, 4, 8, 16]
    bundle = bundles("molkv", "float16", profiles=["coreml"], graph=GraphOptions(chunk_lengths=lengths))
    generator = Generator(bundle)
    generator.graph = graphs = _Lengths(generator.graph)
    probe(generator.bundle, lambda length: generator.sequences(max_length=length), "cpu")
    assert sorted(graphs.seen) == lengths
    graphs.seen.clear()
    # The package exports a function with the same name as the module.
    monkeypatch.setattr(sys.modules["molkv_runtime.selftest"], "Generator", lambda *_, **__: generator)
    assert selftest(bundle).failures == []
    assert sorted(graphs.seen) == lengths


def test_a_mixed_up_batch_is_found_even_with_a_loose_tolerance(
    static: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "coarse", PRESETS["cpu"]._replace(max_abs=1e-3))  # type: ignore[arg-type]
    bundle = static("molkv", "coreml")
    assert selftest(bundle, target=Target("coarse")).failures == []
    decode = StaticCalls.decode
    monkeypatch.setattr(StaticCalls, "decode", lambda self, *rest: np.roll(decode(self, *rest), 1, axis=0))
    assert [failure[:17] for failure in selftest(bundle, target=Target("coarse")).failures] == ["decode in a batch"]


# --- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_length": 10**9}, r"context_length: found 1000000000, expected 1 to 48 \(as in the model\)"),
        ({"expert_window": 0}, r"expert_window: found 0, expected 1 to 5 \(as in the model\)"),
        (
            {"kv_dtype": "int8"},
            "found dense_dtype float32 and kv_dtype int8, expected neither int8 nor int4",
        ),
        ({"window_dtype": "int8"}, "window_dtype: found int8, expected float32, as in all static graphs"),
        (
            {"context_length": 6},
            r"graphs.coreml.files: found lengths \[1, 4, 7\], expected .* the last at most 6 \(its context_length\)",
        ),
        ({"files": []}, r"files: found lengths \[\], expected ascending lengths, the first 1"),
        ({"golden": "other"}, "files: 'other' is missing, but another field"),
        ({"context_length": 20}, "its inputs in the manifest differ from those that the model's configuration"),
    ],
)
def test_a_manifest_with_wrong_static_graphs_is_refused(
    change: dict[str, Any], message: str, static: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = shutil.copytree(static("molkv", "coreml"), tmp_path / "bundle")
    edit_manifest(bundle, lambda manifest: manifest["graphs"]["coreml"].update(change))
    for use in (Generator, inspect):
        with pytest.raises(BundleError, match=message):
            use(bundle)


def test_the_profile_says_whether_a_graph_is_static(static: Callable[..., Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(static("molkv", "coreml"), tmp_path / "bundle")
    edit_manifest(bundle, lambda manifest: manifest.update(graphs={"cpu": manifest["graphs"]["coreml"]}))
    with pytest.raises(BundleError, match=r"graphs.cpu.files: found lengths \[1, 4, 7\], expected \[0\] \(one file"):
        Generator(bundle)


@pytest.mark.parametrize("content", [b"\xff" * 100, b"", b"\x3a\x0b\x0a\x09\x22\x06MatMul\x0a\x01x"])
def test_an_invalid_graph_file_is_refused(content: bytes, static: Callable[..., Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(static("molkv", "coreml"), tmp_path / "bundle")
    replace_file(bundle, "model.coreml.4.onnx", content)
    with pytest.raises(MolkvError, match=r"model.coreml.4.onnx"):
        Generator(bundle)
    try:
        inspect(bundle)
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("profile", "options", "message"),
    [
        ("coreml", {"context_length": 49}, r"context_length: found 49, expected 1 to 48 \(the limit of the model\)"),
        ("coreml", {"context_length": 0}, "context_length: found 0, expected 1 to 48"),
        ("nnapi", {"expert_window": 6}, "expert_window: found 6, expected 1 to 5"),
        (
            "coreml",
            {"chunk_lengths": (0,)},
            "chunk_lengths: found 0, expected lengths from 1 to 48",
        ),
        ("coreml", {"chunk_lengths": (1, 49)}, "chunk_lengths: found 49, expected lengths from 1 to 48"),
        (
            "coreml",
            {"dense_dtype": "int4"},
            "dense_dtype: found int4, expected one of float32, float16 in profile coreml",
        ),
        ("nnapi", {"dense_dtype": "float16"}, "expected one of float32, qdq-int8 in profile nnapi"),
        ("coreml", {"kv_dtype": "int8"}, "kv_dtype: found int8, expected float32 in profile coreml"),
        ("tpu", {}, "profile: found tpu, expected one of cpu, coreml, nnapi"),
        ("cpu", {"expert_window": 3}, "expert_window: found 3, expected no value for profile cpu"),
        ("cpu", {"chunk_lengths": (4,)}, r"chunk_lengths: found \(4,\), expected no value for profile cpu"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(
    profile: str, options: dict[str, Any], message: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        export(checkpoints("molkv"), tmp_path / "bundle", profiles=[profile], graph=GraphOptions(**options))
    assert list(tmp_path.iterdir()) == []


def test_the_error_for_a_missing_profile_says_how_to_add_it(stdlib_mini_bundle: Path) -> None:
    message = r"has no graph for profile 'coreml'; available: cpu. Add it with: .* --add-profile coreml"
    with pytest.raises(BundleError, match=message):
        Generator(stdlib_mini_bundle, profile="coreml")


@pytest.mark.parametrize(("profile", "dtype"), [("coreml", "float16"), ("nnapi", "qdq-int8")])
def test_the_trained_model_generates_text_in_int8_and_float16(
    profile: str, dtype: DenseDtype, bundles: Callable[..., Path]
) -> None:
    bundle = bundles("stdlib-mini", "float16", profiles=[profile], graph=GraphOptions(dtype))
    assert validate(bundle, STDLIB_MINI, scope=Scope(1, 2, 32, text_length=128)).failures == []
