"""Execution providers by name."""

from __future__ import annotations

import onnxruntime

from molkv_runtime.errors import ProviderError

PRESETS = {
    "cpu": "CPUExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "cuda": "CUDAExecutionProvider",
}


def resolve(preset: str) -> str:
    """Give ONNX Runtime's name of a provider preset that is present on this machine.

    Raises:
        ProviderError: The preset does not exist, or this build of ONNX Runtime does not carry it.
    """
    present = onnxruntime.get_available_providers()
    there = ", ".join(name for name, provider in PRESETS.items() if provider in present)
    if preset not in PRESETS:
        raise ProviderError(f"provider {preset!r} is unknown, expected one of {', '.join(PRESETS)}; here: {there}")
    if PRESETS[preset] not in present:
        raise ProviderError(
            f"provider {preset!r} ({PRESETS[preset]}) is not in this ONNX Runtime {onnxruntime.__version__}; "
            f"here: {there}"
        )
    return PRESETS[preset]
