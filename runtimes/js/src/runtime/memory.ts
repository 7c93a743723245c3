/** Checks of memory. JavaScript does not say how much memory is free, so there is a fixed limit. */

import { MemoryError } from "../errors.js";

/** The most bytes of the state of a batch of sequences. */
const MOST_STATE_BYTES = 2 ** 34;

function mebibytes(bytes: number): string {
    return `${Math.ceil(bytes / 2 ** 20).toLocaleString("en")} MiB`;
}

/**
 * Check that a state of so many bytes is possible. `what` says in the message what needs them.
 *
 * @throws MemoryError There are too many bytes.
 */
export function checkMemory(bytes: number, what: string): void {
    if (bytes <= MOST_STATE_BYTES) return;
    throw new MemoryError(
        `${what} need ${mebibytes(bytes)} of memory, expected at most ${mebibytes(MOST_STATE_BYTES)}; ask for fewer ` +
            "or shorter sequences",
    );
}

/** Return an error that says what did not fit into memory, if an error is a failed allocation; else the error. */
export function asMemoryError(error: unknown, what: string): unknown {
    // The class of errors of typed arrays that are too long or do not fit into memory.
    if (!(error instanceof RangeError)) return error;
    return new MemoryError(`${what} do not fit into memory; ask for fewer or shorter sequences`, { cause: error });
}
