"""Presets of providers: errors for absent ones, options, placements, and refusal of wrong results."""

from __future__ import annotations

import ctypes
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from molkv_bundle import Bundle, Floats, ProviderError, RequestError
from molkv_runtime import (
    PRESETS,
    BoundCall,
    Generator,
    Target,
    describe_placements,
    plugins,
    providers,
    resolve,
    session_options,
)
from molkv_runtime.onnxruntime_session import Placement
from molkv_runtime.providers import Preset, check_options


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make a preset of an installed provider. Its logits may be off by 0.01."""

    def make(provider: str = "CPUExecutionProvider", **fields: Any) -> str:
        known = {"speed": ("slow", "fast"), "folder": ()}
        made = Preset(provider, **{"profiles": ("cpu",), "known": known, "max_abs": 0.01, **fields})
        monkeypatch.setitem(PRESETS, "made-up", made)  # type: ignore[arg-type]
        return "made-up"

    return make


def test_cpu_is_always_there() -> None:
    assert resolve("cpu").provider == "CPUExecutionProvider"


def test_an_absent_provider_is_an_error_that_lists_what_is_there(bundles: Callable[..., Path]) -> None:
    with pytest.raises(ProviderError, match=r"'coreml' \(CoreMLExecutionProvider\) is not in this .*; available: cpu"):
        Generator(bundles("molkv"), target="coreml")


def test_an_unknown_provider_is_an_error_that_lists_the_presets() -> None:
    with pytest.raises(ProviderError, match=r"'tpu' is unknown, expected one of cpu, .*; available: cpu"):
        resolve("tpu")


def test_an_absent_plug_in_is_an_error_that_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "installed_version", lambda _package: "")
    expected = r"'qnn' \(QNNExecutionProvider\) is not in this ONNX .*; to get it: pip install 'molkv-export\[qnn\]'"
    with pytest.raises(ProviderError, match=expected):
        resolve("qnn")


# --- options


def test_presets_set_options_that_they_know() -> None:
    for name, preset in PRESETS.items():
        check_options(name, preset.options)
        assert {preset.threads, preset.cache} - {""} <= set(preset.known), name


def test_an_option_that_a_provider_does_not_know_is_refused(preset: Callable[..., str]) -> None:
    with pytest.raises(RequestError, match="provider_options: found Units, expected one of ModelFormat, MLCompute"):
        check_options("coreml", {"Units": "ALL"})
    with pytest.raises(
        RequestError,
        match="found MLComputeUnits=TPU, expected MLComputeUnits to be one of ALL, CPUOn",
    ):
        check_options("coreml", {"MLComputeUnits": "TPU"})
    with pytest.raises(RequestError, match=r"found speed, expected none \(the options of provider cpu\)"):
        session_options(Target("cpu", {"speed": "fast"}))
    assert session_options(Target(preset(), {"speed": "fast", "folder": "anything"}))


def test_given_options_override_those_of_the_preset(
    preset: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = preset(options={"speed": "slow"}, threads="workers", cache="folder", config={"session.intra_op.x": "0"})
    taken: list[dict[str, str]] = []
    monkeypatch.setattr(providers, "add_provider", lambda _session, _preset, options: taken.append(dict(options)))
    monkeypatch.setenv("HOME", str(tmp_path))
    options = session_options(Target(name, {"speed": "fast"}, threads=1), "0123" * 16)
    folder = tmp_path / ".cache" / "molkv" / ("0123" * 8)
    assert taken == [{"speed": "fast", "workers": "1", "folder": str(folder)}]
    assert folder.is_dir()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.x") == "0"
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    (tmp_path / "nobody").write_text("no folder")
    session_options(Target(name, {"folder": "/elsewhere"}), "0123" * 16)
    assert taken[-1]["folder"] == "/elsewhere"
    with pytest.raises(ProviderError, match=r"needs a folder for compiled models, .*--provider-option folder=FOLDER"):
        session_options(Target(name), "0123" * 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--provider", "coreml"], "provider 'coreml' (CoreMLExecutionProvider) is not in this ONNX Runtime"),
        (["--provider-option", "speed=fast"], "--provider-option: found speed, expected none (the"),
        (["--provider-option", "speed"], "found 'speed', expected NAME=VALUE such as MLComputeUnits=ALL"),
        (["--profile", "nnapi"], "has no graph for profile 'nnapi'; available: cpu. Add it with: molkv-export export"),
    ],
)
def test_the_command_line_prints_the_error_in_one_line(
    arguments: list[str], message: str, stdlib_mini_bundle: Path
) -> None:
    command = [sys.executable, "cli.py", "run", stdlib_mini_bundle, "--prompt", "def ", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


# --- where nodes run


def test_placements_are_known_and_printed(bundles: Callable[..., Path]) -> None:
    placements = Generator(bundles("molkv")).placements
    assert [(place.provider, place.partitions) for place in placements[0]] == [("CPUExecutionProvider", 0)]
    assert placements[0][0].nodes > 30
    said = describe_placements({1: [Placement("X", 9, 1), Placement("CPU", 2, 0)], 32: [Placement("X", 8, 2)]})
    assert said == (
        "calls of 1: 9 nodes on X in 1 partition(s), 2 nodes on CPU; calls of 32: 8 nodes on X in 2 partition(s)"
    )


def test_nodes_that_run_elsewhere_are_an_error_where_the_provider_is_required(
    preset: Callable[..., str], bundles: Callable[..., Path]
) -> None:
    name = preset("AzureExecutionProvider")  # this build has it, and it takes no node
    assert Generator(bundles("molkv"), target=Target(name)).placements[0][0].provider == "CPUExecutionProvider"
    with pytest.raises(ProviderError, match=r"leaves \d+ nodes to other providers \(\d+ MatMul, .*expected none"):
        Generator(bundles("molkv"), target=Target(name, required=True))
    assert Generator(bundles("molkv"), target=Target(preset(), required=True))


# --- computed numbers


@pytest.mark.parametrize(("error", "is_only_in_steps"), [(0.02, False), (np.nan, False), (0.02, True)])
def test_a_provider_that_computes_something_else_is_refused(
    error: float,
    is_only_in_steps: bool,
    preset: Callable[..., str],
    bundles: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = preset()
    assert Generator(bundles("molkv"), target=name)
    run, bind = BoundCall.run, BoundCall.__init__

    def keep(self: Any, session: Any, inputs: Any, outputs: Any, target: Target) -> None:
        bind(self, session, inputs, outputs, target)
        self.logits, self.is_step = outputs["logits"], inputs["inputs_embeds"].shape[1] == 1

    def wrong(self: Any) -> None:
        run(self)
        if self.is_step or not is_only_in_steps:
            self.logits += np.float32(error)

    monkeypatch.setattr(BoundCall, "__init__", keep)
    monkeypatch.setattr(BoundCall, "run", wrong)
    with pytest.raises(ProviderError, match=r"'made-up' computes wrong numbers: .*expected at most 0.01;"):
        Generator(bundles("molkv"), target=name)
    assert Generator(bundles("molkv"))  # the CPU provider is not probed: tests compare it with PyTorch
    assert Generator(bundles("molkv"), target=name, verify_provider=False)


class _CopyingBinding(onnxruntime.IOBinding):
    """Copies an input when it is bound, like ONNX Runtime's binding for a provider with memory of its own."""

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self._copies = dict[str, Any]()

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: list[int], pointer: int) -> None:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        copy = self._copies[name] = ctypes.create_string_buffer(ctypes.string_at(pointer, size), size)
        super().bind_input(name, device, number, dtype, shape, ctypes.addressof(copy))


@pytest.mark.parametrize(("name", "profile"), [("molkv", "cpu"), ("stdlib-mini", "nnapi")])
def test_a_provider_with_memory_of_its_own_gets_the_inputs_of_each_call(
    name: str, profile: str, bundles: Callable[..., Path], preset: Callable[..., str], monkeypatch: Any
) -> None:
    bundle = Bundle(bundles(name, profiles=[profile]), profile=profile)
    ids = np.arange(1, 40)

    def logits(target: str) -> list[Floats]:
        state = Generator(bundle, target=target, verify_provider=False).sequences()
        return [state.prefill(0, ids).copy(), *(state.decode(ids[at : at + 1]).copy() for at in range(5))]

    plain = logits("cpu")

    def binding(session: Any) -> onnxruntime.IOBinding:
        is_dense_graph = "logits" in [output.name for output in session.get_outputs()]
        return (_CopyingBinding if is_dense_graph else onnxruntime.IOBinding)(session)

    monkeypatch.setattr(onnxruntime.InferenceSession, "io_binding", binding)
    assert np.array_equal(logits(preset(profiles=(profile,), own_memory=True)), plain)
