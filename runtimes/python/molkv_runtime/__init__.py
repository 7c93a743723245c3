"""Host driver for molkv bundles: numpy and ONNX Runtime, no PyTorch.

from molkv_runtime import Generator
for piece in Generator("stdlib-mini.bundle").text("def "):
print(piece, end="", flush=True)
"""

from molkv_runtime.bundle import Bundle
from molkv_runtime.config import ModelConfig
from molkv_runtime.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    MissingExtraError,
    MolkvError,
    OutputError,
    ProviderError,
    RequestError,
)
from molkv_runtime.generator import Generator, Token
from molkv_runtime.sampling import Sampling
from molkv_runtime.selftest import SelfTest, selftest
from molkv_runtime.sequences import Sequences
from molkv_runtime.store import ExpertStore

__all__ = [
    "Bundle",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "ExpertStore",
    "Generator",
    "MissingExtraError",
    "ModelConfig",
    "MolkvError",
    "OutputError",
    "ProviderError",
    "RequestError",
    "Sampling",
    "SelfTest",
    "Sequences",
    "Token",
    "selftest",
]
