/** The field `model` of a manifest of Gemma 4: types, ranges, and the relations between fields. */

import type { JsonValue } from "./json.js";
import type { ModelConfig } from "./manifest.js";
import { COMMON_FIELDS, evenSizeOf, parseCommon, positiveOf, sizeOf } from "./model-fields.js";

const fields = [
    ...COMMON_FIELDS,
    "sliding_window",
    "global_head_dim",
    "layer_types",
    "num_kv_shared_layers",
    "hidden_size_per_layer_input",
    "sliding_rope_theta",
    "full_rope_theta",
    "partial_rotary_factor",
    "final_logit_softcapping",
    "use_double_wide_mlp",
];

type LayerType = "sliding_attention" | "full_attention";

/** Parse and check the configuration of a Gemma 4 model. Its experts are the per-layer embeddings. */
export function parseGemma4(model: JsonValue): ModelConfig {
    model.expectFields(fields);
    const { numHiddenLayers, numKeyValueHeads: heads, headDim, ...common } = parseCommon(model);
    const globalHeadDim = evenSizeOf(model, "global_head_dim");
    const types = parseLayerTypes(model.get("layer_types"), numHiddenLayers);
    const shared = model.get("num_kv_shared_layers").integer(0, numHiddenLayers - 1);
    checkUnused(model);
    const own = types.slice(0, numHiddenLayers - shared);
    return {
        ...common,
        profiles: ["cpu"],
        expertLayers: [...types.keys()],
        expertValueShape: [sizeOf(model, "hidden_size_per_layer_input")],
        expertWindow: 0,
        expertAttention: undefined,
        kvCaches: own.map((type, layer) => {
            return { layer, heads, headDim: type === "full_attention" ? globalHeadDim : headDim };
        }),
        sharedKvCaches: sourcesOf(model.get("num_kv_shared_layers"), own, types.slice(own.length)),
    };
}

function parseLayerTypes(value: JsonValue, layers: number): LayerType[] {
    const types = value.list();
    if (types.length !== layers) throw value.error(`${types.length} layers`, `${layers}, as num_hidden_layers says`);
    return types.map((type) => type.oneOf<LayerType>(["sliding_attention", "full_attention"]));
}

/** Return the layers that have no KV cache, each with its source: the last layer of the same type that has one. */
function sourcesOf(
    value: JsonValue,
    own: readonly LayerType[],
    shared: readonly LayerType[],
): ReadonlyMap<number, number> {
    const last = new Map(own.map((type, layer) => [type, layer]));
    return new Map(
        shared.map((type, index) => {
            const source = last.get(type);
            if (source !== undefined) return [own.length + index, source];
            throw value.error(String(shared.length), `fewer, since no layer before layer ${own.length} has ${type}`);
        }),
    );
}

/** Check the fields that a driver does not use. */
function checkUnused(model: JsonValue): void {
    sizeOf(model, "sliding_window");
    positiveOf(model, "sliding_rope_theta");
    positiveOf(model, "full_rope_theta");
    const factor = positiveOf(model, "partial_rotary_factor");
    if (factor > 1) throw model.get("partial_rotary_factor").error(String(factor), "a number above 0, at most 1");
    const cap = model.get("final_logit_softcapping").number();
    if (cap < 0) throw model.get("final_logit_softcapping").error(String(cap), "a number of at least 0");
    model.get("use_double_wide_mlp").boolean();
}
