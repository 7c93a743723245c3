"""Host driver for molkv bundles. It uses numpy and ONNX Runtime, but not PyTorch.

For example:

    from molkv_runtime import Generator

    for piece in Generator("stdlib-mini.bundle").text("def "):
        print(piece, end="", flush=True)
"""

from molkv_bundle import Bundle, MolkvError
from molkv_runtime.available import available_providers
from molkv_runtime.calls import BoundCall, Call, DenseGraph, Graph
from molkv_runtime.chat import Chat
from molkv_runtime.chat_template import ChatTemplate, bundle_chat_template
from molkv_runtime.families import window_bytes
from molkv_runtime.generator import Completion, Generator
from molkv_runtime.memory import cache_bytes
from molkv_runtime.onnxruntime_session import Target, describe_placements, open_session, session_options
from molkv_runtime.options import Options, Token
from molkv_runtime.providers import PRESETS, load_provider_library, resolve
from molkv_runtime.sampling import Sampling
from molkv_runtime.selftest import SelfTest, selftest
from molkv_runtime.sequences import Sequences
from molkv_runtime.session import Session
from molkv_runtime.store import ExpertStore, Pending, Store, open_store
from molkv_runtime.tokenizer import encode, open_tokenizer

__all__ = [
    "PRESETS",
    "BoundCall",
    "Bundle",
    "Call",
    "Chat",
    "ChatTemplate",
    "Completion",
    "DenseGraph",
    "ExpertStore",
    "Generator",
    "Graph",
    "MolkvError",
    "Options",
    "Pending",
    "Sampling",
    "SelfTest",
    "Sequences",
    "Session",
    "Store",
    "Target",
    "Token",
    "available_providers",
    "bundle_chat_template",
    "cache_bytes",
    "describe_placements",
    "encode",
    "load_provider_library",
    "open_session",
    "open_store",
    "open_tokenizer",
    "resolve",
    "selftest",
    "session_options",
    "window_bytes",
]
