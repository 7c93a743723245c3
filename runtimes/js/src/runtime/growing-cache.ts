/** The KV cache of a batch: it grows with the sequences, and keeps the last slot of full sequences that wait. */

import type { GraphSession, KvCache, LayerSlots } from "../backend.js";
import type { Bundle } from "./bundle.js";
import { expertBytes } from "./families.js";
import { asMemoryError, checkMemory } from "./memory.js";

/** The cache grows by this number of slots: a longer cache costs time in each step, since backends may copy it. */
const BUCKET = 128;

/** What the cache of a batch needs. */
export interface CacheOptions {
    readonly bundle: Bundle;
    readonly graph: GraphSession;
    readonly batchSize: number;
    /** The most tokens of a sequence. */
    readonly maxLength: number;
}

/** The KV cache of B sequences. */
export class GrowingCache {
    readonly cache: KvCache;
    readonly #options: CacheOptions;
    /** The last slots of full sequences that waited in a decode step, which overwrites them in `cache`. */
    readonly #lastSlots = new Map<number, LayerSlots[]>();

    /** @throws MemoryError There is not enough memory. */
    constructor(options: CacheOptions) {
        this.#options = options;
        const slots = Math.min(BUCKET, options.maxLength);
        checkMemory(stateBytes(options, slots), describe(options, slots));
        this.cache = options.graph.createCache(options.batchSize, slots);
    }

    /**
     * Make room for `length` tokens of each sequence.
     *
     * @throws MemoryError There is not enough memory. The cache is then unchanged.
     */
    async reserve(length: number): Promise<void> {
        if (length <= this.cache.slots) return;
        const slots = Math.min(Math.ceil(length / BUCKET) * BUCKET, this.#options.maxLength);
        const what = describe(this.#options, slots);
        checkMemory(stateBytes(this.#options, slots), what);
        try {
            await this.cache.grow(slots);
        } catch (error) {
            throw asMemoryError(error, what);
        }
    }

    /** Keep the last slot of a full sequence, which the next decode step overwrites. */
    async keepLastSlot(sequence: number): Promise<void> {
        if (this.#lastSlots.has(sequence)) return;
        const { maxLength, bundle } = this.#options;
        const layers = await this.cache.read(sequence, maxLength);
        const { kvCaches } = bundle.config;
        const kept = layers.map(({ key, value }, index) => {
            const { headDim } = kvCaches[index]!;
            return { key: lastSlot(key, maxLength, headDim), value: lastSlot(value, maxLength, headDim) };
        });
        this.#lastSlots.set(sequence, kept);
    }

    /** Forget the last slot of a sequence, which is not full any more. */
    dropLastSlot(sequence: number): void {
        this.#lastSlots.delete(sequence);
    }

    /** Return the first `count` slots of a sequence, for each layer that has a cache. */
    async read(sequence: number, count: number): Promise<LayerSlots[]> {
        await this.#putBackLastSlot(sequence, count);
        return this.cache.read(sequence, count);
    }

    /** Copy the first `count` slots of a sequence of `source`, a cache of the same graph. */
    async copy(sequence: number, source: GrowingCache, sourceSequence: number, count: number): Promise<void> {
        await source.#putBackLastSlot(sourceSequence, count);
        await this.cache.copy(sequence, source.cache, sourceSequence, count);
    }

    async #putBackLastSlot(sequence: number, count: number): Promise<void> {
        const layers = this.#lastSlots.get(sequence);
        const { maxLength } = this.#options;
        if (layers !== undefined && count === maxLength) await this.cache.write(sequence, maxLength - 1, layers);
    }
}

/** Return the last slot, [Hkv, 1, head_dim], of `slots` slots, [Hkv, slots, head_dim]. */
function lastSlot<T extends Float32Array | Int8Array>(numbers: T, slots: number, headDim: number): T {
    const kept = numbers.slice(0, numbers.length / slots) as T;
    for (let head = 0; head < kept.length / headDim; head++) {
        const end = (head + 1) * slots * headDim;
        kept.set(numbers.subarray(end - headDim, end), head * headDim);
    }
    return kept;
}

function describe({ batchSize }: CacheOptions, slots: number): string {
    return `${batchSize} sequences of ${slots} tokens`;
}

/** Return the bytes of the caches, experts and logits of a batch. */
function stateBytes({ bundle, batchSize, maxLength }: CacheOptions, slots: number): number {
    const { kvCaches, vocabSize } = bundle.config;
    const number = bundle.graph.kvDtype === "int8" ? 1 : 4;
    const cache = kvCaches.reduce((sum, { heads, headDim }) => sum + 2 * heads * headDim * number * slots, 0);
    return batchSize * (cache + expertBytes(bundle, maxLength) + 4 * vocabSize);
}
