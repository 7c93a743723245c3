"""MoLE as its authors publish it (arXiv 2503.15798): Hugging Face folders in training or re-parameterized form.

The configuration is Llama's with one more field, `num_experts`. Its `model_type` may be Llama's, so the format is
recognized by `architectures`. The field `hidden_act` is wrong in the published files: they have "silu", but the
feed-forward networks have no gate and compute GELU with erf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from molkv_bundle import CheckpointError, ConfigError, LookupExpertConfig, shown
from molkv_export.checkpoints.checkpoint import (
    Contents,
    ParameterSource,
    generation_fields,
    without_generation,
)
from molkv_export.checkpoints.files import CONFIG
from molkv_export.checkpoints.native import check_expert_count, follows_from_config, lookup_expert_config
from molkv_export.checkpoints.weights import Weights, row_width
from molkv_export.modeling import Form

EXPECTED = 'architectures ["MoleForCausalLM"] (published MoLE)'

_TABLE = "model.moe_table.weight"  # [V, L*N*d]: a row holds all layers in order, each with its experts in order
_RENAMED = (
    (".experts.norm.", ".expert_layernorm."),
    (".experts.networks.", ".experts."),
    (".expert_mixer.router.", ".router."),
)
# Fields that do not change the model's computation.
_SILENT = {
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "dtype",
    "initializer_range",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "router_aux_loss_coef",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}

# Fields that our configuration has under the same names, with the same defaults as Llama.
_TAKEN = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "num_experts",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
}
# Fields for which only some values are supported.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "gelu"),  # both mean GELU, see the module's docstring
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1,),  # other values change the order of sums
    "partial_rotary_factor": (1, 1.0),
}
_ROPE = {
    "rope_type": ("default",),
    "type": ("default",),
    "partial_rotary_factor": _SUPPORTED["partial_rotary_factor"],
}


def matches(fields: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is in this format; see `Reader`."""
    return fields.get("architectures") == ["MoleForCausalLM"]


def read_folder(folder: Path, fields: Mapping[str, Any], open_weights: Callable[[], Weights]) -> Contents:
    """Open a checkpoint in this format; see `Reader`."""
    path = folder / CONFIG
    # In Hugging Face's files, null means that a field is not set.
    said = {name: value for name, value in fields.items() if value is not None}
    config = _config(without_generation(said), path)
    generation = generation_fields(said, config.vocab_size, path)
    weights = open_weights()
    form = _form(weights)
    check_expert_count(weights, config, form)

    def source(name: str, shape: tuple[int, ...]) -> ParameterSource:
        return _source(name, shape, config)

    def ignores(name: str) -> bool:
        return follows_from_config(name, weights, config, CONFIG)

    return Contents(config, form, weights, source, ignores, generation)


def _config(fields: dict[str, Any], path: Path) -> LookupExpertConfig:
    for name, value in fields.items():
        if name in ("rope_scaling", "rope_parameters"):
            continue
        if name in _SUPPORTED:
            _check_supported(name, value, _SUPPORTED[name], path)
        elif name not in _TAKEN | _SILENT:
            raise ConfigError(
                f"{path}: {name} is {shown(value)}, but MoLE has no such field; if the field does not change the "
                "computation, remove it"
            )
    taken = {name: value for name, value in fields.items() if name in _TAKEN}
    for name in ("num_experts", "num_key_value_heads", "head_dim"):
        if taken.get(name) == 0:  # 0 has a special meaning in our own configuration
            raise ConfigError(f"{path}: {name} is 0, expected 1 or more")
    fields = {**taken, **_rope_theta(fields, path), "model_type": "mole", "hidden_act": "gelu"}
    return lookup_expert_config(fields, path)


def _check_supported(name: str, value: Any, supported: tuple[Any, ...], path: Path) -> None:
    if not any(type(value) is type(known) and value == known for known in supported):
        raise ConfigError(
            f"{path}: {name} is {shown(value)}, expected {' or '.join(map(shown, supported))}: "
            "models with another value cannot be exported"
        )


def _rope_theta(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return `rope_theta` if it is set, after a check of `rope_scaling` and `rope_parameters`.

    Version 5 and later of transformers write `rope_parameters`, which may hold `rope_theta`.
    """
    said = {"rope_theta": fields["rope_theta"]} if "rope_theta" in fields else {}
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.get(name, {})
        if not isinstance(rope, dict):
            raise ConfigError(f"{path}: {name} is {shown(rope)}, expected an object or null")
        for key, value in rope.items():
            full = f"{name}.{key}"
            if key == "rope_theta":
                if said.setdefault("rope_theta", value) != value:
                    other = shown(said["rope_theta"])
                    raise ConfigError(f"{path}: {full} is {shown(value)}, but rope_theta is {other}")
            elif key in _ROPE:
                _check_supported(full, value, _ROPE[key], path)
            else:
                raise ConfigError(
                    f"{path}: {full} is {shown(value)}, expected no such field: models with a scaled RoPE cannot be "
                    "exported"
                )
    return said


def _form(weights: Weights) -> Form:
    networks = sorted(name for name in weights.names if ".experts." in name or ".expert_layernorm." in name)
    if _TABLE not in weights.names:
        return "training"
    if networks:
        raise CheckpointError(
            f"{weights.path}: holds tensors {_TABLE!r} (re-parameterized form) and {networks[0]!r} (training form), "
            "expected only one of the two forms"
        )
    return "lookup"


def _source(name: str, shape: tuple[int, ...], config: LookupExpertConfig) -> ParameterSource:
    if name.endswith(".experts.values"):
        layer, width = int(name.split(".")[2]), row_width(shape)
        return ParameterSource(_TABLE, (shape[0], config.num_hidden_layers * width), layer * width)
    for ours, theirs in _RENAMED:
        name = name.replace(ours, theirs)
    return ParameterSource(name, shape)
