/** The configuration of a small Gemma 4 model: three layers with a KV cache, two layers that share them. */

import { parseJson } from "../../../src/format/json.js";
import type { ModelConfig } from "../../../src/format/manifest.js";
import { parseModel } from "../../../src/format/model-config.js";

export const GEMMA4: Readonly<Record<string, unknown>> = {
    model_type: "gemma4_text",
    vocab_size: 50,
    hidden_size: 24,
    intermediate_size: 16,
    num_hidden_layers: 5,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 8,
    global_head_dim: 12,
    layer_types: ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    num_kv_shared_layers: 2,
    hidden_size_per_layer_input: 64,
    sliding_window: 5,
    max_position_embeddings: 100,
    rms_norm_eps: 1e-6,
    sliding_rope_theta: 10000,
    full_rope_theta: 1e6,
    partial_rotary_factor: 0.25,
    final_logit_softcapping: 30,
    use_double_wide_mlp: true,
    tie_word_embeddings: true,
};

/** Parse the configuration with other values of some fields; undefined: without the field. */
export function gemma4(changes: Readonly<Record<string, unknown>> = {}): ModelConfig {
    return parseModel(parseJson(JSON.stringify({ ...GEMMA4, ...changes }), "model"));
}
