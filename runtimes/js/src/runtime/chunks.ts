/** The division of a prompt into chunks (docs/bundle-format.md, "What a driver does beside the graph"). */

/** The most positions of a chunk, if the user gives no other number. */
export const DEFAULT_CHUNK = 128;

/** A part of a prompt: the positions that one call of the graph computes. */
export interface Part {
    /** Position of the first token. */
    readonly start: number;
    /** Number of tokens. */
    readonly length: number;
    /** Whether the part before it was the previous call of this prompt. */
    readonly follows: boolean;
    /** Positions at the end whose logits are wanted. */
    readonly keep: number;
}

/** How `planChunks` divides a prompt. */
export interface ChunkOptions {
    /** The most positions of a part. */
    readonly chunk: number;
    /** Positions of a block: a longer part is a multiple of it, except the last one. 0: no blocks. */
    readonly block: number;
    /** Whether the logits of all positions are wanted, or only those of the last one. */
    readonly allLogits: boolean;
}

/**
 * Divide `length` positions of a prompt, from `start` on, into parts. No part is longer than the part before it.
 *
 * Only the last part keeps logits, those of its last position; with `allLogits`, the parts together keep the logits of
 * every position once, in order.
 */
export function planChunks(start: number, length: number, options: ChunkOptions): Part[] {
    const { chunk, allLogits } = options;
    const block = Math.max(1, options.block);
    const step = chunk <= block ? chunk : chunk - (chunk % block);
    const whole = chunk <= block ? length : length - (length % block);
    const parts: Part[] = [];
    let at = 0;
    while (at < length) {
        const end = at < whole ? Math.min(at + step, whole) : length;
        // The LM head is a large part of the work, so it computes only the logits that are wanted.
        const keep = allLogits ? end - at : Number(end === length);
        parts.push({ start: start + at, length: end - at, follows: at > 0, keep });
        at = end;
    }
    return parts;
}
