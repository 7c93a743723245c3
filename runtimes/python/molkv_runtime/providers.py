"""Presets of execution providers: their names, and the options that bundles need. A preset may be in a plug-in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import onnxruntime

from molkv_bundle import ArgumentError, ProviderError, one_line
from molkv_runtime import plugins

Options = Mapping[str, str]

_NONE: Options = MappingProxyType({})
_FLAG = ("0", "1")
_ANY: tuple[str, ...] = ()
# This fusion turns MatMul and Add into a Gemm whose bias is not a constant. Compilers refuse such a Gemm. In addition,
# the CoreML provider writes the weights of a Gemm as text, which takes gigabytes for a large model (onnxruntime issue
# 32212).
_WITHOUT_FUSION = {"optimization.disable_specified_optimizers": "MatMulAddFusion"}


class Plugin(NamedTuple):
    """Where the plug-in of a provider is, and how it takes devices and options."""

    package: str = ""  # the Python package of the plug-in
    library: Path | None = None  # the file of the plug-in, in place of the package
    device: tuple[str, str] | None = None  # the option that chooses a device, and the device's metadata with its name
    properties: str = ""  # the option that takes all other options, as JSON: {device: {option: value}}
    all_devices: bool = False  # whether a session takes all devices of the provider, not only the first


class Preset(NamedTuple):
    """The driver's settings for a provider."""

    provider: str  # ONNX Runtime's name of the provider
    profiles: tuple[str, ...]  # profiles of the graphs that it can run, best first
    known: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # allowed options and values; (): any value
    takes_any_option: bool = False  # whether options other than the known ones are allowed
    options: Options = _NONE  # options that the driver sets by default
    config: Options = _NONE  # configuration entries of the session
    max_abs: float = 0.0  # additional error of a logit that is allowed, if the provider is less precise than float32
    threads: str = ""  # the option for the number of threads, if the provider has its own threads
    cache: str = ""  # the option for the folder of compiled models
    own_memory: bool = False  # whether the provider computes in memory of its own, such as that of a GPU
    plugin: Plugin | None = None  # None: the provider is in ONNX Runtime itself
    where: str = ""  # the machines or the builds of ONNX Runtime that have the provider, if most of them do not


_STATIC = ("coreml", "nnapi")
_DYNAMIC = ("cpu", *_STATIC)

PRESETS = {
    "cpu": Preset("CPUExecutionProvider", _DYNAMIC),
    "xnnpack": Preset(
        "XnnpackExecutionProvider",
        ("nnapi", "coreml", "cpu"),
        known={"intra_op_num_threads": _ANY},
        # With spinning, XNNPACK's threads and ONNX Runtime's would compete for the cores.
        config={"session.intra_op.allow_spinning": "0", **_WITHOUT_FUSION},
        max_abs=1e-3,
        threads="intra_op_num_threads",
        where="ONNX Runtime for Android or iOS",
    ),
    "coreml": Preset(
        "CoreMLExecutionProvider",
        _STATIC,
        known={
            "ModelFormat": ("MLProgram", "NeuralNetwork"),
            "MLComputeUnits": ("ALL", "CPUOnly", "CPUAndGPU", "CPUAndNeuralEngine"),
            "RequireStaticInputShapes": _FLAG,
            "EnableOnSubgraphs": _FLAG,
            "ProfileComputePlan": _FLAG,
            "AllowLowPrecisionAccumulationOnGPU": _FLAG,
            "SpecializationStrategy": ("Default", "FastPrediction"),
            "ModelCacheDirectory": _ANY,
        },
        options={"ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "RequireStaticInputShapes": "1"},
        config=_WITHOUT_FUSION,
        max_abs=0.25,
        cache="ModelCacheDirectory",
        where="the package onnxruntime on macOS, or ONNX Runtime for iOS",
    ),
    "nnapi": Preset(
        "NnapiExecutionProvider",
        ("nnapi",),
        known=dict.fromkeys(("USE_FP16", "USE_NCHW", "CPU_DISABLED", "CPU_ONLY"), _FLAG),
        options={"CPU_DISABLED": "1"},  # its own CPU code is slower than ONNX Runtime's
        config=_WITHOUT_FUSION,
        max_abs=0.25,
        where="ONNX Runtime for Android",
    ),
    "openvino": Preset(
        "OpenVINOExecutionProvider",
        _STATIC,
        known={
            **dict.fromkeys(("device_type", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "CACHE_DIR"), _ANY),
            "INFERENCE_PRECISION_HINT": ("f32", "f16", "bf16"),
            "PERFORMANCE_HINT": ("LATENCY", "THROUGHPUT"),
            "MODEL_PRIORITY": ("LOW", "MEDIUM", "HIGH"),
        },
        options={"device_type": "CPU", "INFERENCE_PRECISION_HINT": "f32"},  # without the hint: bf16, if the CPU has it
        config=_WITHOUT_FUSION,
        max_abs=1e-3,
        threads="INFERENCE_NUM_THREADS",
        own_memory=True,
        plugin=Plugin("onnxruntime_ep_openvino", device=("device_type", "ov_device"), properties="load_config"),
    ),
    "qnn": Preset(
        "QNNExecutionProvider",
        ("nnapi", "coreml"),
        known={
            "backend_type": ("htp", "gpu", "cpu"),
            "htp_performance_mode": _ANY,
            "htp_graph_finalization_optimization_mode": ("0", "1", "2", "3"),
            "enable_htp_fp16_precision": _FLAG,
            **dict.fromkeys(("backend_path", "htp_arch", "soc_model", "vtcm_mb", "device_id", "profiling_level"), _ANY),
        },
        options={
            "backend_type": "htp",
            "htp_performance_mode": "burst",
            "htp_graph_finalization_optimization_mode": "3",
            "enable_htp_fp16_precision": "1",
        },
        config=_WITHOUT_FUSION,
        max_abs=0.25,
        plugin=Plugin("onnxruntime_qnn", all_devices=True),
    ),
    "webgpu": Preset(
        "WebGpuExecutionProvider",
        ("nnapi", "coreml", "cpu"),  # docs/mobile.md says why cpu is last
        known={"powerPreference": ("high-performance", "low-power")},
        max_abs=1e-3,
        own_memory=True,
        plugin=Plugin("onnxruntime_ep_webgpu"),
    ),
    "mlx": Preset(
        "MLXExecutionProvider",
        _DYNAMIC,
        max_abs=0.25,
        own_memory=True,
        plugin=Plugin("onnxruntime_ep_mlx"),
        where="a Mac with Apple silicon",
    ),
    "cuda": Preset(
        "CUDAExecutionProvider",
        _DYNAMIC,
        known=dict.fromkeys(("device_id", "gpu_mem_limit", "use_tf32"), _ANY),
        options={"use_tf32": "0"},
        max_abs=1e-3,
        own_memory=True,
        where="the package onnxruntime-gpu in place of onnxruntime",
    ),
}


# The settings for a plug-in without a preset. The difference of a logit is that of a device that computes in float16.
_UNKNOWN = Preset("", _DYNAMIC, takes_any_option=True, max_abs=0.25, own_memory=True)
_PREFIX = "onnxruntime_ep_"


def find_packages() -> None:
    """Make a preset NAME for each installed package onnxruntime-ep-NAME of which no preset knows."""
    known = {preset.plugin.package for preset in PRESETS.values() if preset.plugin}
    for package in plugins.installed_packages(_PREFIX):
        if package not in known:
            name = package.removeprefix(_PREFIX).replace("_", "-")
            PRESETS[name] = _UNKNOWN._replace(provider=plugins.provider_of(package), plugin=Plugin(package))


def load_provider_library(path: str | Path, name: str = "") -> list[str]:
    """Load a plug-in from a file. Return the names of the presets that then use it.

    A provider without a preset gets one, under ONNX Runtime's name of the provider. This preset takes every profile and
    any option, and a logit may differ by 0.25.

    Args:
        path: The library of the plug-in.
        name: The preset, or ONNX Runtime's name of the provider; empty: all providers of the plug-in.

    Raises:
        ProviderError: The library cannot be loaded, finds no device, or does not have the provider.
    """
    path, presets = Path(path), {preset.provider: each for each, preset in PRESETS.items()}
    name = presets.get(name, name)
    registration = PRESETS[name].provider if name in PRESETS else name or path.stem
    found = plugins.register(path, registration)
    names = [presets.get(provider, provider) for provider in found]
    if not name and found == [registration] and registration not in presets:
        plugins.unregister(path, registration)
        raise ProviderError(f"{path}: this plug-in does not say the name of its provider; name it with --provider")
    if name and name not in names:
        raise ProviderError(f"{path}: this plug-in has the provider {', '.join(names)}, expected {name!r}")
    chosen = [name] if name else names
    for each, provider in zip(names, found, strict=True):
        if each in chosen:
            preset = PRESETS.get(each, _UNKNOWN)._replace(provider=provider)
            PRESETS[each] = preset._replace(plugin=(preset.plugin or Plugin())._replace(library=path))
    return chosen


def resolve(preset: str) -> Preset:
    """Return a preset after checking that its provider is available on this machine.

    Raises:
        ProviderError: The preset does not exist, or neither this build of ONNX Runtime nor an installed plug-in
            contains the provider.
    """
    if preset not in PRESETS:
        find_packages()
    there = ", ".join(name for name in PRESETS if is_present(name))
    if preset not in PRESETS:
        raise ProviderError(f"provider {preset!r} is unknown, expected one of {', '.join(PRESETS)}; available: {there}")
    if not is_present(preset):
        raise ProviderError(
            f"provider {preset!r} ({PRESETS[preset].provider}) is not in this ONNX Runtime {onnxruntime.__version__}; "
            f"available: {there}; to get it: {how_to_install(preset)}"
        )
    return PRESETS[preset]


def is_present(name: str) -> bool:
    """Return whether a preset's provider is in this build of ONNX Runtime, or in a plug-in that is here."""
    preset = PRESETS[name]
    if preset.plugin:
        return preset.plugin.library is not None or bool(plugins.installed_version(preset.plugin.package))
    return preset.provider in onnxruntime.get_available_providers()


def how_to_install(name: str) -> str:
    """Return what a user must do to get the provider of one of our presets."""
    preset = PRESETS[name]
    if preset.plugin is None:
        return f"use {preset.where}"
    return f"pip install 'molkv-export[{name}]'" + (f" on {preset.where}" if preset.where else "")


def check_options(preset: str, given: Options) -> None:
    """Check provider options that the user gave.

    Raises:
        ArgumentError: The provider does not have such an option, or the option does not have such a value.
    """
    known = PRESETS[preset].known
    for name, value in given.items():
        if name not in known and PRESETS[preset].takes_any_option:
            continue
        if name not in known:
            names = f"one of {', '.join(known)}" if known else "none"
            raise ArgumentError("provider_options", name, f"{names} (the options of provider {preset})")
        if known[name] and value not in known[name]:
            raise ArgumentError("provider_options", f"{name}={value}", f"{name} to be one of {', '.join(known[name])}")


def add_provider(session_options: onnxruntime.SessionOptions, preset: Preset, options: Options) -> None:
    """Add a provider to the options of a session. The session then has it and the CPU provider, and no other.

    Raises:
        ProviderError: The provider's plug-in cannot be loaded, finds no device, or refuses the options.
    """
    if preset.plugin is None:
        session_options.add_provider(preset.provider, dict(options))
        return
    load(preset.plugin, preset.provider)
    devices, left = _devices(preset.plugin, preset.provider, options)
    try:
        session_options.add_provider_for_devices(devices, left)
    except Exception as error:  # ONNX Runtime raises many exception types, none of them public
        raise ProviderError(f"{preset.provider} refuses the options {left}: {one_line(error)}") from error


def load(plugin: Plugin, provider: str) -> None:
    """Load a plug-in, unless this process has loaded it already.

    Raises:
        ProviderError: The library cannot be loaded, or finds no device.
    """
    plugins.register(plugin.library or plugins.library_of(plugin.package), provider)


def _devices(
    plugin: Plugin, provider: str, options: Options
) -> tuple[Sequence[onnxruntime.OrtEpDevice], dict[str, str]]:
    """Return the devices for a session, and the options that the plug-in gets."""
    devices, left = plugins.devices(provider), dict(options)
    if plugin.device:
        option, key = plugin.device
        there = [device.ep_metadata.get(key, "") for device in devices]
        wanted = left.pop(option)
        if wanted not in there:
            raise ProviderError(
                f"{provider} has no device {wanted!r}, expected {option} to be one of {', '.join(there)}"
            )
        devices = [devices[there.index(wanted)]]
        if plugin.properties:
            left = {plugin.properties: json.dumps({wanted.partition(".")[0]: left})}
    return (devices if plugin.all_devices else devices[:1]), left
