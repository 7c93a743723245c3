/**
 * The record cache in the origin private file system: a file of slots, each as long as a record, and an index, a log of
 * which row is in which slot.
 *
 *     index: header of 16 bytes: "MKVRECS1", stride (uint32), CRC-32 of these 12 bytes (uint32)
 *            entries of 12 bytes: row, slot, CRC-32 of both (uint32 each); a later entry of a row or slot replaces earlier ones
 *
 * Entries are in the order of the last uses, so a record that is used gets an entry, too. The entry of a new record is
 * appended after the record is flushed, so a crash loses records, but never adds wrong ones. The reader checks each
 * record anyway, since an index can also outlive an overwritten slot.
 */

import { crc32 } from "../../format/crc32.js";
import { type AccessHandle, errorText, writeAll } from "./opfs.js";
import type { RecordCache } from "./record-cache.js";

const magic = new TextEncoder().encode("MKVRECS1");
const headerSize = 16;
const entrySize = 12;
// A flush may take milliseconds, so entries are written together: this number, or those of this time. The browser ends
// a tab without a chance to flush.
const batch = 32;
const batchMilliseconds = 500;

export class OpfsRecordCache implements RecordCache {
    /** From the record that was not used for the longest time to the one that was used last. */
    private readonly slots = new Map<number, number>();
    /** The row in each slot of the file. */
    private readonly rows: (number | undefined)[] = [];
    private readonly free: number[] = [];
    /** Rows whose entries are not yet in the index, in the order of their last uses. */
    private readonly pending = new Set<number>();
    /** Whether records were written since the last flush. */
    private unflushed = false;
    private timer: ReturnType<typeof setTimeout> | undefined;
    private indexEnd = headerSize;
    private writable = true;

    /** @param onFailure Is called once, if the cache cannot keep more records. */
    constructor(
        private readonly data: AccessHandle,
        private readonly index: AccessHandle,
        private readonly stride: number,
        readonly capacity: number,
        private readonly onFailure: (reason: string) => void,
    ) {
        this.open();
    }

    has(row: number): boolean {
        return this.slots.has(row);
    }

    get(row: number): Uint8Array | undefined {
        const slot = this.slots.get(row);
        if (slot === undefined) return undefined;
        this.slots.delete(row);
        this.slots.set(row, slot);
        const record = new Uint8Array(this.stride);
        try {
            if (this.data.read(record, { at: slot * this.stride }) === this.stride) {
                this.addEntry(row);
                return record;
            }
        } catch {
            // The browser may take the file away. The record is downloaded again.
        }
        this.delete(row);
        return undefined;
    }

    put(row: number, record: Uint8Array): void {
        if (!this.writable || this.capacity === 0) return;
        this.delete(row);
        const slot = this.takeSlot();
        try {
            writeAll(this.data, record, slot * this.stride);
            this.slots.set(row, slot);
            this.rows[slot] = row;
            this.unflushed = true;
        } catch (error) {
            this.stopWriting(error);
        }
        this.addEntry(row);
    }

    delete(row: number): void {
        const slot = this.slots.get(row);
        if (slot === undefined) return;
        this.slots.delete(row);
        this.rows[slot] = undefined;
        this.free.push(slot);
    }

    close(): void {
        this.commit();
        this.data.close();
        this.index.close();
    }

    private takeSlot(): number {
        const free = this.free.pop();
        if (free !== undefined) return free;
        if (this.rows.length < this.capacity) return this.rows.push(undefined) - 1;
        const [oldest] = this.slots.keys();
        this.delete(oldest!);
        return this.free.pop()!;
    }

    /** Write the entry of a row soon: it is the row that was used last. */
    private addEntry(row: number): void {
        if (!this.writable) return;
        this.pending.delete(row);
        this.pending.add(row);
        if (this.pending.size >= batch) {
            this.commit();
            return;
        }
        this.timer ??= setTimeout(() => {
            this.commit();
        }, batchMilliseconds);
    }

    /** Write the data of new records to the disk, then the entries. */
    private commit(): void {
        clearTimeout(this.timer);
        this.timer = undefined;
        const entries = [...this.pending].flatMap((row) => {
            const slot = this.slots.get(row);
            return slot === undefined ? [] : [[row, slot] as const];
        });
        this.pending.clear();
        if (entries.length === 0) return;
        try {
            if (this.unflushed) this.data.flush();
            this.append(entries);
            if (this.unflushed) this.index.flush();
            this.unflushed = false;
        } catch (error) {
            this.stopWriting(error);
        }
    }

    private append(entries: readonly (readonly [number, number])[]): void {
        const bytes = new Uint8Array(entries.length * entrySize);
        const view = new DataView(bytes.buffer);
        for (const [i, [row, slot]] of entries.entries()) {
            const at = i * entrySize;
            view.setUint32(at, row, true);
            view.setUint32(at + 4, slot, true);
            view.setUint32(at + 8, crc32(bytes.subarray(at, at + 8)), true);
        }
        writeAll(this.index, bytes, this.indexEnd);
        this.indexEnd += bytes.length;
    }

    private stopWriting(error: unknown): void {
        if (this.writable) this.onFailure(`new records are not kept (${errorText(error)})`);
        this.writable = false;
    }

    private open(): void {
        const entries = this.readEntries();
        const stored = Math.min(Math.floor(this.data.getSize() / this.stride), this.capacity);
        while (this.rows.length < stored) this.rows.push(undefined);
        for (const [row, slot] of entries) {
            if (slot >= stored) continue;
            const before = this.rows[slot];
            if (before !== undefined) this.slots.delete(before);
            const old = this.slots.get(row);
            if (old !== undefined) this.rows[old] = undefined;
            this.slots.delete(row);
            this.slots.set(row, slot);
            this.rows[slot] = row;
        }
        for (const [slot, row] of this.rows.entries()) if (row === undefined) this.free.push(slot);
        // Slots above the limit would keep their space, and a long log would grow for ever.
        this.data.truncate(stored * this.stride);
        if (entries.length > 2 * this.slots.size + 1024) this.rewriteIndex();
    }

    /** Return the entries up to the first damaged one. An index of something else is begun anew. */
    private readEntries(): [number, number][] {
        const bytes = new Uint8Array(this.index.getSize());
        this.index.read(bytes, { at: 0 });
        const view = new DataView(bytes.buffer);
        const header = this.header();
        if (bytes.length < headerSize || header.some((byte, i) => bytes[i] !== byte)) {
            this.rewriteIndex();
            return [];
        }
        const entries: [number, number][] = [];
        let at = headerSize;
        for (; at + entrySize <= bytes.length; at += entrySize) {
            if (view.getUint32(at + 8, true) !== crc32(bytes.subarray(at, at + 8))) break;
            entries.push([view.getUint32(at, true), view.getUint32(at + 4, true)]);
        }
        this.indexEnd = at;
        this.index.truncate(at);
        return entries;
    }

    private rewriteIndex(): void {
        this.index.truncate(0);
        writeAll(this.index, this.header(), 0);
        this.indexEnd = headerSize;
        this.append([...this.slots]);
        this.index.flush();
    }

    private header(): Uint8Array {
        const bytes = new Uint8Array(headerSize);
        bytes.set(magic);
        const view = new DataView(bytes.buffer);
        view.setUint32(8, this.stride, true);
        view.setUint32(12, crc32(bytes.subarray(0, 12)), true);
        return bytes;
    }
}
