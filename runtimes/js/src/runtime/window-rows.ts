/** Numbers of the expert window: keys, values and, in an int8 window, scales of some positions of one layer. */

import type { ExpertAttention, ModelConfig } from "../format/manifest.js";
import type { RecordDecoder } from "../format/record-decoder.js";
import { Rotation } from "./rotary.js";

/** The configuration of a model that attends to experts. */
export interface WindowConfig extends ModelConfig {
    readonly expertAttention: ExpertAttention;
}

/** Experts of `rows` positions of a layer. */
export interface ExpertRows {
    /** [rows, N, dk] */
    readonly key: Float32Array;
    /** [rows, N, d]; in an int8 window, codes. */
    readonly value: Float32Array | Int8Array;
    /** [rows, N]; empty unless the window is int8. */
    readonly scale: Float32Array;
}

/** One of the arrays of `ExpertRows`, and its input of the graph. */
export interface RowKind {
    readonly array: keyof ExpertRows;
    /** The name of the input, without the layer. */
    readonly input: string;
    readonly dtype: "float32" | "int8";
    /** Numbers of an expert: dk, d, or 1 for a scale. */
    readonly vector: number;
    /** Numbers of a row: those of the N experts of a position. */
    readonly size: number;
}

/** Decodes records into rows, and rotates their keys. */
export class RowWriter {
    readonly kinds: readonly RowKind[];
    readonly #decoder: RecordDecoder;
    readonly #experts: number;
    readonly #keySize: number;
    readonly #valueSize: number;
    readonly #rotation: Rotation | undefined;

    constructor(config: WindowConfig, windowDtype: "float32" | "int8", decoder: RecordDecoder) {
        this.#decoder = decoder;
        const { experts, keySize, ropeTheta } = config.expertAttention;
        this.#experts = experts;
        this.#keySize = keySize;
        this.#valueSize = config.expertValueShape.at(-1)!;
        this.#rotation = ropeTheta === undefined ? undefined : new Rotation(keySize, ropeTheta);
        this.kinds = rowKinds(config, windowDtype);
    }

    /** Return rows of zeros. */
    allocate(rows: number): ExpertRows {
        const [key, value, scale] = this.kinds;
        return {
            key: new Float32Array(rows * key!.size),
            value: value!.dtype === "int8" ? new Int8Array(rows * value!.size) : new Float32Array(rows * value!.size),
            scale: new Float32Array(scale === undefined ? 0 : rows * scale.size),
        };
    }

    /** Write the experts of a record to row `row`. `layer` is an index into `expertLayers`. */
    write(record: Uint8Array, layer: number, position: number, into: ExpertRows, row: number): void {
        const keyAt = row * this.#experts * this.#keySize;
        this.#decoder.keys(record, layer, into.key, keyAt);
        this.#rotation?.rotate(into.key, keyAt, this.#experts, position);
        const valueAt = row * this.#experts * this.#valueSize;
        const { value, scale } = into;
        if (value instanceof Float32Array) this.#decoder.values(record, layer, value, valueAt);
        else this.#decoder.codes(record, layer, value, valueAt, scale, row * this.#experts);
    }
}

/** Return the arrays of rows. The last one, "scale", exists only in an int8 window. */
export function rowKinds(config: WindowConfig, windowDtype: "float32" | "int8"): RowKind[] {
    const { experts, keySize } = config.expertAttention;
    const kind = (array: keyof ExpertRows, input: string, dtype: "float32" | "int8", vector: number): RowKind => {
        return { array, input, dtype, vector, size: experts * vector };
    };
    const kinds = [
        kind("key", "expert_key", "float32", keySize),
        kind("value", "expert_value", windowDtype, config.expertValueShape.at(-1)!),
    ];
    if (windowDtype === "int8") kinds.push(kind("scale", "expert_value_scale", "float32", 1));
    return kinds;
}

/** Copy `count` rows to another place of the same arrays. */
export function moveRows(rows: ExpertRows, kinds: readonly RowKind[], into: number, from: number, count: number): void {
    for (const { array, size } of kinds) rows[array].copyWithin(into * size, from * size, (from + count) * size);
}
