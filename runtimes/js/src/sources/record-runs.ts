/** Which bytes of which shards hold some rows of a table, and how the records are taken out of these bytes. */

import { BundleError } from "../errors.js";
import type { ShardLocation, TableLocation } from "../source.js";

/** Consecutive rows of one shard that are read at once. */
export interface Run {
    readonly shard: ShardLocation;
    readonly firstRow: number;
    readonly count: number;
    /** Indices of the wanted rows, in ascending order of the rows. With a gap the run has more rows than that. */
    readonly places: readonly number[];
}

export interface RunLimits {
    /** Bytes of the longest run; a run has at least one record. */
    readonly longest: number;
    /** Bytes between two wanted records that are read too, so that one read serves both. */
    readonly gap: number;
}

/** Return the runs that cover `rows`, which are in the table and have no duplicates. */
export function planRuns(table: TableLocation, rows: readonly number[], limits: RunLimits): Run[] {
    const order = [...rows.keys()].sort((a, b) => rows[a]! - rows[b]!);
    const longestRows = Math.max(1, Math.floor(limits.longest / table.stride));
    const step = 1 + Math.floor(limits.gap / table.stride);
    const runs: Run[] = [];
    let begin = 0;
    while (begin < order.length) {
        const firstRow = rows[order[begin]!]!;
        const shard = findShard(table, firstRow);
        const limit = Math.min(shard.firstRow + shard.count, firstRow + longestRows);
        let last = firstRow;
        let end = begin + 1;
        for (; end < order.length; end++) {
            const next = rows[order[end]!]!;
            if (next > last + step || next >= limit) break;
            last = next;
        }
        runs.push({ shard, firstRow, count: last - firstRow + 1, places: order.slice(begin, end) });
        begin = end;
    }
    return runs;
}

/** Return the shard that holds a row of the table. Shards are in the order of their rows. */
function findShard(table: TableLocation, row: number): ShardLocation {
    let low = 0;
    let high = table.shards.length - 1;
    while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (table.shards[middle]!.firstRow <= row) low = middle;
        else high = middle - 1;
    }
    return table.shards[low]!;
}

/** Return where a run begins in its file, in bytes. */
export function runOffset(table: TableLocation, run: Run): number {
    return run.shard.dataOffset + (run.firstRow - run.shard.firstRow) * table.stride;
}

/**
 * Return the record of a row of a run from the run's bytes. It is a copy if the run has more rows, so that a record that
 * is kept does not keep the others in memory.
 */
export function recordOf(table: TableLocation, run: Run, bytes: Uint8Array, row: number): Uint8Array {
    if (run.count === 1) return bytes;
    const start = (row - run.firstRow) * table.stride;
    return bytes.slice(start, start + table.stride);
}

/** Return the error of a record whose checksum is wrong (check 17 of docs/bundle-format.md). */
export function damagedRecord(where: string, shard: ShardLocation, row: number, advice: string): BundleError {
    return new BundleError(
        `${where}: record ${row - shard.firstRow} (token id ${row}) fails its checksum: the file is damaged, or holds ` +
            `a record of another row or another export; ${advice}`,
    );
}
