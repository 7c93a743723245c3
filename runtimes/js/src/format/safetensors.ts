/** Safetensors files: 8 bytes with the length of the header, the header in JSON, and the data. */

import { MemoryError } from "../errors.js";
import { bundleError, parseJson, quoted, type JsonValue, type MakeError } from "./json.js";

/** The longest header that the safetensors library allows. */
export const mostHeaderBytes = 100_000_000;

const mostDimensions = 8;

/** Bytes of a number of each dtype. */
const dtypeBytes: ReadonlyMap<string, number> = new Map([
    ...["F64", "I64", "U64", "C64"].map((dtype) => [dtype, 8] as const),
    ...["F32", "I32", "U32"].map((dtype) => [dtype, 4] as const),
    ...["F16", "BF16", "I16", "U16"].map((dtype) => [dtype, 2] as const),
    ...["I8", "U8", "BOOL"].map((dtype) => [dtype, 1] as const),
    ...["F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"].map((dtype) => [dtype, 1] as const),
]);

/** A tensor of a header: its bytes are `begin` to `end` - 1 of the file. */
export interface TensorPlace {
    /** As in the file, such as "F32". */
    readonly dtype: string;
    readonly shape: readonly number[];
    readonly begin: number;
    readonly end: number;
}

export interface SafetensorsHeader {
    readonly metadata: ReadonlyMap<string, string>;
    readonly tensors: ReadonlyMap<string, TensorPlace>;
    /** Bytes before the data. */
    readonly dataOffset: number;
}

export interface Tensor {
    /** As in the file, such as "F32". */
    readonly dtype: string;
    readonly shape: readonly number[];
    readonly data: Uint8Array;
}

export interface Safetensors {
    readonly metadata: ReadonlyMap<string, string>;
    /** The data of each tensor is a view of the file. */
    readonly tensors: ReadonlyMap<string, Tensor>;
}

/**
 * Parse the header of a file: `start` holds the file's first bytes, at least to the end of the header; `fileSize` is the
 * size of the whole file. Check that the header is strict JSON, that each tensor has exactly the bytes of its dtype and
 * shape, and that the tensors fill the rest of the file without gaps and overlaps.
 */
export function parseSafetensorsHeader(
    start: Uint8Array,
    fileSize: number,
    where: string,
    makeError: MakeError = bundleError,
): SafetensorsHeader {
    if (start.length < 8) {
        throw makeError(`${where}: found ${start.length} bytes, expected a safetensors file; is the file truncated?`);
    }
    const view = new DataView(start.buffer, start.byteOffset, 8);
    const length = view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32;
    const most = Math.min(start.length - 8, mostHeaderBytes);
    if (length > most) {
        throw makeError(
            `${where}: found a header of ${length} bytes according to the first 8 bytes, expected a safetensors file ` +
                `with a header of at most ${most} bytes; is the file truncated?`,
        );
    }
    const dataOffset = 8 + length;
    const root = parseJson(start.subarray(8, dataOffset), `${where} (header)`, makeError);
    const metadata = new Map<string, string>();
    const tensors = new Map<string, TensorPlace>();
    for (const [name, entry] of root.fields()) {
        if (name !== "__metadata__") tensors.set(name, parsePlace(entry, dataOffset, fileSize - dataOffset));
        else for (const [key, value] of entry.fields()) metadata.set(key, value.text());
    }
    const refusal = findGap([...tensors.values()], dataOffset, fileSize);
    if (refusal !== undefined) throw makeError(`${where}: ${refusal}`);
    return { metadata, tensors, dataOffset };
}

/** Parse a whole file: see `parseSafetensorsHeader`. */
export function parseSafetensors(bytes: Uint8Array, where: string, makeError: MakeError = bundleError): Safetensors {
    const { metadata, tensors } = parseSafetensorsHeader(bytes, bytes.length, where, makeError);
    const views = [...tensors].map(([name, { dtype, shape, begin, end }]) => {
        return [name, { dtype, shape, data: bytes.subarray(begin, end) }] as const;
    });
    return { metadata, tensors: new Map(views) };
}

/**
 * Return the bytes of a file. The metadata and the data are in the given order. Spaces after the header make the data
 * start at a multiple of 8.
 *
 * @throws MemoryError There is not enough memory for the file.
 */
export function writeSafetensors(
    metadata: ReadonlyMap<string, string>,
    tensors: ReadonlyMap<string, Tensor>,
): Uint8Array<ArrayBuffer> {
    const header: Record<string, unknown> = { __metadata__: Object.fromEntries(metadata) };
    let size = 0;
    for (const [name, { dtype, shape, data }] of tensors) {
        header[name] = { dtype, shape, data_offsets: [size, size + data.length] };
        size += data.length;
    }
    const json = new TextEncoder().encode(JSON.stringify(header));
    const headerBytes = Math.ceil(json.length / 8) * 8;
    const bytes = allocate(8 + headerBytes + size);
    new DataView(bytes.buffer).setUint32(0, headerBytes, true);
    bytes.fill(0x20, 8, 8 + headerBytes);
    bytes.set(json, 8);
    let offset = 8 + headerBytes;
    for (const { data } of tensors.values()) {
        bytes.set(data, offset);
        offset += data.length;
    }
    return bytes;
}

/** Return the data of a tensor with numbers of `make.BYTES_PER_ELEMENT` bytes: a view if the data is aligned, or a copy. */
export function tensorNumbers<Numbers>(
    data: Uint8Array,
    make: {
        new (buffer: ArrayBufferLike, byteOffset: number, length: number): Numbers;
        readonly BYTES_PER_ELEMENT: number;
    },
): Numbers {
    const aligned = data.byteOffset % make.BYTES_PER_ELEMENT === 0 ? data : data.slice();
    return new make(aligned.buffer, aligned.byteOffset, aligned.length / make.BYTES_PER_ELEMENT);
}

function parsePlace(entry: JsonValue, dataOffset: number, dataSize: number): TensorPlace {
    entry.expectFields(["dtype", "shape", "data_offsets"]);
    const sizes = entry.get("shape").list();
    if (sizes.length > mostDimensions) {
        throw entry.get("shape").error(`${sizes.length} dimensions`, `at most ${mostDimensions}`);
    }
    const shape = sizes.map((size) => size.integer(0, Number.MAX_SAFE_INTEGER));
    const offsets = entry.get("data_offsets");
    const range = offsets.list();
    if (range.length !== 2) throw offsets.error(`${range.length} numbers`, "2");
    const [begin, end] = range.map((offset) => offset.integer(0, Number.MAX_SAFE_INTEGER)) as [number, number];
    if (begin > end || end > dataSize) {
        throw offsets.error(`[${begin}, ${end}]`, `a part of the ${dataSize} bytes of data; is the file truncated?`);
    }
    const bytes = tensorBytes(entry, shape, dataSize);
    if (end - begin !== bytes) {
        throw offsets.error(`${end - begin} bytes`, `${bytes} bytes, which follow from dtype and shape`);
    }
    return { dtype: entry.get("dtype").text(), shape, begin: dataOffset + begin, end: dataOffset + end };
}

/** Return the bytes of a tensor, or refuse a tensor of more than `limit` bytes, so that no product is rounded. */
function tensorBytes(entry: JsonValue, shape: readonly number[], limit: number): number {
    const dtype = entry.get("dtype").text();
    let bytes = dtypeBytes.get(dtype);
    if (bytes === undefined) throw entry.get("dtype").error(quoted(dtype), "a dtype of safetensors, such as F32");
    if (shape.includes(0)) return 0;
    for (const size of shape) {
        if (size > limit / bytes) {
            throw entry.get("shape").error("a tensor that is larger than the file", "a shape that fits the data");
        }
        bytes *= size;
    }
    return bytes;
}

/** Return what is wrong if the tensors, in the order of their data, do not fill the data exactly. */
function findGap(places: TensorPlace[], dataOffset: number, fileSize: number): string | undefined {
    places.sort((a, b) => a.begin - b.begin || a.end - b.end);
    let next = dataOffset;
    for (const { begin, end } of places) {
        if (begin !== next)
            return `found a tensor at byte ${begin}, expected it at ${next}, after the tensor before it`;
        next = end;
    }
    if (next === fileSize) return undefined;
    return `found ${fileSize} bytes, expected ${next} according to the header; is the file truncated?`;
}

function allocate(size: number): Uint8Array<ArrayBuffer> {
    try {
        return new Uint8Array(size);
    } catch (error) {
        throw new MemoryError(`a file of ${size} bytes needs more memory than there is`, { cause: error });
    }
}
