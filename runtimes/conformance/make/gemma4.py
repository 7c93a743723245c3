"""The Gemma 4 model of the suite: its configuration, random weights, checkpoint and chat template."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file

from molkv_bundle import Gemma4Config
from molkv_export.checkpoints.native import tensors_to_save
from molkv_export.modeling import Gemma4ForCausalLM

_SLIDING, _FULL = "sliding_attention", "full_attention"

# Both types share, and the source of the sliding type is its last unshared layer, not its first. Texts are longer than
# the window, and the model's context is longer than the context of the graph.
CONFIG: dict[str, Any] = {
    "model_type": "gemma4_text",
    "vocab_size": 304,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 32,
    "layer_types": [_SLIDING, _FULL, _SLIDING, _SLIDING, _SLIDING, _FULL],
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "sliding_window": 8,
    "hidden_size_per_layer_input": 64,
    "max_position_embeddings": 192,
    "rms_norm_eps": 1e-6,
    "sliding_rope_theta": 10_000.0,
    "full_rope_theta": 1_000_000.0,
    "partial_rotary_factor": 0.25,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}

GENERATION: dict[str, Any] = {
    "bos_token_id": 2,
    "eos_token_id": [1, 5, 6],
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 64,
    "top_p": 0.95,
}

SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|tool_response>"]
"""The special tokens; the id of a token is its index."""

# It has the turns of Gemma 4's template, and what that one is made of: recursive macros, namespaces, sorted objects,
# blocks of text in variables, and string methods.
CHAT_TEMPLATE = """\
{%- macro value_of(value) -%}
    {%- if value is mapping -%}
        {
        {%- for key, item in value | dictsort -%}
            {{ key }}:{{ value_of(item) }}{{ "," if not loop.last }}
        {%- endfor -%}
        }
    {%- elif value is string -%}
        "{{ value }}"
    {%- elif value is boolean -%}
        {{ "true" if value else "false" }}
    {%- elif value is sequence -%}
        [
        {%- for item in value -%}
            {{ value_of(item) }}{{ "," if not loop.last }}
        {%- endfor -%}
        ]
    {%- else -%}
        {{ value }}
    {%- endif -%}
{%- endmacro -%}
{%- macro spoken(text) -%}
    {%- set found = namespace(text="") -%}
    {%- for part in text.split("</think>") -%}
        {%- set found.text = found.text + part.split("<think>")[0] -%}
    {%- endfor -%}
    {{- found.text | trim -}}
{%- endmacro -%}
{{- bos_token -}}
{%- set state = namespace(rest=messages, turns=0) -%}
{%- if tools or messages[0].role in ["system", "developer"] -%}
    {{- "<|turn>system\\n" -}}
    {%- if messages[0].role in ["system", "developer"] -%}
        {{- messages[0].content | trim -}}
        {%- set state.rest = messages[1:] -%}
    {%- endif -%}
    {%- for tool in tools or [] -%}
        {%- set declared -%}
            declaration:{{ tool.function.name }}{{ value_of(tool.get("function")) }}
        {%- endset -%}
        {{- "<|tool>" + declared + "<tool|>" -}}
    {%- endfor -%}
    {{- "<turn|>\\n" -}}
{%- endif -%}
{%- for message in state.rest -%}
    {%- if message.role not in ["user", "assistant", "model"] -%}
        {{- raise_exception("a turn of " + message.role + " cannot come here") -}}
    {%- endif -%}
    {%- set state.turns = state.turns + 1 -%}
    {{- "<|turn>" + ("user" if message.role == "user" else "model") + "\\n" -}}
    {%- if message.content is defined -%}
        {{- message.content | trim if message.role == "user" else spoken(message.content) -}}
    {%- endif -%}
    {%- for call in message.tool_calls or [] -%}
        {{- "<|tool_call>call:" + call.function.name + value_of(call.function.arguments) + "<tool_call|>" -}}
    {%- endfor -%}
    {{- "<turn|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|turn>model\\n" -}}
{%- endif -%}
"""

_NORM_SCALES = {"q_norm": 0.3, "post_": 0.5, "model.norm": 3.0}
_EXPERTS = re.compile(r"model\.layers\.(\d+)\.experts\.values")


def save_checkpoint(config: Gemma4Config, seed: int, folder: Path) -> None:
    """Write config.json and the weights of a random model to a folder, as transformers saves a text model."""
    tensors = tensors_to_save(_model(config, seed))
    tables = [tensors.pop(name) for name in sorted(filter(_EXPERTS.fullmatch, tensors))]  # fewer than ten layers
    tensors["model.embed_tokens_per_layer.weight"] = torch.cat(tables, dim=1)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_published(config)))


def _published(config: Gemma4Config) -> dict[str, Any]:
    """Return the fields of config.json as transformers names them."""
    fields = msgspec.structs.asdict(config)
    sliding, full, factor = (
        fields.pop(name) for name in ("sliding_rope_theta", "full_rope_theta", "partial_rotary_factor")
    )
    fields["rope_parameters"] = {
        _SLIDING: {"rope_type": "default", "rope_theta": sliding},
        _FULL: {"rope_type": "proportional", "rope_theta": full, "partial_rotary_factor": factor},
    }
    return {**fields, "vocab_size_per_layer_input": config.vocab_size}


@torch.no_grad()
def _model(config: Gemma4Config, seed: int) -> Gemma4ForCausalLM:
    """Return a model with random weights, in which every part affects the logits.

    Scores are not scaled, so queries have a small norm. The branches are so large that the likeliest token is seldom
    the last one, although the LM head is tied. The logits are so large that the softcapping changes them.
    """
    generator = torch.Generator().manual_seed(seed)
    model = Gemma4ForCausalLM(config)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("layer_scalar"):
            parameter.copy_(0.7 + 0.1 * noise)
        elif parameter.dim() < 2:
            scale = next((scale for part, scale in _NORM_SCALES.items() if part in name), 1.0)
            parameter.copy_(scale * (1 + 0.2 * noise))
        else:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model
