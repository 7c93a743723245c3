"""Presets of execution providers: their names, and the options that bundles need."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import onnxruntime

from molkv_bundle import ArgumentError, ProviderError

Options = Mapping[str, str]

_NONE: Options = MappingProxyType({})
_FLAG = ("0", "1")
_ANY: tuple[str, ...] = ()
# This fusion turns MatMul and Add into a Gemm whose bias is not a constant. Compilers refuse such a Gemm. In addition,
# the CoreML provider writes the weights of a Gemm as text, which takes gigabytes for a large model (onnxruntime issue
# 32212).
_WITHOUT_FUSION = {"optimization.disable_specified_optimizers": "MatMulAddFusion"}


class Preset(NamedTuple):
    """The driver's settings for a provider."""

    provider: str  # ONNX Runtime's name of the provider
    profiles: tuple[str, ...]  # profiles of the graphs that it can run, best first
    known: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # allowed options and values; (): any value
    options: Options = _NONE  # options that the driver sets by default
    config: Options = _NONE  # configuration entries of the session
    max_abs: float = 0.0  # additional error of a logit that is allowed, if the provider is less precise than float32
    threads: str = ""  # the option for the number of threads, if the provider has its own threads
    cache: str = ""  # the option for the folder of compiled models
    own_memory: bool = False  # whether the provider computes in memory of its own, such as that of a GPU
    library: str = ""  # the Python package that contains the provider as a plug-in


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
    ),
    "nnapi": Preset(
        "NnapiExecutionProvider",
        ("nnapi",),
        known=dict.fromkeys(("USE_FP16", "USE_NCHW", "CPU_DISABLED", "CPU_ONLY"), _FLAG),
        options={"CPU_DISABLED": "1"},  # its own CPU code is slower than ONNX Runtime's
        config=_WITHOUT_FUSION,
        max_abs=0.25,
    ),
    "openvino": Preset(
        "OpenVINOExecutionProvider",
        _STATIC,
        known={
            **dict.fromkeys(("device_type", "num_of_threads", "num_streams", "cache_dir", "load_config"), _ANY),
            "precision": ("FP32", "FP16", "ACCURACY"),
            "model_priority": ("LOW", "MEDIUM", "HIGH", "DEFAULT"),
            "enable_qdq_optimizer": ("True", "False"),
        },
        options={"device_type": "CPU", "precision": "FP32"},
        config=_WITHOUT_FUSION,
        max_abs=1e-3,
        threads="num_of_threads",
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
        library="onnxruntime_qnn",
    ),
    "cuda": Preset(
        "CUDAExecutionProvider",
        _DYNAMIC,
        known=dict.fromkeys(("device_id", "gpu_mem_limit", "use_tf32"), _ANY),
        options={"use_tf32": "0"},
        max_abs=1e-3,
        own_memory=True,
    ),
}


def resolve(preset: str) -> Preset:
    """Return a preset after checking that its provider is available on this machine.

    Raises:
        ProviderError: The preset does not exist, or this build of ONNX Runtime does not contain the provider.
    """
    there = ", ".join(name for name in PRESETS if _is_present(name))
    if preset not in PRESETS:
        raise ProviderError(f"provider {preset!r} is unknown, expected one of {', '.join(PRESETS)}; available: {there}")
    if not _is_present(preset):
        raise ProviderError(
            f"provider {preset!r} ({PRESETS[preset].provider}) is not in this ONNX Runtime {onnxruntime.__version__}; "
            f"available: {there}"
        )
    return PRESETS[preset]


def _is_present(name: str) -> bool:
    preset = PRESETS[name]
    if preset.library:
        return importlib.util.find_spec(preset.library) is not None
    return preset.provider in onnxruntime.get_available_providers()


def check_options(preset: str, given: Options) -> None:
    """Check provider options that the user gave.

    Raises:
        ArgumentError: The provider does not have such an option, or the option does not have such a value.
    """
    known = PRESETS[preset].known
    for name, value in given.items():
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
    if not preset.library:
        session_options.add_provider(preset.provider, dict(options))
        return
    try:
        library = importlib.import_module(preset.library)
        if not any(device.ep_name == preset.provider for device in onnxruntime.get_ep_devices()):
            onnxruntime.register_execution_provider_library(preset.provider, library.get_library_path())
    except Exception as error:  # ONNX Runtime raises many exception types, none of them public
        raise ProviderError(f"{preset.library} cannot be loaded: {error}") from error
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == preset.provider]
    if not devices:
        raise ProviderError(f"{preset.library} finds no device on this machine that {preset.provider} can use")
    try:
        session_options.add_provider_for_devices(devices, dict(options))
    except Exception as error:
        raise ProviderError(f"{preset.provider} refuses the options {dict(options)}: {error}") from error
