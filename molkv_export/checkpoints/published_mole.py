"""MoLE as its authors publish it (arXiv 2503.15798): Hugging Face folders in training or re-parameterized form.

The configuration is Llama's with one more field, `num_experts`; its saved `model_type` may be Llama's too, so
`architectures` tells it. The feed-forward networks have no gate and compute GELU by erf, whatever `hidden_act` says:
the published files say "silu" and do not mean it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molkv_bundle import CheckpointError, ConfigError, LookupExpertConfig, shown
from molkv_export.checkpoints.checkpoint import (
    CONFIG,
    Contents,
    ParameterSource,
    generation_fields,
    without_generation,
)
from molkv_export.checkpoints.native import check_expert_count, follows_from_config, lookup_expert_config
from molkv_export.checkpoints.weights import Weights, row_width
from molkv_export.modeling import Form

EXPECTED = 'architectures ["MoleForCausalLM"] (published MoLE)'

_TABLE = "model.moe_table.weight"  # [V, L*N*d]: layer by layer, in it expert by expert
_RENAMED = (
    (".experts.norm.", ".expert_layernorm."),
    (".experts.networks.", ".experts."),
    (".expert_mixer.router.", ".router."),
)
# Fields that say nothing about what is computed for a token.
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

# Fields that our configuration has under the same name, with the same default where Llama's has one.
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
# Fields that are honoured with some values only.
_HONOURED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "gelu"),  # see above
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "pretraining_tp": (1,),  # others sum in another order
    "partial_rotary_factor": (1, 1.0),
}
_ROPE = {
    "rope_type": ("default",),
    "type": ("default",),
    "partial_rotary_factor": _HONOURED["partial_rotary_factor"],
}


def matches(fields: Mapping[str, Any]) -> bool:
    """See `Reader`."""
    return fields.get("architectures") == ["MoleForCausalLM"]


def read_folder(folder: Path, fields: Mapping[str, Any]) -> Contents:
    """See `Reader`."""
    path = folder / CONFIG
    # null is Hugging Face's way of not saying anything.
    said = {name: value for name, value in fields.items() if value is not None}
    config = _config(without_generation(said), path)
    generation = generation_fields(said, config.vocab_size, path)
    weights = Weights(folder)
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
        if name in _HONOURED:
            _check_honoured(name, value, _HONOURED[name], path)
        elif name not in _TAKEN | _SILENT:
            raise ConfigError(
                f"{path}: {name} is {shown(value)}, a field that is not known of MoLE and may change what it computes; "
                "remove it if it does not"
            )
    taken = {name: value for name, value in fields.items() if name in _TAKEN}
    for name in ("num_experts", "num_key_value_heads", "head_dim"):
        if taken.get(name) == 0:  # which means something else in our own configuration
            raise ConfigError(f"{path}: {name} is 0, expected 1 or more")
    fields = {**taken, **_rope_theta(fields, path), "model_type": "mole", "hidden_act": "gelu"}
    return lookup_expert_config(fields, path)


def _check_honoured(name: str, value: Any, honoured: tuple[Any, ...], path: Path) -> None:
    if not any(type(value) is type(known) and value == known for known in honoured):
        raise ConfigError(
            f"{path}: {name} is {shown(value)}, expected {' or '.join(map(shown, honoured))}: "
            "models with anything else cannot be exported"
        )


def _rope_theta(fields: dict[str, Any], path: Path) -> dict[str, Any]:
    """Read `rope_scaling` and, since transformers 5, `rope_parameters`, which holds the base as well."""
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
                _check_honoured(full, value, _ROPE[key], path)
            else:
                raise ConfigError(f"{path}: {full} is {shown(value)}, a field of a scaled RoPE, expected none")
    return said


def _form(weights: Weights) -> Form:
    networks = sorted(name for name in weights.names if ".experts." in name or ".expert_layernorm." in name)
    if _TABLE not in weights.names:
        return "training"
    if networks:
        raise CheckpointError(
            f"{weights.path}: holds {_TABLE!r} (re-parameterized form) and {networks[0]!r} (training form), "
            "expected one form"
        )
    return "lookup"


def _source(name: str, shape: tuple[int, ...], config: LookupExpertConfig) -> ParameterSource:
    if name.endswith(".experts.values"):
        layer, width = int(name.split(".")[2]), row_width(shape)
        return ParameterSource(_TABLE, (shape[0], config.num_hidden_layers * width), layer * width)
    for ours, theirs in _RENAMED:
        name = name.replace(ours, theirs)
    return ParameterSource(name, shape)
