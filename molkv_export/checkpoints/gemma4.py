"""Gemma 4 E2B and E4B as Hugging Face folders: the multimodal model, or only its text decoder.

Only the text decoder is read. In a multimodal folder its configuration is the field `text_config`, and its tensors have
the prefix `model.language_model.`. A folder that transformers saved from the text model has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from molkv_bundle import ConfigError, Gemma4Config, model_config, shown
from molkv_export.checkpoints.checkpoint import Contents, ParameterSource, generation_fields
from molkv_export.checkpoints.files import CONFIG
from molkv_export.checkpoints.weights import Weights, row_width

EXPECTED = 'model_type "gemma4" or "gemma4_text" (Gemma 4)'

_TABLE = "embed_tokens_per_layer.weight"  # [V, L*P]: a row holds the per-layer embeddings of all layers in order
_OTHER_PARTS = ("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio.")
_KEYS_AND_VALUES = ("k_proj", "v_proj", "k_norm", "v_norm")
_SLIDING, _FULL = "sliding_attention", "full_attention"

# Fields that our configuration has under the same names, with transformers' defaults. The other defaults are those of a
# model that has never been published, so these fields must be set.
_DEFAULTS: dict[str, Any] = {
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_ROPE: dict[str, dict[str, Any]] = {
    _SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    _FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
}
_PATTERN = 6  # without `layer_types`, every sixth layer has full attention
_GLOBAL_HEAD_DIM = 512

# Fields for which only one value is supported, with the reason.
_ONLY: dict[str, tuple[Any, str]] = {
    "enable_moe_block": (False, "models with routed experts, such as 26B, cannot be exported; use E2B or E4B"),
    "attention_k_eq_v": (False, "models whose values are their keys, such as 26B and 31B, cannot be exported"),
    "use_bidirectional_attention": (None, "models with bidirectional attention cannot be exported"),
    "attention_bias": (False, "models with biases cannot be exported"),
    "hidden_activation": ("gelu_pytorch_tanh", "models with another activation cannot be exported"),
}


def matches(fields: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is in this format; see `Reader`."""
    return fields.get("model_type") in ("gemma4", "gemma4_text")


def read_folder(folder: Path, fields: Mapping[str, Any], open_weights: Callable[[], Weights]) -> Contents:
    """Open a checkpoint in this format; see `Reader`."""
    path = folder / CONFIG
    is_multimodal = fields["model_type"] == "gemma4"
    text = fields.get("text_config") if is_multimodal else fields
    if not isinstance(text, dict):
        raise ConfigError(f"{path}: text_config is {shown(text)}, expected an object")
    for part in (fields, text):
        if part.get("quantization_config") is not None:
            raise ConfigError(
                f"{path}: quantization_config is set, expected a model that is not quantized; use the bfloat16 model, "
                "or the checkpoint of quantization-aware training whose name ends in q4_0-unquantized"
            )
    # In Hugging Face's files, null means that a field is not set.
    said = {name: value for name, value in text.items() if value is not None}
    config = _config(said, path)
    generation = generation_fields({**said, **fields}, config.vocab_size, path)
    prefix = "model.language_model." if is_multimodal else "model."

    def source(name: str, shape: tuple[int, ...]) -> ParameterSource:
        return _source(name, shape, config, prefix)

    def ignores(name: str) -> bool:
        return name.startswith(_OTHER_PARTS) or _is_of_shared_layer(name, config, prefix)

    return Contents(config, "lookup", open_weights(), source, ignores, generation)


def _config(fields: dict[str, Any], path: Path) -> Gemma4Config:
    for name, (only, why) in _ONLY.items():
        if fields.get(name, only) != only:
            raise ConfigError(f"{path}: {name} is {shown(fields[name])}, expected {shown(only)}: {why}")
    found = {**_DEFAULTS, **{name: fields[name] for name in (*_REQUIRED, *_DEFAULTS) if name in fields}}
    if found["hidden_size_per_layer_input"] == 0:
        raise ConfigError(
            f"{path}: hidden_size_per_layer_input is 0, expected a model with per-layer embeddings, such as E2B or E4B"
        )
    vocabulary = fields.get("vocab_size_per_layer_input", 262_144)
    if "vocab_size" in fields and vocabulary != fields["vocab_size"]:
        raise ConfigError(
            f"{path}: vocab_size_per_layer_input is {shown(vocabulary)}, expected vocab_size "
            f"({shown(fields['vocab_size'])}): models with two vocabularies cannot be exported"
        )
    layer_types = _layer_types(fields, path)
    sliding, full = (_rope(fields, kind, path) for kind in (_SLIDING, _FULL))
    derived = {
        "model_type": "gemma4_text",
        "layer_types": layer_types,
        "global_head_dim": _global_head_dim(fields, layer_types, path),
        "sliding_rope_theta": sliding["rope_theta"],
        "full_rope_theta": full["rope_theta"],
        "partial_rotary_factor": full.get("partial_rotary_factor", 1.0),
        "final_logit_softcapping": fields.get("final_logit_softcapping", 0.0),
    }
    config = model_config({**found, **derived}, path)
    assert isinstance(config, Gemma4Config)
    return config


def _layer_types(fields: Mapping[str, Any], path: Path) -> list[str]:
    """Return the type of each layer. As in transformers, the last layer always has full attention.

    If num_hidden_layers is no positive integer, the list is empty; `model_config` refuses such a configuration.
    """
    count = fields.get("num_hidden_layers")
    if not isinstance(count, int) or count < 1:
        return []
    if "layer_types" not in fields:
        types = [_SLIDING if layer % _PATTERN else _FULL for layer in range(1, min(count, 65_536) + 1)]
    else:
        types = fields["layer_types"]
        if not isinstance(types, list) or not all(kind in (_SLIDING, _FULL) for kind in types):
            raise ConfigError(f"{path}: layer_types is {shown(types)}, expected a list of {_SLIDING!r} and {_FULL!r}")
        if len(types) != count:
            raise ConfigError(f"{path}: layer_types: found {len(types)} layers, expected num_hidden_layers ({count})")
    return [*types[:-1], _FULL]


def _rope(fields: Mapping[str, Any], kind: str, path: Path) -> dict[str, Any]:
    """Return the rotation of the layers of one type, after a check of its fields."""
    every = fields.get("rope_parameters", _ROPE)
    rope = every.get(kind) if isinstance(every, dict) else None
    if not isinstance(rope, dict):
        raise ConfigError(f"{path}: rope_parameters.{kind} is {shown(rope)}, expected an object")
    expected = _ROPE[kind]
    for name, value in rope.items():
        where = f"{path}: rope_parameters.{kind}.{name} is {shown(value)}"
        if name not in expected:
            raise ConfigError(f"{where}, expected no such field: models with a scaled RoPE cannot be exported")
        if name == "rope_type" and value != expected[name]:
            raise ConfigError(f"{where}, expected {shown(expected[name])}: models with another RoPE cannot be exported")
        if name != "rope_type" and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise ConfigError(f"{where}, expected a number")
    if "rope_theta" not in rope or rope.get("rope_type") != expected["rope_type"]:
        raise ConfigError(
            f"{path}: rope_parameters.{kind} is {shown(rope)}, expected rope_theta, and rope_type "
            f"{shown(expected['rope_type'])}"
        )
    return rope


def _global_head_dim(fields: Mapping[str, Any], layer_types: list[str], path: Path) -> Any:
    """Return the size of the heads of full attention.

    Newer versions of transformers write `per_layer_config`, which maps layers to fields, instead of `global_head_dim`.
    It holds only fields that differ from the model's, so it is empty if all heads have the same size.
    """
    layers = fields.get("per_layer_config")
    if layers is None or not layer_types:  # no layer types: `model_config` refuses num_hidden_layers
        return fields.get("global_head_dim", _GLOBAL_HEAD_DIM)
    if layers == {}:
        return fields.get("head_dim", _DEFAULTS["head_dim"])
    full = {str(index) for index, kind in enumerate(layer_types) if kind == _FULL}
    what = f"{path}: per_layer_config is {shown(layers)}"
    if not isinstance(layers, dict) or not all(isinstance(entry, dict) for entry in layers.values()):
        raise ConfigError(f"{what}, expected an object of objects")
    first: dict[str, Any] = next(iter(layers.values()))
    if layers.keys() != full or first.keys() != {"head_dim"} or any(entry != first for entry in layers.values()):
        raise ConfigError(
            f"{what}, expected the same head_dim, and nothing else, for each layer with {_FULL}: "
            f"{', '.join(sorted(full, key=int))}"
        )
    return first["head_dim"]


def _source(name: str, shape: tuple[int, ...], config: Gemma4Config, prefix: str) -> ParameterSource:
    inner = name.removeprefix("model.")
    if inner == name:
        return ParameterSource(name, shape)  # the LM head
    if inner.endswith(".experts.values"):
        layer, width = int(inner.split(".")[1]), row_width(shape)
        return ParameterSource(prefix + _TABLE, (shape[0], config.num_hidden_layers * width), layer * width)
    return ParameterSource(prefix + inner, shape)


def _is_of_shared_layer(name: str, config: Gemma4Config, prefix: str) -> bool:
    """Return whether a tensor belongs to the keys and values of a layer that uses those of another layer."""
    layers = config.shared_kv_caches()
    return any(
        name.startswith(f"{prefix}layers.{layer}.self_attn.{part}.") for layer in layers for part in _KEYS_AND_VALUES
    )
