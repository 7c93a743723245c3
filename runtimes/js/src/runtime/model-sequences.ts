/** The sequences that a caller uses step by step. */

import type { Sequences } from "../api.js";
import { RequestError } from "../errors.js";
import { abortSignal, listOf, optionsOf } from "./checks.js";
import type { BatchState } from "./sequences.js";
import type { Turns } from "./turns.js";

/** A `BatchState` whose calls take turns with the other calls of its model. */
export class ModelSequences implements Sequences {
    readonly #state: BatchState;
    readonly #turns: Turns;
    #isClosed = false;

    constructor(state: BatchState, turns: Turns) {
        this.#state = state;
        this.#turns = turns;
    }

    get batchSize(): number {
        return this.#state.batchSize;
    }

    get maxLength(): number {
        return this.#state.maxLength;
    }

    get lengths(): readonly number[] {
        return this.#state.lengths;
    }

    // The backend reuses the array of the logits, so the caller gets a copy.
    async prefill(
        sequence: number,
        ids: readonly number[],
        options: { readonly signal?: AbortSignal | undefined } = {},
    ): Promise<Float32Array> {
        const signal = abortSignal(optionsOf(options).signal);
        const tokens = idsOf(ids);
        return this.#run(async (state) => (await state.prefill(sequence, tokens, { signal })).slice(), signal);
    }

    async decode(
        ids: readonly number[],
        options: { readonly active?: readonly boolean[] | undefined; readonly signal?: AbortSignal | undefined } = {},
    ): Promise<Float32Array> {
        const signal = abortSignal(optionsOf(options).signal);
        const tokens = idsOf(ids);
        const active = options.active && [...listOf("active", options.active, "booleans")];
        return this.#run(async (state) => (await state.decode(tokens, active, signal)).slice(), signal);
    }

    rewind(sequence: number, length: number): Promise<void> {
        return this.#run((state) => state.rewind(sequence, length));
    }

    fork(sequence: number): Promise<number> {
        return this.#run((state) => state.fork(sequence));
    }

    async close(): Promise<void> {
        if (this.#isClosed) return;
        this.#isClosed = true;
        await this.#turns.release(() => {
            this.#state.release();
        });
    }

    #run<T>(action: (state: BatchState) => Promise<T>, signal?: AbortSignal): Promise<T> {
        return this.#turns.run(() => {
            if (this.#isClosed) throw new RequestError("the sequences are closed; make new ones");
            return action(this.#state);
        }, signal);
    }
}

/** Return a copy of a list of ids, so that the caller may change the list. The state checks the ids. */
function idsOf(ids: readonly number[] | Int32Array): number[] {
    return Array.from(ids instanceof Int32Array ? ids : listOf("ids", ids, "token ids"));
}
