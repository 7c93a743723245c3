/** A KV cache in JavaScript's memory. */

import type { GraphFiles, HostTensor, KvCache, LayerSlots, TensorData, TensorDType } from "../backend.js";
import { MemoryError, RequestError } from "../errors.js";
import { cacheParts, layersOf, partOf, type CachePart } from "./cache-parts.js";
import type { KvArray } from "./onnxruntime.js";

/** Return `length` zeros. @throws MemoryError There is not enough memory. */
export function allocate(dtype: TensorDType, length: number): TensorData {
    try {
        switch (dtype) {
            case "float32":
                return new Float32Array(length);
            case "float16":
                return new Uint16Array(length);
            case "int64":
                return new BigInt64Array(length);
            case "int32":
                return new Int32Array(length);
            case "int8":
                return new Int8Array(length);
        }
    } catch (error) {
        throw new MemoryError(
            `a ${dtype} array of ${length} numbers does not fit into memory; use a shorter context or fewer sequences`,
            { cause: error },
        );
    }
}

/** New slots of one part of the cache, as the graph returns them: [B, heads, K, size]. */
interface Gathered {
    readonly data: KvArray;
    /** K */
    readonly count: number;
    /** The row and the first of the K slots to store. */
    readonly row: number;
    readonly index: number;
}

/** A KV cache whose parts are arrays, each [B, heads, slots, size]. */
export class HostKvCache implements KvCache {
    readonly batchSize: number;
    private readonly dtype: GraphFiles["kvDtype"];
    private readonly parts: readonly CachePart[];
    /** One for each part. */
    private arrays: KvArray[];
    private slotCount: number;

    /** @throws MemoryError There is not enough memory. */
    constructor({ caches, kvDtype }: Pick<GraphFiles, "caches" | "kvDtype">, batchSize: number, slots: number) {
        this.dtype = kvDtype;
        this.parts = cacheParts(caches);
        this.batchSize = batchSize;
        this.slotCount = slots;
        this.arrays = this.allocateArrays(slots);
    }

    get slots(): number {
        return this.slotCount;
    }

    // eslint-disable-next-line @typescript-eslint/require-await -- an error must be a rejection
    async grow(slots: number): Promise<void> {
        if (slots <= this.slotCount) return;
        const larger = this.allocateArrays(slots);
        this.parts.forEach(({ heads, size }, part) => {
            copyRows(this.arrays[part]!, this.slotCount, larger[part]!, slots, this.batchSize * heads, size);
        });
        this.arrays = larger;
        this.slotCount = slots;
    }

    // eslint-disable-next-line @typescript-eslint/require-await -- an error must be a rejection
    async read(sequence: number, count: number): Promise<LayerSlots[]> {
        const found = this.parts.map(({ heads, size }, part) => {
            const target = this.allocateNumbers(heads * count * size);
            copyRows(this.row(part, sequence), this.slotCount, target, count, heads, size);
            return target;
        });
        return layersOf(found);
    }

    // eslint-disable-next-line @typescript-eslint/require-await -- an error must be a rejection
    async write(sequence: number, first: number, layers: readonly LayerSlots[]): Promise<void> {
        this.parts.forEach(({ heads, size }, part) => {
            const source = partOf(layers, part);
            const target = this.row(part, sequence).subarray(first * size);
            copyRows(source, source.length / (heads * size), target, this.slotCount, heads, size);
        });
    }

    // eslint-disable-next-line @typescript-eslint/require-await -- an error must be a rejection
    async copy(sequence: number, source: KvCache, sourceSequence: number, count: number): Promise<void> {
        const other = ownCache(source);
        this.parts.forEach(({ heads, size }, part) => {
            const from = other.row(part, sourceSequence);
            const to = this.row(part, sequence);
            for (let head = 0; head < heads; head++) {
                const begin = head * other.slotCount * size;
                to.set(from.subarray(begin, begin + count * size), head * this.slotCount * size);
            }
        });
    }

    release(): void {
        this.arrays = [];
    }

    /** The past of one sequence or of all (undefined), as inputs of the graph that share the cache's memory. */
    tensors(sequence: number | undefined): Record<string, HostTensor> {
        const batchSize = sequence === undefined ? this.batchSize : 1;
        const tensors: Record<string, HostTensor> = {};
        this.parts.forEach(({ past, heads, size }, part) => {
            const data = sequence === undefined ? this.arrays[part]! : this.row(part, sequence);
            tensors[past] = { dtype: this.dtype, dims: [batchSize, heads, this.slotCount, size], data };
        });
        return tensors;
    }

    /** Store `slots` of one sequence in one part. They are at `gathered.index` and after it. */
    store(part: number, sequence: number, gathered: Gathered, slots: { first: number; length: number }): void {
        const { heads, size } = this.parts[part]!;
        const target = this.row(part, sequence);
        for (let head = 0; head < heads; head++) {
            const begin = ((gathered.row * heads + head) * gathered.count + gathered.index) * size;
            const numbers = gathered.data.subarray(begin, begin + slots.length * size);
            target.set(numbers, (head * this.slotCount + slots.first) * size);
        }
    }

    private row(part: number, sequence: number): KvArray {
        const { heads, size } = this.parts[part]!;
        const numbers = heads * this.slotCount * size;
        return this.arrays[part]!.subarray(sequence * numbers, (sequence + 1) * numbers);
    }

    private allocateNumbers(length: number): KvArray {
        return allocate(this.dtype, length) as KvArray;
    }

    private allocateArrays(slots: number): KvArray[] {
        return this.parts.map(({ heads, size }) => this.allocateNumbers(this.batchSize * heads * slots * size));
    }
}

/** Return a cache of this backend. @throws RequestError It is of another backend. */
export function ownCache(cache: KvCache): HostKvCache {
    if (cache instanceof HostKvCache) return cache;
    throw new RequestError("cache: found a KV cache of another backend, expected one of the same graph");
}

/** Copy `rows` rows of slots; a row of the shorter side fits into a row of the other. */
function copyRows(
    source: LayerSlots["key"],
    sourceSlots: number,
    target: KvArray,
    targetSlots: number,
    rows: number,
    size: number,
): void {
    const numbers = Math.min(sourceSlots, targetSlots) * size;
    for (let row = 0; row < rows; row++) {
        const begin = row * sourceSlots * size;
        target.set(source.subarray(begin, begin + numbers), row * targetSlots * size);
    }
}
