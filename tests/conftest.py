"""Small models that every test can afford, and the trained one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from molkv_bundle import Bundle, LookupExpertConfig, RowDtype
from molkv_export import export
from molkv_export.checkpoints.native import lookup_expert_config, tensors_to_save
from molkv_export.families import reference_model
from molkv_export.modeling import ReferenceModel
from molkv_runtime import ExpertStore, Generator

STDLIB_MINI = Path(__file__).parent.parent / "examples" / "stdlib-mini"

_BASE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "num_experts": 3,
    "expert_intermediate_size": 24,
}
_MOLKV = {**_BASE, "model_type": "molkv", "expert_key_size": 8, "expert_window": 5}

# Every choice of the configuration is in at least one of them.
CONFIGS: dict[str, LookupExpertConfig] = {
    name: lookup_expert_config(fields, Path("config.json"))
    for name, fields in {
        "molkv": {**_MOLKV, "tie_word_embeddings": True},
        "molkv-plain": {**_MOLKV, "hidden_act": "gelu", "expert_qk_norm": False, "expert_rope": False},
        "molkv-gated": {**_MOLKV, "expert_gate": "sigmoid", "num_key_value_heads": 4, "head_dim": 32},
        "molkv-some-layers": {**_MOLKV, "expert_layers": [0, 2], "rope_theta": 500.0, "rms_norm_eps": 1e-3},
        "molkv-one-slot": {**_MOLKV, "expert_window": 1, "num_experts": 1, "num_key_value_heads": 1},
        "molkv-wide-window": {**_MOLKV, "expert_window": 64},
        "molkv-square": {**_MOLKV, "expert_key_size": 64},  # keys are as large as values
        "mole": {**_BASE, "model_type": "mole", "hidden_act": "gelu"},
        "dense": {**_BASE, "model_type": "mole", "num_experts": 0},
    }.items()
}


def random_model(config: LookupExpertConfig, seed: int = 0) -> ReferenceModel:
    """Make a training-form model with weights so large that every part of it matters for the logits."""
    generator = torch.Generator().manual_seed(seed)
    model = reference_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model.requires_grad_(False).eval()


def lookup_form(model: ReferenceModel) -> ReferenceModel:
    """Re-parameterize: evaluate the networks for every id, drop them, keep the tables."""
    tables = reference_model(model.config, "lookup")
    state = {name: tensor for name, tensor in model.state_dict().items() if ".experts." not in name}
    with torch.no_grad():
        for layer, rows in model.records(torch.arange(model.config.vocab_size)).layers.items():
            state |= {f"model.layers.{layer}.experts.{name}s": row for name, row in rows.items()}
    tables.load_state_dict(state)
    return tables.requires_grad_(False).eval()


def save_checkpoint(model: ReferenceModel, folder: Path) -> Path:
    """Write a model as a checkpoint folder without a tokenizer."""
    folder.mkdir(parents=True)
    save_file(tensors_to_save(model), folder / "model.safetensors")
    (folder / "config.json").write_bytes(msgspec.json.encode(model.config))
    return folder


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as someone would who means it, its own digest included."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    edit(manifest)
    seal_manifest(bundle / "manifest.json", json.dumps(manifest))


def seal_manifest(path: Path, text: str) -> None:
    """Write a manifest with the digest that its text calls for."""
    zeros = "0" * 64
    blank = re.sub(r'"sha256": *"[0-9a-f]{64}"(\s*}\s*)$', rf'"sha256": "{zeros}"\1', text)
    path.write_text(blank.replace(zeros, hashlib.sha256(blank.encode()).hexdigest()))


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file of a bundle, and what the manifest says about it."""
    (bundle / name).write_bytes(content)
    info = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(bundle, lambda manifest: manifest["files"].update({name: info}))


def stored_values(bundle: Path) -> bytes:
    """Return the bytes of all records but for their checksums, which tell checkpoints apart."""
    opened = Bundle(bundle)
    with ExpertStore(opened) as store:
        records = store.gather(np.arange(opened.config.vocab_size))
    records["checksum"] = 0
    return records.tobytes()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the checkpoint folder of a configuration by name; `NAME/lookup` for its lookup form."""
    root = tmp_path_factory.mktemp("checkpoints")

    def checkpoint(name: str) -> Path:
        folder = root / name.replace("/", "-")
        if not folder.exists():
            model = random_model(CONFIGS[name.removesuffix("/lookup")])
            save_checkpoint(lookup_form(model) if name.endswith("/lookup") else model, folder)
        return folder

    return checkpoint


@pytest.fixture(scope="session")
def bundles(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give the bundle of a configuration by name and dtype. Tests must not change it; they copy it."""
    root = tmp_path_factory.mktemp("bundles")

    def bundle(name: str, dtype: RowDtype = "float32") -> Path:
        folder = root / f"{name.replace('/', '-')}-{dtype}"
        if not folder.exists():
            export(checkpoints(name), folder, experts_dtype=dtype)
        return folder

    return bundle


@pytest.fixture(scope="session")
def stdlib_mini_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model as a float16 bundle."""
    folder = tmp_path_factory.mktemp("trained") / "stdlib-mini.bundle"
    export(STDLIB_MINI, folder)
    return folder


@pytest.fixture
def token_ids() -> np.ndarray:
    """As many random token ids as the small models have context."""
    return np.random.default_rng(7).integers(0, 97, 48)


@pytest.fixture
def generator(bundles: Callable[..., Path]) -> Generator:
    """The small MoLKV model, loaded."""
    return Generator(bundles("molkv"))
