"""Plug-ins of ONNX Runtime: shared libraries, each with one or more execution providers and their devices."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import onnxruntime

from molkv_bundle import ProviderError, one_line

_LOG = logging.getLogger(__name__)
_registered: dict[Path, list[str]] = {}  # libraries that this process has loaded, and their providers


def installed(package: str) -> bool:
    """Return whether the Python package of a plug-in is installed."""
    return importlib.util.find_spec(package) is not None


def package_version(package: str) -> str:
    """Return the version of an installed package."""
    return version(package.replace("_", "-"))


def library_of(package: str) -> Path:
    """Return the library in the Python package of a plug-in.

    Raises:
        ProviderError: The package cannot be imported, or has no library.
    """
    try:
        module = importlib.import_module(package)
        find = module.library_path if hasattr(module, "library_path") else module.get_library_path
        return Path(find())
    except Exception as error:  # a package of another project may raise anything
        raise ProviderError(f"{package} cannot be loaded: {one_line(error)}; install it again") from error


def register(library: Path, name: str) -> list[str]:
    """Load a library, unless this process has loaded it already. Return ONNX Runtime's names of its providers.

    Args:
        library: The file of the library.
        name: The name of the registration. Some libraries give this name to their provider.

    Raises:
        ProviderError: The library cannot be loaded, needs another version of ONNX Runtime, or finds no device.
    """
    library = library.resolve()
    if library not in _registered:
        before = {device.ep_name for device in onnxruntime.get_ep_devices()}
        try:
            onnxruntime.register_execution_provider_library(name, str(library))
        except Exception as error:  # ONNX Runtime raises many exception types, none of them public
            raise ProviderError(
                f"{library}: ONNX Runtime {onnxruntime.__version__} cannot load this plug-in: {one_line(error)}"
            ) from error
        after = [device.ep_name for device in onnxruntime.get_ep_devices()]
        _LOG.info("%s: loaded", library)
        _registered[library] = list(dict.fromkeys(each for each in after if each not in before))
    if not _registered[library]:
        raise ProviderError(f"{library}: this plug-in finds no device on this machine that it can use")
    return _registered[library]


def devices(provider: str) -> Sequence[onnxruntime.OrtEpDevice]:
    """Return the devices of a provider whose library is loaded."""
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]
