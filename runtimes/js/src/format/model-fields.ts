/** The fields of a model's configuration that all families have, and the kinds of values that fields have. */

import type { JsonValue } from "./json.js";

export const LARGEST_SIZE = 2 ** 31 - 1;

const mostLayers = 65_536;
const mostPositions = 2 ** 24;

/** The fields of this file. */
export const COMMON_FIELDS = [
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
] as const;

/** The values of the fields of all families that a parser needs. */
export interface CommonFields {
    readonly vocabSize: number;
    readonly hiddenSize: number;
    readonly numHiddenLayers: number;
    readonly numKeyValueHeads: number;
    readonly headDim: number;
    readonly maxPositionEmbeddings: number;
}

/** Parse and check the fields of all families. */
export function parseCommon(model: JsonValue): CommonFields {
    const common: CommonFields = {
        vocabSize: sizeOf(model, "vocab_size"),
        hiddenSize: sizeOf(model, "hidden_size"),
        numHiddenLayers: model.get("num_hidden_layers").integer(1, mostLayers),
        numKeyValueHeads: sizeOf(model, "num_key_value_heads"),
        headDim: evenSizeOf(model, "head_dim"),
        maxPositionEmbeddings: model.get("max_position_embeddings").integer(1, mostPositions),
    };
    const heads = sizeOf(model, "num_attention_heads");
    if (heads % common.numKeyValueHeads !== 0) {
        const expected = `a multiple of num_key_value_heads, ${common.numKeyValueHeads}`;
        throw model.get("num_attention_heads").error(String(heads), expected);
    }
    // A driver does not use these fields.
    sizeOf(model, "intermediate_size");
    positiveOf(model, "rms_norm_eps");
    model.get("tie_word_embeddings").boolean();
    return common;
}

/** Return a field that is a size: an integer from `least` to 2^31 - 1. */
export function sizeOf(model: JsonValue, name: string, least = 1): number {
    return model.get(name).integer(least, LARGEST_SIZE);
}

/** Return a field that is the size of rotated vectors. */
export function evenSizeOf(model: JsonValue, name: string): number {
    const size = sizeOf(model, name);
    if (size % 2 !== 0) throw model.get(name).error(String(size), "an even number");
    return size;
}

/** Return a field that is a number above 0. */
export function positiveOf(model: JsonValue, name: string): number {
    const number = model.get(name).number();
    if (number <= 0) throw model.get(name).error(String(number), "a number above 0");
    return number;
}
