import { describe, expect, it } from "vitest";

import { Store } from "../../../src/runtime/store.js";
import type { RecordReader } from "../../../src/source.js";

/** Returns records of 4 bytes as views of one array for each read, as readers of neighbouring rows do. */
class Reader implements RecordReader {
    readonly reads: number[][] = [];
    isClosed = false;

    read: RecordReader["read"] = (rows) => {
        this.reads.push([...rows]);
        const all = Uint8Array.from(rows.flatMap((row) => [row, row, row, row]));
        return Promise.resolve(rows.map((_, i) => all.subarray(4 * i, 4 * i + 4)));
    };

    close(): Promise<void> {
        this.isClosed = true;
        return Promise.resolve();
    }
}

describe("Store", () => {
    it("returns the records in the order of the ids, and reads each row once", async () => {
        const reader = new Reader();
        const store = new Store(reader, 4);
        const records = await store.gather([5, 3, 5, 200]);
        expect(records.map((record) => [...record])).toEqual([5, 3, 5, 200].map((id) => [id, id, id, id]));
        expect(reader.reads).toEqual([[5, 3, 200]]);
        expect([store.recordsRead, store.recordsInMemory]).toEqual([3, 0]);
        expect((await store.gather([200]))[0]).toEqual(Uint8Array.of(200, 200, 200, 200));
        expect([store.recordsRead, store.recordsInMemory]).toEqual([3, 1]);
    });

    it("keeps the most recently used records, at most as many bytes as it may", async () => {
        const reader = new Reader();
        const store = new Store(reader, 4, 11);
        await store.gather([1]);
        await store.gather([2]);
        await store.gather([1]);
        await store.gather([3]); // takes the place of 2
        await store.gather([1, 2]);
        expect(reader.reads).toEqual([[1], [2], [3], [2]]);
    });

    it("keeps no memory of a read alive beyond the records", async () => {
        const store = new Store(new Reader(), 4);
        await store.gather([1, 2, 3]);
        const [record] = await store.gather([2]);
        expect(record!.buffer.byteLength).toBe(4);
    });

    it("passes the signal to the reader, and closes it", async () => {
        const reader = new Reader();
        let found: unknown;
        reader.read = (_, options) => {
            found = options?.signal;
            return Promise.resolve([new Uint8Array(4)]);
        };
        const store = new Store(reader, 4);
        const { signal } = new AbortController();
        await store.gather([1], { signal });
        expect(found).toBe(signal);
        await store.close();
        expect(reader.isClosed).toBe(true);
    });
});
