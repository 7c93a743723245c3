"""Plug-ins of ONNX Runtime: loading of libraries, choice of devices, options, and the list of providers.

`make test-openvino`, `make test-qnn` and `make test-webgpu` run real plug-ins. Here, a stand-in for ONNX Runtime's
functions plays the plug-in, except where a real error of ONNX Runtime is expected.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from molkv_bundle import ProviderError
from molkv_runtime import PRESETS, Target, available_providers, load_provider_library, plugins, providers, resolve
from molkv_runtime import session_options as options_of


class _Runtime:
    """The functions of ONNX Runtime that handle plug-ins, with libraries that are only names."""

    def __init__(self) -> None:
        self.libraries: dict[str, list[Any]] = {}  # devices, by the name of the library's file
        self.registered: list[tuple[str, str]] = []
        self.added: list[tuple[list[str], dict[str, str]]] = []
        self._devices: list[Any] = []

    def register(self, name: str, path: str) -> None:
        self.registered.append((name, Path(path).name))
        self._devices += [SimpleNamespace(**{**vars(each), "ep_name": each.ep_name or name}) for each in self._of(path)]

    def unregister(self, name: str) -> None:
        [path] = [path for registered, path in self.registered if registered == name]
        del self._devices[-len(self._of(path)) :]
        self.registered.remove((name, path))

    def _of(self, path: str) -> list[Any]:
        return self.libraries[Path(path).name]

    def devices(self) -> list[Any]:
        return self._devices

    def add(self, devices: list[Any], options: dict[str, str]) -> None:
        self.added.append(([device.device.type.name for device in devices], options))


def _device(provider: str, kind: str = "CPU", vendor: str = "", **metadata: str) -> Any:
    """Return a device; without a provider it takes the name of the registration, as that of Qualcomm's plug-in."""
    hardware = SimpleNamespace(type=SimpleNamespace(name=kind), vendor=vendor)
    return SimpleNamespace(ep_name=provider, ep_metadata=metadata, device=hardware)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Runtime]:
    made = _Runtime()
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", made.register)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", made.devices)
    monkeypatch.setattr(onnxruntime, "unregister_execution_provider_library", made.unregister)
    before = dict(PRESETS)
    yield made
    PRESETS.clear()
    PRESETS.update(before)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Install a package, which has a library of its own name."""

    def install(package: str) -> None:
        library = tmp_path / f"{package}.so"
        module = SimpleNamespace(get_library_path=lambda: str(library), get_ep_name=lambda: "NewProvider")
        monkeypatch.setitem(sys.modules, package, module)
        monkeypatch.setattr(plugins, "installed_version", lambda asked: "7.1" if asked == package else "")
        monkeypatch.setattr(plugins, "installed_packages", lambda _prefix: [package])

    return install


def _add(runtime: _Runtime, name: str, **options: str) -> None:
    preset = PRESETS[name]
    session: Any = SimpleNamespace(add_provider_for_devices=runtime.add)
    providers.add_provider(session, preset, {**preset.options, **options})


def test_a_library_is_loaded_once_under_the_name_of_its_provider(
    runtime: _Runtime, installed: Callable[[str], None]
) -> None:
    installed("onnxruntime_qnn")
    runtime.libraries = {"onnxruntime_qnn.so": [_device(""), _device("", "NPU")]}
    for _ in range(2):
        _add(runtime, "qnn", backend_type="cpu")
    assert runtime.registered == [("QNNExecutionProvider", "onnxruntime_qnn.so")]
    assert [devices for devices, _ in runtime.added] == [["CPU", "NPU"]] * 2
    assert runtime.added[0][1]["backend_type"] == "cpu"


def test_an_option_chooses_the_device_and_the_others_become_properties_of_it(
    runtime: _Runtime, installed: Callable[[str], None]
) -> None:
    installed("onnxruntime_ep_openvino")
    name = PRESETS["openvino"].provider
    devices = [_device(name, ov_device="CPU"), _device(name, "GPU", ov_device="GPU.1"), _device("Another", "NPU")]
    runtime.libraries = {"onnxruntime_ep_openvino.so": devices}
    _add(runtime, "openvino", device_type="GPU.1")
    properties = {"GPU": {"INFERENCE_PRECISION_HINT": "f32"}}
    assert runtime.added == [(["GPU"], {"load_config": json.dumps(properties)})]
    with pytest.raises(ProviderError, match=r"has no device 'NPU', expected device_type to be one of CPU, GPU\.1$"):
        _add(runtime, "openvino", device_type="NPU")


def test_a_session_takes_the_first_device_of_other_plug_ins(
    runtime: _Runtime, installed: Callable[[str], None]
) -> None:
    installed("onnxruntime_ep_webgpu")
    name = PRESETS["webgpu"].provider
    runtime.libraries = {"onnxruntime_ep_webgpu.so": [_device(name, "GPU"), _device(name, "NPU")]}
    _add(runtime, "webgpu")
    assert runtime.added == [(["GPU"], {})]


def test_a_plug_in_without_devices_is_an_error(runtime: _Runtime, installed: Callable[[str], None]) -> None:
    installed("onnxruntime_ep_webgpu")
    runtime.libraries = {"onnxruntime_ep_webgpu.so": []}
    for _ in range(2):
        with pytest.raises(
            ProviderError, match=r"onnxruntime_ep_webgpu\.so: this plug-in finds no device on this machine"
        ):
            _add(runtime, "webgpu")


# --- libraries from a file


def test_a_library_of_a_preset_replaces_its_package(runtime: _Runtime, tmp_path: Path) -> None:
    runtime.libraries = {"qnn.so": [_device("", "NPU")], "webgpu.so": [_device(PRESETS["webgpu"].provider, "GPU")]}
    assert load_provider_library(tmp_path / "qnn.so", "QNNExecutionProvider") == ["qnn"]
    assert load_provider_library(str(tmp_path / "webgpu.so")) == ["webgpu"]
    _add(runtime, "qnn")
    _add(runtime, "webgpu")
    assert runtime.registered == [("QNNExecutionProvider", "qnn.so"), ("webgpu", "webgpu.so")]
    assert [devices for devices, _ in runtime.added] == [["NPU"], ["GPU"]]


def test_an_unknown_provider_gets_a_preset_that_takes_any_option(
    runtime: _Runtime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime.libraries = {"new.so": [_device("NewProvider", "NPU"), _device("Other", "GPU")]}
    with pytest.raises(
        ProviderError, match=r"new\.so: this plug-in has the provider NewProvider, Other, expected 'qnn'"
    ):
        load_provider_library(tmp_path / "new.so", "qnn")
    assert "NewProvider" not in PRESETS
    assert load_provider_library(tmp_path / "new.so", "NewProvider") == ["NewProvider"]
    assert "Other" not in PRESETS
    assert PRESETS["NewProvider"].own_memory
    assert PRESETS["NewProvider"].profiles == ("cpu", "coreml", "nnapi")
    added: list[Any] = []
    monkeypatch.setattr(providers, "add_provider", lambda _session, _preset, options: added.append(dict(options)))
    options_of(Target("NewProvider", {"anything": "1"}))
    assert added == [{"anything": "1"}]
    assert load_provider_library(tmp_path / "new.so") == ["NewProvider", "Other"]


def test_a_library_that_takes_any_name_needs_one(runtime: _Runtime, tmp_path: Path) -> None:
    runtime.libraries = {"libqnn.so": [_device("", "NPU")]}
    with pytest.raises(ProviderError, match=r"libqnn\.so: this plug-in does not say the name of its provider; name it"):
        load_provider_library(tmp_path / "libqnn.so")
    assert load_provider_library(tmp_path / "libqnn.so", "qnn") == ["qnn"]


def test_a_provider_of_two_libraries_is_an_error(runtime: _Runtime, tmp_path: Path) -> None:
    runtime.libraries = {"a.so": [_device("NewProvider")], "b.so": [_device("NewProvider")]}
    load_provider_library(tmp_path / "a.so")
    with pytest.raises(ProviderError, match=r"b\.so: the provider NewProvider is already loaded from another library"):
        load_provider_library(tmp_path / "b.so")


def test_an_installed_package_without_a_preset_is_found(runtime: _Runtime, installed: Callable[[str], None]) -> None:
    installed("onnxruntime_ep_new_chip")
    runtime.libraries = {"onnxruntime_ep_new_chip.so": [_device("NewProvider", "NPU")]}
    assert resolve("new-chip").provider == "NewProvider"
    _add(runtime, "new-chip", speed="high")
    assert runtime.added == [(["NPU"], {"speed": "high"})]
    [found] = [each for each in available_providers() if each.name == "new-chip"]
    assert (found.source, found.devices, found.problem) == ("onnxruntime-ep-new-chip 7.1", ["NPU"], "")


def _run(*arguments: str | Path) -> str:
    command = [sys.executable, "cli.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("content", [b"no library", Path(onnxruntime.__file__).parent])
def test_a_file_that_is_no_plug_in_is_one_line(content: Any, tmp_path: Path, stdlib_mini_bundle: Path) -> None:
    library = tmp_path / "plug-in.so"
    if isinstance(content, Path):  # a real library that is not a plug-in
        library = next(content.glob("capi/libonnxruntime_providers_shared.so"))
    else:
        library.write_bytes(content)
    said = _run("selftest", stdlib_mini_bundle, "--provider-library", library)
    assert said.startswith(f"error: {library}: ONNX Runtime {onnxruntime.__version__} cannot load this plug-in: ")


def test_an_unknown_name_is_refused_as_a_wrong_argument(stdlib_mini_bundle: Path) -> None:
    said = _run("run", stdlib_mini_bundle, "--prompt", "x", "--provider", "tpu")
    assert said.startswith(
        "error: Invalid value for '--provider': provider 'tpu' is unknown, expected one of cpu, xnnpack, "
    )


# --- the list of providers


def test_the_list_says_what_is_there_and_how_to_get_the_rest(
    runtime: _Runtime, installed: Callable[[str], None]
) -> None:
    installed("onnxruntime_ep_openvino")
    name = PRESETS["openvino"].provider
    runtime.libraries = {"onnxruntime_ep_openvino.so": [_device(name, vendor="Intel", ov_device="GPU.0")]}
    found = {each.name: each for each in available_providers()}
    assert list(found) == list(PRESETS)
    assert found["cpu"].source == f"onnxruntime {onnxruntime.__version__}"
    assert (found["openvino"].source, found["openvino"].devices) == ("onnxruntime-ep-openvino 7.1", ["GPU.0 (Intel)"])
    assert (found["qnn"].source, found["qnn"].problem) == ("", "pip install 'molkv-export[qnn]'")
    assert found["coreml"].problem == "use the package onnxruntime on macOS, or ONNX Runtime for iOS"
    assert [each.name for each in found.values() if not each.problem] == ["cpu", "openvino"]


def test_the_list_shows_why_a_plug_in_cannot_be_used(runtime: _Runtime, installed: Callable[[str], None]) -> None:
    installed("onnxruntime_ep_webgpu")
    runtime.libraries = {"onnxruntime_ep_webgpu.so": []}
    [webgpu] = [each for each in available_providers() if each.name == "webgpu"]
    assert webgpu.source == "onnxruntime-ep-webgpu 7.1"
    assert "this plug-in finds no device on this machine that it can use" in webgpu.problem


def test_the_command_prints_the_list_and_what_to_do() -> None:
    command = [sys.executable, "cli.py", "providers"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].split() == ["provider", "from", "devices", "profiles"]
    assert ["coreml", "absent", "coreml,", "nnapi"] in [line.split() for line in lines]
    assert "cuda: use the package onnxruntime-gpu in place of onnxruntime" in lines


def test_every_preset_of_a_plug_in_has_an_extra_with_its_package() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    packages = {name: preset.plugin.package.replace("_", "-") for name, preset in PRESETS.items() if preset.plugin}
    assert {name: extras[name][0].partition(">=")[0] for name in packages} == packages


def test_every_preset_says_how_to_get_its_provider() -> None:
    assert [name for name, preset in PRESETS.items() if not preset.plugin and not preset.where] == ["cpu"]
