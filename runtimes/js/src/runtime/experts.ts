/** The interface of a family's state: what the host keeps between steps, and how records become inputs of the graph. */

import type { HostTensor, ResidentTensor } from "../backend.js";
import type { Part } from "./chunks.js";

/** Inputs of the graph, by their names. */
export type Inputs = Record<string, HostTensor | ResidentTensor>;

/** The experts of B sequences. molkv.ts has those of MoLKV, present.ts all others. */
export interface ExpertState {
    /** Positions before a position whose experts it sees. */
    readonly lookback: number;
    /** A part of a prompt is at most this long, or a multiple of it; 0: any length. */
    readonly blockLength: number;

    /** The inputs of decode steps. `step` and `wait` change their numbers. */
    readonly stepInputs: Inputs;
    /** Enter the record of the next position of a sequence, for a decode step. */
    step(sequence: number, position: number, record: Uint8Array): void;
    /** Prepare a sequence that waits in a decode step, at its next position. `record` is that of any token. */
    wait(sequence: number, position: number, record: Uint8Array): void;

    /**
     * Begin a part of a prompt. Then `add` its records, and those of the `lookback` positions before it that exist
     * unless the part follows another one. Then take the `inputs`, which are valid until the next part.
     */
    begin(part: Part): void;
    /** Add the record of position `index` of the part; negative: of a position before the part. */
    add(index: number, record: Uint8Array): void;
    inputs(): Inputs;
    /** Keep the experts of the last positions of a prompt. Call this after the last part, which ends before `end`. */
    finish(sequence: number, end: number): void;
    /** Enter the record of an earlier position again, after a rewind, copy or restore. */
    restore(sequence: number, position: number, record: Uint8Array): void;
    release(): void;
}
