/** The field `model` of a manifest: types, ranges, and the relations between fields. */

import type { JsonValue } from "./json.js";
import type { ModelConfig } from "./manifest.js";

const largestSize = 2 ** 31 - 1;
const mostLayers = 65_536;
const mostPositions = 2 ** 24;

const fields = [
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "max_position_embeddings",
    "num_experts",
    "tie_word_embeddings",
    "expert_layers",
    "expert_intermediate_size",
    "expert_key_size",
    "expert_window",
    "expert_rope",
    "expert_qk_norm",
    "expert_gate",
];

/** Parse and check a model's configuration. */
export function parseModel(model: JsonValue): ModelConfig {
    model.expectFields(fields);
    const size = (name: string, least: number): number => model.get(name).integer(least, largestSize);
    const numHiddenLayers = model.get("num_hidden_layers").integer(1, mostLayers);
    const config: ModelConfig = {
        modelType: model.get("model_type").oneOf(["molkv", "mole"]),
        vocabSize: size("vocab_size", 1),
        hiddenSize: size("hidden_size", 1),
        numHiddenLayers,
        numAttentionHeads: size("num_attention_heads", 1),
        numKeyValueHeads: size("num_key_value_heads", 1),
        headDim: size("head_dim", 1),
        maxPositionEmbeddings: model.get("max_position_embeddings").integer(1, mostPositions),
        ropeTheta: positive(model.get("rope_theta")),
        numExperts: size("num_experts", 0),
        expertLayers: parseExpertLayers(model.get("expert_layers"), numHiddenLayers),
        expertKeySize: size("expert_key_size", 0),
        expertWindow: size("expert_window", 0),
        expertRope: model.get("expert_rope").boolean(),
    };
    // A driver does not use these fields.
    size("intermediate_size", 1);
    size("expert_intermediate_size", 0);
    model.get("hidden_act").oneOf(["silu", "gelu"]);
    positive(model.get("rms_norm_eps"));
    model.get("tie_word_embeddings").boolean();
    model.get("expert_qk_norm").boolean();
    model.get("expert_gate").oneOf(["none", "sigmoid"]);
    checkRelations(model, config);
    return config;
}

function positive(value: JsonValue): number {
    const number = value.number();
    if (number <= 0) throw value.error(String(number), "a number above 0");
    return number;
}

function parseExpertLayers(layers: JsonValue, layerCount: number): number[] {
    const found: number[] = [];
    for (const layer of layers.list()) {
        const least = (found.at(-1) ?? -1) + 1;
        if (least >= layerCount) throw layer.error("a further layer", "ascending indices below num_hidden_layers");
        found.push(layer.integer(least, layerCount - 1));
    }
    return found;
}

function checkRelations(model: JsonValue, config: ModelConfig): void {
    const heads = config.numAttentionHeads;
    if (heads % config.numKeyValueHeads !== 0) {
        const expected = `a multiple of num_key_value_heads, ${config.numKeyValueHeads}`;
        throw model.get("num_attention_heads").error(String(heads), expected);
    }
    if (config.headDim % 2 !== 0) throw model.get("head_dim").error(String(config.headDim), "an even number");
    const layers = config.expertLayers.length;
    if ((config.numExperts === 0) !== (layers === 0)) {
        const expected = layers === 0 ? "at least one, since num_experts is not 0" : "none, since num_experts is 0";
        throw model.get("expert_layers").error(`${layers} layers`, expected);
    }
    if (config.numExperts === 0) checkDense(model);
    else if (config.modelType === "molkv") checkMolkv(model, config);
}

/** Check the fields that a model without experts does not use. */
function checkDense(model: JsonValue): void {
    for (const name of ["expert_key_size", "expert_window", "expert_intermediate_size"]) model.get(name).integer(0, 0);
    for (const name of ["expert_rope", "expert_qk_norm"]) {
        if (model.get(name).boolean()) throw model.get(name).error("true", "false in a model without experts");
    }
    model.get("expert_gate").oneOf(["none"]);
}

function checkMolkv(model: JsonValue, config: ModelConfig): void {
    model.get("expert_key_size").integer(1, largestSize);
    model.get("expert_window").integer(1, largestSize);
    if (config.expertRope && config.expertKeySize % 2 !== 0) {
        throw model.get("expert_key_size").error(String(config.expertKeySize), "an even number, since expert_rope");
    }
}
