/** Records that a source keeps, so that it does not download them again. */

export interface RecordCache {
    /** The largest number of records. */
    readonly capacity: number;
    has(row: number): boolean;
    /** Return a record as it was stored, perhaps damaged. It is the last one that the cache gives up. */
    get(row: number): Uint8Array | undefined;
    /** Keep a record. If the cache is full, it gives up the record that was not used for the longest time. */
    put(row: number, record: Uint8Array): void;
    delete(row: number): void;
    close(): void;
}

/** Keeps records in this process. */
export class MemoryRecordCache implements RecordCache {
    /** From the record that was not used for the longest time to the one that was used last. */
    private readonly records = new Map<number, Uint8Array>();

    constructor(readonly capacity: number) {}

    has(row: number): boolean {
        return this.records.has(row);
    }

    get(row: number): Uint8Array | undefined {
        const record = this.records.get(row);
        if (record !== undefined) {
            this.records.delete(row);
            this.records.set(row, record);
        }
        return record;
    }

    put(row: number, record: Uint8Array): void {
        this.records.delete(row);
        this.records.set(row, record);
        for (const oldest of this.records.keys()) {
            if (this.records.size <= this.capacity) return;
            this.records.delete(oldest);
        }
    }

    delete(row: number): void {
        this.records.delete(row);
    }

    close(): void {
        this.records.clear();
    }
}
