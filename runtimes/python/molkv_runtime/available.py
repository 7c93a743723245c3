"""The providers that this machine has, those that it does not have, and how to get them."""

from __future__ import annotations

import logging

import msgspec
import onnxruntime

from molkv_bundle import ProviderError
from molkv_runtime import plugins
from molkv_runtime.providers import PRESETS, Plugin, Preset, find_packages, how_to_install, is_present, load

_LOG = logging.getLogger(__name__)


class AvailableProvider(msgspec.Struct, frozen=True):
    """A preset, and whether its provider is on this machine."""

    name: str  # the name of the preset, for Target.provider
    provider: str  # ONNX Runtime's name of the provider
    profiles: tuple[str, ...]  # profiles of the graphs that it can run, best first
    source: str  # the package that contains the provider, and its version; empty: the provider is absent
    devices: list[str]  # the devices of a plug-in; empty for a provider that is built in
    problem: str  # why the provider cannot be used, and what to do; empty: it can be used


def available_providers() -> list[AvailableProvider]:
    """Return the providers of all presets. The function loads the installed plug-ins, to ask for their devices."""
    _LOG.info("built into onnxruntime: %s", ", ".join(onnxruntime.get_available_providers()))
    find_packages()
    return [_look_at(name, preset) for name, preset in PRESETS.items()]


def _look_at(name: str, preset: Preset) -> AvailableProvider:
    source, problem, devices, plugin = "", "", list[str](), preset.plugin
    if not is_present(name):
        problem = how_to_install(name)
    elif plugin is None:
        source = f"onnxruntime {onnxruntime.__version__}"
    else:
        package = f"{plugin.package.replace('_', '-')} {plugins.installed_version(plugin.package)}"
        source = str(plugin.library or package)
        try:
            load(plugin, preset.provider)
            devices = [_described(device, plugin) for device in plugins.devices(preset.provider)]
        except ProviderError as error:
            problem = str(error)
    return AvailableProvider(name, preset.provider, preset.profiles, source, devices, problem)


def _described(device: onnxruntime.OrtEpDevice, plugin: Plugin) -> str:
    """Return the name by which an option chooses a device, or else its kind; and its maker."""
    key = plugin.device[1] if plugin.device else ""
    kind = device.ep_metadata.get(key) or device.device.type.name
    return f"{kind} ({device.device.vendor})" if device.device.vendor else kind
