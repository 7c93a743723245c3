/** The state of a batch of sequences, and the operations on it. */

import type { GraphSession, LayerSlots } from "../backend.js";
import { RequestError } from "../errors.js";
import type { RecordDecoder } from "../format/record-decoder.js";
import type { Bundle } from "./bundle.js";
import { Calls } from "./calls.js";
import { tokenIds, wholeNumber } from "./checks.js";
import { DEFAULT_CHUNK, type Part, planChunks } from "./chunks.js";
import type { ExpertState } from "./experts.js";
import { createExperts } from "./families.js";
import { GrowingCache } from "./growing-cache.js";
import { asMemoryError, checkMemory } from "./memory.js";
import type { GatherOptions, Store } from "./store.js";

/** The parts of an open model that sequences use. */
export interface Engine {
    readonly bundle: Bundle;
    readonly graph: GraphSession;
    readonly store: Store;
    readonly decoder: RecordDecoder;
}

/** Options of `BatchState`. */
export interface BatchOptions {
    /** Default 1. */
    readonly batchSize?: number | undefined;
    /** The most tokens of a sequence; default and maximum: the context of the model. */
    readonly maxLength?: number | undefined;
    /** The most tokens of a prompt in one call of the graph; default 128. */
    readonly prefillChunk?: number | undefined;
}

/** Options of `prefill`. */
export interface PrefillOptions extends GatherOptions {
    /** Whether to return the logits of all new positions, and not only those of the last one. */
    readonly allLogits?: boolean | undefined;
}

/**
 * B sequences, each with its token ids, KV cache and experts. A sequence of length 0 is free.
 *
 * One call at a time may run. A failed or aborted call leaves the sequences as they were.
 */
export class BatchState {
    readonly batchSize: number;
    readonly maxLength: number;
    readonly #engine: Engine;
    readonly #chunk: number;
    /** The token ids that were run, for each sequence. */
    readonly #ids: number[][];
    readonly #cache: GrowingCache;
    readonly #experts: ExpertState;
    readonly #calls: Calls;
    /** The next position of each sequence, for a decode step. */
    readonly #positions: number[];

    /**
     * @throws RequestError An option is out of its range.
     * @throws MemoryError There is not enough memory.
     */
    constructor(engine: Engine, options: BatchOptions = {}) {
        const context = engine.bundle.config.maxPositionEmbeddings;
        this.#engine = engine;
        this.batchSize = wholeNumber("batchSize", options.batchSize ?? 1, 1, 2 ** 31 - 1);
        this.maxLength = wholeNumber("maxLength", options.maxLength ?? context, 1, context);
        this.#chunk = wholeNumber("prefillChunk", options.prefillChunk ?? DEFAULT_CHUNK, 1, 2 ** 31 - 1);
        const { batchSize, maxLength } = this;
        try {
            this.#cache = new GrowingCache({ ...engine, batchSize, maxLength });
            this.#experts = createExperts({ ...engine, batchSize, maxLength });
            const { cache } = this.#cache;
            this.#calls = new Calls({ ...engine, experts: this.#experts, cache, batchSize });
            this.#ids = Array.from({ length: batchSize }, () => []);
            this.#positions = this.#ids.map(() => 0);
        } catch (error) {
            throw asMemoryError(error, `${batchSize} sequences`);
        }
    }

    /** The number of tokens of each sequence. */
    get lengths(): number[] {
        return this.#ids.map((ids) => ids.length);
    }

    /** Return the token ids of a sequence that were run. The list changes with the sequence. */
    history(sequence: number): readonly number[] {
        return this.#idsOf(sequence);
    }

    /**
     * Append token ids to a sequence. Return the logits of the last position [V]; with `allLogits`, of every position
     * [n, V]. They are valid until the next call.
     *
     * @throws RequestError There are no ids, too many ids, or an id outside the vocabulary.
     * @throws BundleError A record is damaged or cannot be read, or the graph fails.
     * @throws MemoryError There is not enough memory.
     */
    async prefill(sequence: number, ids: readonly number[], options: PrefillOptions = {}): Promise<Float32Array> {
        const history = this.#idsOf(sequence);
        const start = history.length;
        const room = this.maxLength - start;
        if (ids.length === 0) throw new RequestError("the prompt is empty, expected at least one token");
        if (ids.length > room) {
            throw new RequestError(
                `the prompt has ${ids.length} tokens, expected at most ${room} (the rest of maxLength ` +
                    `${this.maxLength})`,
            );
        }
        const tokens = tokenIds("the prompt", ids, this.#engine.bundle.config.vocabSize);
        options.signal?.throwIfAborted();
        let logits: Float32Array;
        try {
            await this.#cache.reserve(start + tokens.length);
            logits = await this.#runPrompt(sequence, tokens, options);
        } catch (error) {
            throw asMemoryError(error, "the chunks and logits of the prompt");
        }
        // The state changes only now. So it stays as it was if a record cannot be read or the graph fails.
        this.#experts.finish(sequence, start + tokens.length);
        for (const id of tokens) history.push(id);
        return logits;
    }

    /**
     * Append one id to each active sequence; `active` is by default all. Return logits [B, V], which are valid until
     * the next call. Those of other sequences mean nothing.
     *
     * @throws RequestError A list has the wrong length, a sequence is full, or an id is outside the vocabulary.
     * @throws BundleError A record is damaged or cannot be read, or the graph fails.
     * @throws MemoryError There is not enough memory.
     */
    async decode(ids: readonly number[], active?: readonly boolean[], signal?: AbortSignal): Promise<Float32Array> {
        const goes = active?.slice() ?? this.#ids.map(() => true);
        const tokens = this.#checkStep(ids, goes);
        signal?.throwIfAborted();
        if (tokens.length === 0) return new Float32Array(this.batchSize * this.#engine.bundle.config.vocabSize);
        let needed = 0;
        for (let i = 0; i < goes.length; i++) {
            const length = this.#ids[i]!.length;
            this.#positions[i] = Math.min(length, this.maxLength - 1);
            needed = Math.max(needed, this.#positions[i]! + 1);
            // The graph also computes the sequences that wait. In a full one it overwrites the last slot.
            if (length === this.maxLength) await this.#cache.keepLastSlot(i);
        }
        if (needed > this.#cache.cache.slots) await this.#cache.reserve(needed);
        const records = await this.#engine.store.gather(tokens, { signal });
        signal?.throwIfAborted();
        const logits = await this.#engine.graph.run(this.#calls.step(this.#positions, goes, records));
        let next = 0;
        for (let i = 0; i < goes.length; i++) if (goes[i]) this.#ids[i]!.push(tokens[next++]!);
        return logits;
    }

    /**
     * Shorten a sequence. Experts that the window has lost are read again. Length 0 frees the sequence.
     *
     * @throws RequestError The sequence is shorter than `length`.
     * @throws BundleError A record is damaged or cannot be read.
     */
    async rewind(sequence: number, length: number): Promise<void> {
        const ids = this.#idsOf(sequence);
        const before = ids.length;
        wholeNumber("length", length, 0, before);
        // The window has the experts of the last positions before the rewind.
        await this.#restoreExperts(sequence, ids, length, Math.min(length, before - this.#experts.lookback));
        ids.length = length;
        if (length < this.maxLength) this.#cache.dropLastSlot(sequence);
    }

    /**
     * Copy a sequence to the first free one, and return its index.
     *
     * @throws RequestError No sequence is free.
     * @throws BundleError A record is damaged or cannot be read.
     */
    async fork(sequence: number): Promise<number> {
        const { length } = this.#idsOf(sequence);
        const target = this.#ids.findIndex((ids) => ids.length === 0);
        if (target < 0) {
            throw new RequestError(
                `sequence: found ${this.batchSize} sequences in use, expected a free one; rewind one to 0`,
            );
        }
        if (length > 0) await this.copy(target, this, sequence, length);
        return target;
    }

    /**
     * Make a free sequence a copy of the first `length` tokens of a sequence of `source`, of the same model.
     *
     * @throws RequestError The sequence is in use or too short for `length`, or the source is shorter than `length`.
     * @throws BundleError A record is damaged or cannot be read.
     * @throws MemoryError There is not enough memory.
     */
    async copy(sequence: number, source: BatchState, sourceSequence: number, length: number): Promise<void> {
        const found = source.#idsOf(sourceSequence);
        wholeNumber("length", length, 0, found.length);
        await this.#fill(sequence, found.slice(0, length), () =>
            this.#cache.copy(sequence, source.#cache, sourceSequence, length),
        );
    }

    /**
     * Return the KV cache of the first `length` tokens of a sequence (default: all), for each layer that has a cache.
     *
     * @throws RequestError The sequence is shorter than `length`.
     */
    async save(sequence: number, length = this.#idsOf(sequence).length): Promise<LayerSlots[]> {
        return this.#cache.read(sequence, wholeNumber("length", length, 0, this.#idsOf(sequence).length));
    }

    /**
     * Fill a free sequence with token ids and their KV cache, [Hkv, ids.length, head_dim] for each layer that has a
     * cache.
     *
     * @throws RequestError The sequence is in use, there are too many ids, or an id is outside the vocabulary.
     * @throws BundleError A record is damaged or cannot be read.
     * @throws MemoryError There is not enough memory.
     */
    async restore(sequence: number, ids: readonly number[], layers: readonly LayerSlots[]): Promise<void> {
        await this.#fill(sequence, ids, () => this.#cache.cache.write(sequence, 0, layers));
    }

    /** Release the memory of the sequences. */
    release(): void {
        this.#cache.cache.release();
        this.#experts.release();
    }

    // Run a prompt part by part. While a part is computed, the records of the next part are read.
    async #runPrompt(sequence: number, ids: readonly number[], options: PrefillOptions): Promise<Float32Array> {
        const { allLogits = false, signal } = options;
        const { graph, store, bundle } = this.#engine;
        const history = this.#ids[sequence]!;
        const start = history.length;
        const parts = planChunks(start, ids.length, {
            chunk: this.#chunk,
            block: this.#experts.blockLength,
            allLogits,
        });
        const idsOf = (part: Part): number[] => ids.slice(part.start - start, part.start - start + part.length);
        if (allLogits) checkMemory(4 * ids.length * bundle.config.vocabSize, "logits of all positions");
        const all = new Float32Array(allLogits ? ids.length * bundle.config.vocabSize : 0);
        const seen = history.slice(Math.max(0, start - this.#experts.lookback));
        let records = await store.gather([...seen, ...idsOf(parts[0]!)], { signal });
        let before = records.splice(0, seen.length);
        let logits: Float32Array = all;
        for (let i = 0; i < parts.length; i++) {
            const part = parts[i]!;
            signal?.throwIfAborted();
            const call = this.#calls.part(sequence, part, before, records);
            before = [];
            const next = i + 1 < parts.length ? store.gather(idsOf(parts[i + 1]!), { signal }) : undefined;
            // If the graph fails, nobody waits for these records.
            next?.catch(() => undefined);
            logits = await graph.run(call);
            if (allLogits) all.set(logits, (part.start - start) * bundle.config.vocabSize);
            if (next !== undefined) records = await next;
        }
        return allLogits ? all : logits;
    }

    /** Fill a free sequence with token ids. `write` writes their KV cache. */
    async #fill(sequence: number, ids: readonly number[], write: () => Promise<void>): Promise<void> {
        const own = this.#idsOf(sequence);
        if (own.length > 0) {
            throw new RequestError(
                `sequence: ${sequence} is in use (it has ${own.length} tokens), expected a free sequence; ` +
                    "rewind it to 0 first",
            );
        }
        if (ids.length > this.maxLength) {
            throw new RequestError(
                `found ${ids.length} token ids, expected at most ${this.maxLength} (maxLength); make longer sequences`,
            );
        }
        const tokens = tokenIds("ids", ids, this.#engine.bundle.config.vocabSize);
        await this.#cache.reserve(tokens.length);
        await write();
        await this.#restoreExperts(sequence, tokens, tokens.length, tokens.length);
        for (const id of tokens) own.push(id);
    }

    /** Read the experts again that the position `length` sees before position `end`. */
    async #restoreExperts(sequence: number, ids: readonly number[], length: number, end: number): Promise<void> {
        const start = Math.max(0, length - this.#experts.lookback);
        if (start >= end) return;
        const records = await this.#engine.store.gather(ids.slice(start, end));
        records.forEach((record, i) => {
            this.#experts.restore(sequence, start + i, record);
        });
    }

    #idsOf(sequence: number): number[] {
        return this.#ids[wholeNumber("sequence", sequence, 0, this.batchSize - 1)]!;
    }

    /** Check the arguments of a decode step, and return the ids of the active sequences. */
    #checkStep(ids: readonly number[], active: readonly boolean[]): number[] {
        for (const [name, found] of [
            ["token ids", ids.length] as const,
            ["values of active", active.length] as const,
        ]) {
            if (found === this.batchSize) continue;
            throw new RequestError(`found ${found} ${name}, expected one for each of ${this.batchSize} sequences`);
        }
        const full = this.#ids.findIndex((own, i) => active[i] && own.length >= this.maxLength);
        if (full >= 0) {
            throw new RequestError(
                `sequence ${full} has reached maxLength (${this.maxLength} tokens) and cannot continue`,
            );
        }
        const tokens = ids.filter((_, i) => active[i]);
        return tokenIds("ids", tokens, this.#engine.bundle.config.vocabSize);
    }
}
