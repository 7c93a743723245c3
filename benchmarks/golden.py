"""`python -m benchmarks.golden`: the differences of bundles from their golden vectors, with the allowed differences."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file

from molkv_bundle import MoleConfig, MolkvConfig
from molkv_export import GraphOptions, export
from molkv_export.checkpoints.native import tensors_to_save
from molkv_export.families import reference_model
from molkv_runtime import selftest

STDLIB_MINI = Path("examples/stdlib-mini")

FORMATS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"graph": GraphOptions("float16")},
    "int8": {"graph": GraphOptions("int8")},
    "int4": {"graph": GraphOptions("int4")},
    "float32, KV cache int8": {"graph": GraphOptions(kv_dtype="int8")},
    "float32, expert window int8": {"graph": GraphOptions(window_dtype="int8")},
    "float16, coreml": {"graph": GraphOptions("float16"), "profiles": ["coreml"]},
    "qdq-int8, nnapi": {"graph": GraphOptions("qdq-int8"), "profiles": ["nnapi"]},
}
_BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_experts": 3,
    "expert_intermediate_size": 24,
}
_MOLKV: dict[str, Any] = {**_BASE, "expert_key_size": 8, "expert_window": 5}
_WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 6}
_DK1 = {"expert_key_size": 1, "expert_rope": False, "num_experts": 8, "num_hidden_layers": 8, "expert_window": 16}
MODELS: dict[str, MolkvConfig | MoleConfig] = {
    "MoLKV": MolkvConfig(model_type="molkv", **_MOLKV),
    "MoLKV, dk 1": MolkvConfig(model_type="molkv", **{**_MOLKV, **_DK1}),
    "MoLKV, 24 layers": MolkvConfig(model_type="molkv", **{**_MOLKV, "num_hidden_layers": 24}),
    "MoLKV, d 512": MolkvConfig(model_type="molkv", **{**_MOLKV, **_WIDE}),
    "MoLKV, V 50,304": MolkvConfig(model_type="molkv", **{**_MOLKV, "vocab_size": 50_304, "num_experts": 1}),
    "MoLE": MoleConfig(model_type="mole", **_BASE),
    "dense": MoleConfig(model_type="mole", **{**_BASE, "num_experts": 0}),
}


def main() -> None:
    """Print a row for each combination of model and format."""
    columns = ("model", "dense weights", "max abs", "limit", "ratio", "rel. L2", "limit", "ratio", "certain tokens")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    with tempfile.TemporaryDirectory() as name:
        for model, checkpoint, has_window in _checkpoints(Path(name)):
            for title, options in FORMATS.items():
                if "window" in title and not has_window:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    cells = _cells(checkpoint, Path(folder) / "bundle", options)
                print(f"| {' | '.join((model, title, *cells))} |", flush=True)


def _checkpoints(folder: Path) -> Iterator[tuple[str, Path, bool]]:
    yield "stdlib-mini", STDLIB_MINI, True
    for name, config in MODELS.items():
        path = folder / name
        path.mkdir()
        model, generator = reference_model(config), torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise / parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 1 + 0.2 * noise
        save_file(tensors_to_save(model), path / "model.safetensors")
        (path / "config.json").write_bytes(msgspec.json.encode(config))
        yield name, path, bool(config.attended_positions)


def _cells(checkpoint: Path, bundle: Path, options: dict[str, Any]) -> tuple[str, ...]:
    export(checkpoint, bundle, experts_dtype="float32", **options)
    result = selftest(bundle)
    limits = result.phases[0].limits
    max_abs = max(max(phase.max_abs_logit, phase.max_abs_projection) for phase in result.phases)
    relative_l2 = max(phase.relative_l2 for phase in result.phases)
    return (
        f"{max_abs:.1e}",
        f"{limits.max_abs:.1e}",
        f"{max_abs / limits.max_abs:.2f}",
        f"{relative_l2:.1e}",
        f"{limits.relative_l2:.1e}",
        f"{relative_l2 / limits.relative_l2:.2f}",
        f"{result.phases[0].certain_tokens} of {result.phases[0].positions}" + (" FAILS" if result.failures else ""),
    )


main()
