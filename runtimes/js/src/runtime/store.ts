/** The expert store: records by token id. The source reads them; this file keeps some of them in memory. */

import type { RecordReader } from "../source.js";

/** The bytes of recently used records that a store keeps. */
const RECENT_BYTES = 32 * 2 ** 20;

/** Options of `gather`. */
export interface GatherOptions {
    /** Ends the reading with the signal's reason. */
    readonly signal?: AbortSignal | undefined;
}

/** Returns records by token id, and keeps the recently used ones in memory. */
export class Store {
    /** Records that the reader was asked for. */
    recordsRead = 0;
    /** Records that were in memory. A record that a call needs twice counts once. */
    recordsInMemory = 0;
    readonly #reader: RecordReader;
    readonly #mostRecent: number;
    /** Recently used records by row, the most recently used one last. */
    readonly #recent = new Map<number, Uint8Array>();

    /** @param stride Bytes of a record. */
    constructor(reader: RecordReader, stride: number, recentBytes = RECENT_BYTES) {
        this.#reader = reader;
        this.#mostRecent = Math.floor(recentBytes / stride);
    }

    /**
     * Return the records of token ids, in their order. Do not change them. The ids must be inside the vocabulary.
     *
     * @throws BundleError A record is damaged, or cannot be read.
     */
    async gather(ids: readonly number[], options?: GatherOptions): Promise<Uint8Array[]> {
        const known = new Map<number, Uint8Array>();
        const missing = new Set<number>();
        for (const id of ids) {
            if (known.has(id) || missing.has(id)) continue;
            const record = this.#recent.get(id);
            if (record === undefined) missing.add(id);
            else known.set(id, record);
        }
        this.recordsInMemory += known.size;
        if (missing.size > 0) {
            const rows = [...missing];
            const records = await this.#reader.read(rows, options);
            this.recordsRead += rows.length;
            for (let i = 0; i < rows.length; i++) known.set(rows[i]!, records[i]!);
        }
        for (const [id, record] of known) this.#keep(id, record);
        return ids.map((id) => known.get(id)!);
    }

    /** Release the reader and the records in memory. */
    async close(): Promise<void> {
        this.#recent.clear();
        await this.#reader.close();
    }

    #keep(id: number, record: Uint8Array): void {
        if (this.#mostRecent === 0) return;
        const isKept = this.#recent.delete(id);
        // A view would keep the whole memory of its read alive.
        const isView = !isKept && record.byteLength < record.buffer.byteLength;
        this.#recent.set(id, isView ? record.slice() : record);
        if (this.#recent.size <= this.#mostRecent) return;
        for (const oldest of this.#recent.keys()) {
            this.#recent.delete(oldest);
            return;
        }
    }
}
