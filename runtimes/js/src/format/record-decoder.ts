/** The conversion of stored records to float32, to the bit (docs/bundle-format.md, "Numbers" and "Int8 window"). */

import { halfTable, halfToFloat } from "./half.js";
import type { ModelConfig, RecordField, Table, TableDType } from "./manifest.js";
import { tensorNumbers } from "./safetensors.js";

/** The levels of nf4 (QLoRA, arXiv 2305.14314, appendix E). */
const nf4Levels = new Float32Array([
    -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
]);

const int4Levels = Float32Array.from({ length: 16 }, (_, code) => code - 8);

const smallestNormal = 2 ** -126;

/** Adding and subtracting it rounds a float64 of magnitude below 2^51 to the nearest integer, ties to even. */
const roundingNumber = 1.5 * 2 ** 52;

/** A part of a record. */
interface Place {
    readonly dtype: TableDType;
    /** Bytes from the start of the record. */
    readonly offset: number;
    /** Numbers. */
    readonly count: number;
}

/** The experts of one layer in a record. */
interface Experts {
    /** Undefined unless the model attends to experts. */
    readonly keys: Place | undefined;
    readonly values: Place;
    /** Undefined: the values are not quantized. */
    readonly scales: Place | undefined;
}

/**
 * Decodes parts of a record into arrays of the caller, from a number of the array on. A record has `stride` bytes and
 * may begin at any byte of its buffer. `layer` is an index into `expertLayers` of the model.
 */
export class RecordDecoder {
    private readonly embeddingPlace: Place;
    private readonly layers: readonly Experts[];
    /** Numbers of one value. */
    private readonly valueSize: number;
    /** Values of one layer as float32, before they are rounded. */
    private readonly scratch: Float32Array;

    /** The fields of the table must have passed check 8. */
    constructor(table: Table, config: ModelConfig) {
        const places = new Map(table.fields.map((field) => [field.name, place(field)]));
        this.embeddingPlace = places.get("embedding")!;
        this.layers = config.expertLayers.map((layer) => ({
            keys: places.get(`expert_key.${layer}`),
            values: places.get(`expert_value.${layer}`)!,
            scales: places.get(`expert_scale.${layer}`),
        }));
        this.valueSize = config.expertValueShape.at(-1)!;
        this.scratch = new Float32Array(this.layers[0]?.values.count ?? 0);
    }

    /** Write the input embedding, [d]. */
    embedding(record: Uint8Array, out: Float32Array, offset: number): void {
        readFloats(record, this.embeddingPlace, out, offset);
    }

    /** Write the keys of a layer, [N, dk], before their rotation. The model attends to experts. */
    keys(record: Uint8Array, layer: number, out: Float32Array, offset: number): void {
        readFloats(record, this.layers[layer]!.keys!, out, offset);
    }

    /** Write the values of a layer, in the model's `expertValueShape`. */
    values(record: Uint8Array, layer: number, out: Float32Array, offset: number): void {
        const { values, scales } = this.layers[layer]!;
        if (scales === undefined) readFloats(record, values, out, offset);
        else if (values.dtype === "int8") decodeInt8(record, values, scales, out, offset);
        else decodeNibbles(record, values, scales, out, offset);
    }

    /**
     * Write the values of a layer for an int8 window: codes [N, d], and one scale for each value, [N]. The values of an
     * int8 store keep their codes and scales. Other values are rounded.
     */
    codes(
        record: Uint8Array,
        layer: number,
        codes: Int8Array,
        offset: number,
        scales: Float32Array,
        scaleOffset: number,
    ): void {
        const experts = this.layers[layer]!;
        if (experts.scales !== undefined && experts.values.dtype === "int8") {
            codes.set(
                new Int8Array(record.buffer, record.byteOffset + experts.values.offset, experts.values.count),
                offset,
            );
            readFloats(record, experts.scales, scales, scaleOffset);
            return;
        }
        this.values(record, layer, this.scratch, 0);
        const size = this.valueSize;
        for (let expert = 0; expert * size < this.scratch.length; expert++) {
            const value = this.scratch.subarray(expert * size, (expert + 1) * size);
            scales[scaleOffset + expert] = roundValue(value, codes, offset + expert * size);
        }
    }
}

function place(field: RecordField): Place {
    return {
        dtype: field.dtype,
        offset: field.offset,
        count: field.shape.reduce((product, size) => product * size, 1),
    };
}

/** Write float16 or float32 numbers. */
function readFloats(
    record: Uint8Array,
    { dtype, offset: start, count }: Place,
    out: Float32Array,
    offset: number,
): void {
    if (dtype === "float16") {
        halfToFloat(tensorNumbers(record.subarray(start, start + 2 * count), Uint16Array), out, offset);
    } else {
        // A copy of bytes needs no alignment.
        const bytes = new Uint8Array(out.buffer, out.byteOffset + 4 * offset, 4 * count);
        bytes.set(record.subarray(start, start + 4 * count));
    }
}

// A code of 8 bits times a float32 scale of 24 bits, or a level of 24 bits times a float16 scale of 11 bits, is exact in
// float64. So the store into a Float32Array is the only rounding.

function decodeInt8(record: Uint8Array, values: Place, scales: Place, out: Float32Array, offset: number): void {
    const codes = new Int8Array(record.buffer, record.byteOffset + values.offset, values.count);
    const view = new DataView(record.buffer, record.byteOffset + scales.offset);
    const size = values.count / scales.count;
    for (let expert = 0; expert < scales.count; expert++) {
        const scale = view.getFloat32(4 * expert, true);
        const end = (expert + 1) * size;
        for (let i = expert * size; i < end; i++) out[offset + i] = codes[i]! * scale;
    }
}

/** Write numbers of 4 bits: int4 or nf4. */
function decodeNibbles(record: Uint8Array, values: Place, scales: Place, out: Float32Array, offset: number): void {
    const levels = values.dtype === "nf4" ? nf4Levels : int4Levels;
    const halves = halfTable();
    const products = new Float32Array(16);
    const groupBytes = values.count / scales.count / 2;
    let at = values.offset;
    let to = offset;
    for (let group = 0; group < scales.count; group++) {
        const low = scales.offset + 2 * group;
        const scale = halves[record[low]! | (record[low + 1]! << 8)]!;
        for (let code = 0; code < 16; code++) products[code] = levels[code]! * scale;
        for (const end = at + groupBytes; at < end; at++) {
            const byte = record[at]!;
            out[to++] = products[byte & 15]!;
            out[to++] = products[byte >> 4]!;
        }
    }
}

/** Write a value [d] as codes, and return its scale. */
function roundValue(value: Float32Array, codes: Int8Array, offset: number): number {
    let largest = 0;
    for (let i = 0; i < value.length; i++) largest = Math.max(largest, Math.abs(value[i]!));
    const scale = Math.fround(largest / 127);
    if (scale < smallestNormal) {
        codes.fill(0, offset, offset + value.length);
        return 0;
    }
    for (let i = 0; i < value.length; i++) {
        codes[offset + i] = Math.fround(value[i]! / scale) + roundingNumber - roundingNumber;
    }
    return scale;
}
