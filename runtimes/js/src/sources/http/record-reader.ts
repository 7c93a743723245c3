/** Reads records of one table from the cache, and the missing ones from the server. */

import { BundleError } from "../../errors.js";
import type { ReadOptions, RecordReader, TableLocation } from "../../source.js";
import { planRuns, recordOf, type Run, runOffset } from "../record-runs.js";
import type { RecordCache } from "./record-cache.js";
import type { Counters, Requests } from "./requests.js";
import { linkSignals } from "./signals.js";

const limits = { longest: 1 << 20, gap: 16 << 10 }; // bytes; longer runs are divided and run in parallel
// A read may have to wait for a request of the background, so that one is short.
const backgroundLimits = { longest: 256 << 10, gap: 16 << 10 };

export class HttpRecordReader implements RecordReader {
    private readonly closing = new AbortController();
    private prefetching = Promise.resolve();

    constructor(
        private readonly requests: Requests,
        private readonly table: TableLocation,
        private readonly cache: RecordCache,
        private readonly counters: Counters,
        private readonly onClose: () => void,
    ) {}

    async read(rows: readonly number[], options: ReadOptions = {}): Promise<Uint8Array[]> {
        options.signal?.throwIfAborted();
        this.closing.signal.throwIfAborted();
        const records = rows.map((row) => this.cached(row));
        const missing = rows.filter((_, place) => records[place] === undefined);
        this.counters.cachedRecords += rows.length - missing.length;
        if (missing.length === 0) return records as Uint8Array[];
        const runs = planRuns(this.table, missing, limits);
        const linked = linkSignals(options.signal, this.closing.signal);
        const found = new Map<number, Uint8Array>();
        try {
            await Promise.all(runs.map((run) => this.download(run, missing, found, linked.signal, false)));
        } catch (error) {
            linked.abort(error);
            throw error;
        } finally {
            linked.release();
        }
        return rows.map((row, place) => records[place] ?? found.get(row)!);
    }

    /** Download the missing records of the rows below `count`, while nobody waits for others. */
    prefetch(count: number): void {
        this.prefetching = this.prefetchRows(Math.min(count, this.table.rows, this.cache.capacity)).catch(() => {
            // A failure only means that a later read downloads the record, and says what is wrong.
        });
    }

    async close(): Promise<void> {
        if (this.closing.signal.aborted) return;
        this.onClose();
        this.closing.abort(new BundleError(`${this.requests.where}: was closed; open the bundle again`));
        await this.prefetching;
        this.cache.close();
    }

    private async prefetchRows(count: number): Promise<void> {
        const { signal } = this.closing;
        const rows = [...Array(count).keys()].filter((row) => !this.cache.has(row));
        for (const run of planRuns(this.table, rows, backgroundLimits)) {
            // A read may have downloaded the run in the meantime.
            if (run.places.every((place) => this.cache.has(rows[place]!))) continue;
            await this.download(run, rows, new Map(), signal, true);
        }
    }

    private cached(row: number): Uint8Array | undefined {
        const record = this.cache.get(row);
        if (record === undefined || this.table.isSound(row, record)) return record;
        this.cache.delete(row);
        return undefined;
    }

    /** Put the records of a run into `found` and into the cache. */
    private async download(
        run: Run,
        rows: readonly number[],
        found: Map<number, Uint8Array>,
        signal: AbortSignal,
        background: boolean,
    ): Promise<void> {
        const { shard } = run;
        const file = { name: shard.file, size: shard.size };
        const wanted = run.places.map((place) => rows[place]!);
        let problem = "";
        for (let attempt = 0; attempt < 2; attempt++) {
            const { bytes, changed } = await this.requests.range(
                file,
                runOffset(this.table, run),
                run.count * this.table.stride,
                { signal, background },
            );
            signal.throwIfAborted();
            this.counters.networkRecords += run.count;
            if (changed) {
                problem = "its ETag or Last-Modified changed since it was first read";
                continue;
            }
            const records = this.soundRecords(run, bytes);
            const damaged = wanted.find((row) => !records.has(row));
            if (damaged === undefined) {
                this.keep(records, new Set(wanted), found);
                return;
            }
            problem = `record ${damaged - shard.firstRow} (token id ${damaged}) fails its checksum`;
        }
        throw new BundleError(
            `${this.requests.address(shard.file)}: ${problem}, also in a second attempt: the file on the server is ` +
                "damaged, or another version than the manifest; open the bundle again, or upload it again",
        );
    }

    private soundRecords(run: Run, bytes: Uint8Array): Map<number, Uint8Array> {
        const records = new Map<number, Uint8Array>();
        for (let row = run.firstRow; row < run.firstRow + run.count; row++) {
            const record = recordOf(this.table, run, bytes, row);
            if (this.table.isSound(row, record)) records.set(row, record);
        }
        return records;
    }

    private keep(
        records: ReadonlyMap<number, Uint8Array>,
        wanted: ReadonlySet<number>,
        found: Map<number, Uint8Array>,
    ): void {
        for (const [row, record] of records) {
            if (wanted.has(row)) found.set(row, record);
            if (!this.cache.has(row)) this.cache.put(row, record);
        }
    }
}
