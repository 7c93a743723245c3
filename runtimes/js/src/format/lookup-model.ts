/** The field `model` of a manifest of MoLKV and MoLE: types, ranges, and the relations between fields. */

import type { JsonValue } from "./json.js";
import type { ExpertAttention, ModelConfig } from "./manifest.js";
import { COMMON_FIELDS, LARGEST_SIZE, parseCommon, positiveOf, sizeOf } from "./model-fields.js";

const fields = [
    ...COMMON_FIELDS,
    "hidden_act",
    "rope_theta",
    "num_experts",
    "expert_layers",
    "expert_intermediate_size",
    "expert_key_size",
    "expert_window",
    "expert_rope",
    "expert_qk_norm",
    "expert_gate",
];

/** Parse and check the configuration of a model of MoLKV or MoLE. */
export function parseLookup(model: JsonValue, family: "molkv" | "mole"): ModelConfig {
    model.expectFields(fields);
    const { numHiddenLayers, numKeyValueHeads: heads, headDim, ...common } = parseCommon(model);
    const expertLayers = parseExpertLayers(model.get("expert_layers"), numHiddenLayers);
    const experts = sizeOf(model, "num_experts", 0);
    checkExperts(model, experts, expertLayers.length);
    return {
        ...common,
        profiles: ["cpu", "coreml", "nnapi"],
        expertLayers,
        expertValueShape: [experts, common.hiddenSize],
        expertWindow: sizeOf(model, "expert_window", 0),
        expertAttention: family === "molkv" && experts > 0 ? parseAttention(model, experts) : undefined,
        kvCaches: Array.from({ length: numHiddenLayers }, (_, layer) => ({ layer, heads, headDim })),
        sharedKvCaches: new Map(),
    };
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

/** Check the fields of experts, also those that the model does not use. */
function checkExperts(model: JsonValue, experts: number, layers: number): void {
    sizeOf(model, "expert_intermediate_size", 0);
    sizeOf(model, "expert_key_size", 0);
    positiveOf(model, "rope_theta");
    model.get("hidden_act").oneOf(["silu", "gelu"]);
    model.get("expert_rope").boolean();
    model.get("expert_qk_norm").boolean();
    model.get("expert_gate").oneOf(["none", "sigmoid"]);
    if ((experts === 0) !== (layers === 0)) {
        const expected = layers === 0 ? "at least one, since num_experts is not 0" : "none, since num_experts is 0";
        throw model.get("expert_layers").error(`${layers} layers`, expected);
    }
    if (experts === 0) checkDense(model);
}

/** Check the fields that a model without experts does not use. */
function checkDense(model: JsonValue): void {
    for (const name of ["expert_key_size", "expert_window", "expert_intermediate_size"]) model.get(name).integer(0, 0);
    for (const name of ["expert_rope", "expert_qk_norm"]) {
        if (model.get(name).boolean()) throw model.get(name).error("true", "false in a model without experts");
    }
    model.get("expert_gate").oneOf(["none"]);
}

/** Parse what only MoLKV uses. */
function parseAttention(model: JsonValue, experts: number): ExpertAttention {
    const keySize = sizeOf(model, "expert_key_size");
    model.get("expert_window").integer(1, LARGEST_SIZE);
    const isRotated = model.get("expert_rope").boolean();
    if (isRotated && keySize % 2 !== 0) {
        throw model.get("expert_key_size").error(String(keySize), "an even number, since expert_rope");
    }
    return { experts, keySize, ropeTheta: isRotated ? positiveOf(model, "rope_theta") : undefined };
}
