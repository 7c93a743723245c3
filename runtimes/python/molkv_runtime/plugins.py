"""Plug-ins of ONNX Runtime: shared libraries, each with one or more execution providers and their devices."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import onnxruntime

from molkv_bundle import ProviderError, one_line

_LOG = logging.getLogger(__name__)
_registered: dict[str, list[str]] = {}  # files of libraries that this process has loaded, and their providers


def installed_version(package: str) -> str:
    """Return the version of the Python package of a plug-in; empty if it is not installed."""
    try:
        return importlib.metadata.version(package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return ""


def installed_packages(prefix: str) -> list[str]:
    """Return the installed Python packages whose names, with underscores, begin with `prefix`."""
    names = (each.name.replace("-", "_") for each in importlib.metadata.distributions() if each.name)
    return sorted({name for name in names if name.startswith(prefix)})


def library_of(package: str) -> Path:
    """Return the library in the Python package of a plug-in.

    Raises:
        ProviderError: The package cannot be imported, or has no library.
    """
    module = _imported(package)
    try:
        find = module.library_path if hasattr(module, "library_path") else module.get_library_path
        return Path(find())
    except Exception as error:  # a package of another project may raise anything
        raise ProviderError(f"{package}: has no library: {one_line(error)}; install the package again") from error


def provider_of(package: str) -> str:
    """Return ONNX Runtime's name of the provider in the Python package of a plug-in.

    Raises:
        ProviderError: The package cannot be imported, or does not say the name.
    """
    module = _imported(package)
    try:
        return str(module.get_ep_name())
    except Exception as error:  # a package of another project may raise anything
        raise ProviderError(
            f"{package}: does not say the name of its provider: {one_line(error)}; use --provider-library"
        ) from error


def _imported(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except Exception as error:  # a package of another project may raise anything
        raise ProviderError(f"{package} cannot be imported: {one_line(error)}; install the package again") from error


def register(library: Path, name: str) -> list[str]:
    """Load a library, unless this process has loaded it already. Return ONNX Runtime's names of its providers.

    Args:
        library: The file of the library.
        name: The name of the registration. Some libraries give this name to their provider.

    Raises:
        ProviderError: The library cannot be loaded, needs another version of ONNX Runtime, or finds no device.
    """
    file = os.path.realpath(library)
    if file not in _registered:
        before = _device_counts()
        try:
            onnxruntime.register_execution_provider_library(name, file)
        except Exception as error:  # ONNX Runtime raises many exception types, none of them public
            raise ProviderError(
                f"{library}: ONNX Runtime {onnxruntime.__version__} cannot load this plug-in: {one_line(error)}; "
                "expected a plug-in for this version, so install another version of the plug-in or of onnxruntime"
            ) from error
        _LOG.info("%s: loaded", library)
        _registered[file] = list(_device_counts() - before)
        if both := before.keys() & _registered[file]:
            unregister(library, name)
            raise ProviderError(f"{library}: the provider {', '.join(both)} is already loaded from another library")
    if not _registered[file]:
        raise ProviderError(
            f"{library}: this plug-in finds no device on this machine that it can use; check the driver of the device, "
            "or use another provider"
        )
    return _registered[file]


def unregister(library: Path, name: str) -> None:
    """Unload a library that `register` has loaded under this name."""
    onnxruntime.unregister_execution_provider_library(name)
    del _registered[os.path.realpath(library)]


def _device_counts() -> Counter[str]:
    return Counter(device.ep_name for device in onnxruntime.get_ep_devices())


def devices(provider: str) -> Sequence[onnxruntime.OrtEpDevice]:
    """Return the devices of a provider whose library is loaded."""
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]
