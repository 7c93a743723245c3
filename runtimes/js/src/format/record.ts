/** The layout and the checksum of a record (docs/bundle-format.md, "Record"). */

import { BundleError } from "../errors.js";
import { quoted } from "./json.js";
import type { ModelConfig, RecordField, Table, TableDType } from "./manifest.js";

/** A function that continues a CRC-32 `value` with bytes. */
export type Crc32 = (bytes: Uint8Array, value: number) => number;

const alignment = 4; // of each part, in bytes
const checksumBytes = 4;

/** How the numbers of a table are stored. */
interface Storage {
    /** The dtype of embeddings, keys, and values that are not quantized. */
    readonly plain: TableDType;
    /** The dtype of scales; undefined: values are not quantized. */
    readonly scale?: TableDType;
    /** Numbers that share a scale; undefined: all numbers of an expert. */
    readonly group?: number;
}

const storages: Readonly<Record<TableDType, Storage>> = {
    float32: { plain: "float32" },
    float16: { plain: "float16" },
    int8: { plain: "float16", scale: "float32" },
    int4: { plain: "float16", scale: "float16", group: 32 },
    nf4: { plain: "float16", scale: "float16", group: 64 },
};

const numberBytes: Readonly<Record<TableDType, number>> = { float32: 4, float16: 2, int8: 1, int4: 0.5, nf4: 0.5 };

/**
 * Return the parts of a record and its bytes, which follow from the model and the dtype of the table. `where` names the
 * table in messages.
 *
 * @throws BundleError The dtype does not allow the size of the model's values.
 */
export function recordFields(
    config: ModelConfig,
    dtype: TableDType,
    where = "tables.experts",
): { fields: RecordField[]; stride: number } {
    const { plain, scale, group } = storages[dtype];
    const { expertValueShape, expertAttention } = config;
    const valueSize = expertValueShape.at(-1)!;
    const groupSize = group ?? valueSize;
    if (scale !== undefined && valueSize % groupSize !== 0 && config.expertLayers.length > 0) {
        throw new BundleError(
            `${where}.dtype: found ${dtype} for values of ${valueSize} numbers, expected a multiple of ${groupSize} numbers`,
        );
    }
    const scaleShape = [...expertValueShape.slice(0, -1), valueSize / groupSize];
    const fields: RecordField[] = [];
    let end = 0;
    const add = (name: string, fieldDtype: TableDType, shape: readonly number[]): void => {
        fields.push({ name, dtype: fieldDtype, shape, offset: end });
        const count = shape.reduce((product, size) => product * size, 1);
        end = roundUp(end + Math.ceil(count * numberBytes[fieldDtype]), alignment);
    };
    add("embedding", plain, [config.hiddenSize]);
    for (const layer of config.expertLayers) {
        if (expertAttention !== undefined) {
            add(`expert_key.${layer}`, plain, [expertAttention.experts, expertAttention.keySize]);
        }
        if (scale !== undefined) add(`expert_scale.${layer}`, scale, scaleShape);
        add(`expert_value.${layer}`, scale === undefined ? plain : dtype, expertValueShape);
    }
    const size = end + checksumBytes;
    return { fields, stride: roundUp(size, size >= 16_384 ? 4096 : 64) };
}

function roundUp(size: number, unit: number): number {
    return Math.ceil(size / unit) * unit;
}

/**
 * Check that `fields` and `stride` of a table are those that follow from the model (check 8). `where` is the path of the
 * manifest.
 *
 * @throws BundleError They are different.
 */
export function checkRecord(config: ModelConfig, table: Table, where: string): void {
    const place = `${where}: tables.experts`;
    const { fields, stride } = recordFields(config, table.dtype, place);
    for (let i = 0; i < Math.max(fields.length, table.fields.length); i++) {
        const found = table.fields[i];
        const expected = fields[i];
        if (found !== undefined && expected !== undefined && isSameField(found, expected)) continue;
        throw new BundleError(
            `${place}.fields[${i}]: found ${shown(found)}, expected ${shown(expected)}, which follows from the model`,
        );
    }
    if (table.stride !== stride) throw new BundleError(`${place}.stride: found ${table.stride}, expected ${stride}`);
}

/** Return whether two parts of records are the same. */
export function isSameField(a: RecordField, b: RecordField): boolean {
    return (
        a.name === b.name &&
        a.dtype === b.dtype &&
        a.offset === b.offset &&
        a.shape.length === b.shape.length &&
        a.shape.every((size, i) => size === b.shape[i])
    );
}

function shown(field: RecordField | undefined): string {
    if (field === undefined) return "no field";
    const shape = field.shape.slice(0, 8).join(", ");
    return `${quoted(field.name)} with dtype ${field.dtype}, shape [${shape}] and offset ${field.offset}`;
}

/**
 * Return the checksum of a record: of the table's id (16 hexadecimal digits), the number of the row, and the record
 * without its last 4 bytes.
 */
export function recordChecksum(crc32: Crc32, id: string, row: number, record: Uint8Array): number {
    const prefix = new Uint8Array(16);
    for (let i = 0; i < 8; i++) prefix[i] = parseInt(id.slice(2 * i, 2 * i + 2), 16);
    // Rows are below 2^31, so the upper half of the 64-bit number is 0.
    new DataView(prefix.buffer).setUint32(8, row, true);
    return crc32(record.subarray(0, record.length - checksumBytes), crc32(prefix, 0));
}

/** Return whether the last 4 bytes of a record are its checksum (check 17). */
export function isSoundRecord(crc32: Crc32, id: string, row: number, record: Uint8Array): boolean {
    const view = new DataView(record.buffer, record.byteOffset, record.byteLength);
    return view.getUint32(record.length - checksumBytes, true) === recordChecksum(crc32, id, row, record);
}
