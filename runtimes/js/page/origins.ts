/** Where the records of a call came from, as far as the counters of a model say. */

import type { ModelStats } from "../src/options.js";

export type Origin = "network" | "cache" | "memory";

/** Rows of the table by the place that their records came from. */
export type RowsByOrigin = Readonly<Record<Origin, readonly number[]>>;

/**
 * Divides the rows of calls by origin. The counters say how many records came from each place, so the origin of a call
 * that needs one record is exact. In a prompt that needs records from several places, which row came from which place is
 * the likeliest choice: rows that were used before are in memory, and low ids, which are fetched ahead, are in the cache.
 */
export class Origins {
    readonly #used = new Set<number>();

    /** Rows that were used since the model was opened. */
    get used(): ReadonlySet<number> {
        return this.#used;
    }

    /** Divide the rows of the calls between two states of the counters. `ids` may have duplicates. */
    divide(ids: readonly number[], before: ModelStats, after: ModelStats): RowsByOrigin {
        const rows = [...new Set(ids)];
        const fromMemory = after.recordsInMemory - before.recordsInMemory;
        const fromCache = after.source.cachedRecords - before.source.cachedRecords;
        const known = rows.filter((row) => this.#used.has(row));
        const memory = known.splice(0, fromMemory); // what is left was dropped from memory
        const others = [...known, ...rows.filter((row) => !this.#used.has(row)).sort((a, b) => a - b)];
        const cache = others.splice(0, fromCache);
        for (const row of rows) this.#used.add(row);
        return { memory, cache, network: others };
    }
}
