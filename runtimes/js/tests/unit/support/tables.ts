/** Tables of tests: records and their checksums, written from docs/bundle-format.md ("Record"). */

import { crc32 } from "node:zlib";

import type { ShardLocation, TableLocation } from "../../../src/source.js";

/** Return the checksum of a record: of the table's id, the row (64 bits) and the record without its last 4 bytes. */
export function checksumOf(id: string, row: number, record: Uint8Array): number {
    const head = new Uint8Array(16);
    for (let i = 0; i < 8; i++) head[i] = parseInt(id.slice(2 * i, 2 * i + 2), 16);
    new DataView(head.buffer).setBigUint64(8, BigInt(row), true);
    return crc32(record.subarray(0, record.length - 4), crc32(head));
}

/** Return a record of a table of tests. Other ids and rows have other bytes. */
export function testRecord(id: string, row: number, stride: number): Uint8Array {
    const record = new Uint8Array(stride);
    for (let i = 0; i < stride - 4; i++) record[i] = (parseInt(id.slice(0, 4), 16) + row * 31 + i * 7) & 255;
    new DataView(record.buffer).setUint32(stride - 4, checksumOf(id, row, record), true);
    return record;
}

export interface TestTable {
    readonly table: TableLocation;
    /** The files of the shards. */
    readonly files: Map<string, Uint8Array>;
    readonly record: (row: number) => Uint8Array;
}

/** Return a table whose shards have `counts` rows and begin with `dataOffset` bytes of header. */
export function testTable(
    options: {
        readonly id?: string;
        readonly stride?: number;
        readonly counts?: readonly number[];
        readonly dataOffset?: number;
    } = {},
): TestTable {
    const { id = "0123456789abcdef", stride = 64, counts = [10, 6], dataOffset = 128 } = options;
    const files = new Map<string, Uint8Array>();
    const shards: ShardLocation[] = [];
    let firstRow = 0;
    for (const [index, count] of counts.entries()) {
        const content = new Uint8Array(dataOffset + count * stride).fill(0x20, 0, dataOffset);
        for (let i = 0; i < count; i++) content.set(testRecord(id, firstRow + i, stride), dataOffset + i * stride);
        const file = `experts-${index}.safetensors`;
        files.set(file, content);
        shards.push({ file, firstRow, count, dataOffset, size: content.length });
        firstRow += count;
    }
    return { table: locate(id, firstRow, stride, shards), files, record: (row) => testRecord(id, row, stride) };
}

/** Return a table's location, whose `isSound` compares checksums. */
export function locate(id: string, rows: number, stride: number, shards: readonly ShardLocation[]): TableLocation {
    const isSound = (row: number, record: Uint8Array): boolean => {
        const stored = new DataView(record.buffer, record.byteOffset).getUint32(stride - 4, true);
        return stored === checksumOf(id, row, record);
    };
    return { id, rows, stride, shards, isSound };
}
