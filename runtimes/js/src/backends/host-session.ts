/** A graph whose KV cache is in JavaScript's memory: onnxruntime-node, and onnxruntime-web with WASM. */

import { MemoryError, RequestError } from "../errors.js";
import type {
    GraphCall,
    GraphFiles,
    GraphSession,
    HostTensor,
    KvCache,
    LayerSlots,
    ResidentTensor,
    TensorData,
    TensorDType,
} from "../backend.js";
import { NEW_SLOTS, newSlotsOutput, returnNewSlots } from "../format/new-slots.js";
import type { KvArray, Ort, OrtOptions, OrtSession, OrtTensor } from "./onnxruntime.js";
import { checkSlots, createSession, keepOneLogit, runError, toOrt } from "./onnxruntime.js";

/** The size of one sequence's keys in one layer is `heads * slots * size` numbers. */
export interface CacheShape {
    readonly layers: number;
    readonly heads: number;
    readonly size: number;
    readonly dtype: "float32" | "int8";
}

interface Layer {
    key: KvArray;
    value: KvArray;
}

const KINDS = ["key", "value"] as const;

/** Return the shape of a graph's KV cache. */
export function cacheShape(files: GraphFiles): CacheShape {
    return { layers: files.layers, heads: files.kvHeads, size: files.headDim, dtype: files.kvDtype };
}

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

/** A KV cache in JavaScript's memory. A layer's keys are [B, Hkv, slots, head_dim]. */
export class HostKvCache implements KvCache {
    readonly batchSize: number;
    private readonly shape: CacheShape;
    private layers: Layer[];
    private slotCount: number;

    constructor(shape: CacheShape, batchSize: number, slots: number) {
        this.shape = shape;
        this.batchSize = batchSize;
        this.slotCount = slots;
        this.layers = this.allocateLayers(slots);
    }

    get slots(): number {
        return this.slotCount;
    }

    // eslint-disable-next-line @typescript-eslint/require-await -- an error must be a rejection
    async grow(slots: number): Promise<void> {
        if (slots <= this.slotCount) return;
        const larger = this.allocateLayers(slots);
        const { heads, size } = this.shape;
        const rows = this.batchSize * heads;
        this.forEach((layer, kind) => {
            copyRows(this.layers[layer]![kind], this.slotCount, larger[layer]![kind], slots, rows, size);
        });
        this.layers = larger;
        this.slotCount = slots;
    }

    // eslint-disable-next-line @typescript-eslint/require-await -- an error must be a rejection
    async read(sequence: number, count: number): Promise<LayerSlots[]> {
        const { heads, size } = this.shape;
        const read = (kind: "key" | "value", layer: number): KvArray => {
            const target = this.allocateNumbers(heads * count * size);
            copyRows(this.row(layer, kind, sequence), this.slotCount, target, count, heads, size);
            return target;
        };
        return this.layers.map((_, layer) => ({ key: read("key", layer), value: read("value", layer) }));
    }

    // eslint-disable-next-line @typescript-eslint/require-await -- an error must be a rejection
    async write(sequence: number, first: number, layers: readonly LayerSlots[]): Promise<void> {
        const { heads, size } = this.shape;
        this.forEach((layer, kind) => {
            const source = layers[layer]![kind];
            const count = source.length / (heads * size);
            const target = this.row(layer, kind, sequence).subarray(first * size);
            copyRows(source, count, target, this.slotCount, heads, size);
        });
    }

    // eslint-disable-next-line @typescript-eslint/require-await -- an error must be a rejection
    async copy(sequence: number, source: KvCache, sourceSequence: number, count: number): Promise<void> {
        const other = ownCache(source);
        const { heads, size } = this.shape;
        this.forEach((layer, kind) => {
            const from = other.row(layer, kind, sourceSequence);
            const to = this.row(layer, kind, sequence);
            for (let head = 0; head < heads; head++) {
                const begin = head * other.slotCount * size;
                to.set(from.subarray(begin, begin + count * size), head * this.slotCount * size);
            }
        });
    }

    release(): void {
        this.layers = [];
    }

    /** The past of one sequence or of all (undefined), as inputs of the graph that share the cache's memory. */
    tensors(sequence: number | undefined): Record<string, HostTensor> {
        const { heads, size, dtype } = this.shape;
        const batchSize = sequence === undefined ? this.batchSize : 1;
        const dims = [batchSize, heads, this.slotCount, size];
        const tensors: Record<string, HostTensor> = {};
        this.forEach((layer, kind) => {
            const data = sequence === undefined ? this.layers[layer]![kind] : this.row(layer, kind, sequence);
            tensors[`past_key_values.${layer}.${kind}`] = { dtype, dims, data };
        });
        return tensors;
    }

    /**
     * Store the new slots of one sequence.
     *
     * `gathered` is [B, Hkv, K, head_dim] with B sequences; slots `first` to `first + length - 1` of sequence `row`
     * are at `index` and after it.
     */
    store(
        layer: number,
        kind: "key" | "value",
        sequence: number,
        gathered: { data: KvArray; count: number; row: number; index: number },
        slots: { first: number; length: number },
    ): void {
        const { heads, size } = this.shape;
        const target = this.row(layer, kind, sequence);
        for (let head = 0; head < heads; head++) {
            const begin = ((gathered.row * heads + head) * gathered.count + gathered.index) * size;
            const numbers = gathered.data.subarray(begin, begin + slots.length * size);
            target.set(numbers, (head * this.slotCount + slots.first) * size);
        }
    }

    private row(layer: number, kind: "key" | "value", sequence: number): KvArray {
        const numbers = this.shape.heads * this.slotCount * this.shape.size;
        return this.layers[layer]![kind].subarray(sequence * numbers, (sequence + 1) * numbers);
    }

    private forEach(visit: (layer: number, kind: "key" | "value") => void): void {
        for (let layer = 0; layer < this.shape.layers; layer++) {
            for (const kind of KINDS) visit(layer, kind);
        }
    }

    private allocateNumbers(length: number): KvArray {
        return allocate(this.shape.dtype, length) as KvArray;
    }

    private allocateLayers(slots: number): Layer[] {
        const numbers = this.batchSize * this.shape.heads * slots * this.shape.size;
        return Array.from({ length: this.shape.layers }, () => ({
            key: this.allocateNumbers(numbers),
            value: this.allocateNumbers(numbers),
        }));
    }
}

function ownCache(cache: KvCache): HostKvCache {
    if (cache instanceof HostKvCache) return cache;
    throw new RequestError("cache: found a KV cache of another backend, expected one of the same graph");
}

/** Copy `rows` rows of slots; a row of the shorter side fits into a row of the other. */
function copyRows(
    source: KvArray | LayerSlots["key"],
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

/** A tensor in JavaScript's memory that the driver changes in part. */
export class HostResident implements ResidentTensor, HostTensor {
    readonly dtype: TensorDType;
    readonly dims: readonly number[];
    readonly data: TensorData;

    constructor(dtype: TensorDType, dims: readonly number[]) {
        this.dtype = dtype;
        this.dims = dims;
        this.data = allocate(
            dtype,
            dims.reduce((product, size) => product * size, 1),
        );
    }

    write(offset: number, data: TensorData): void {
        // Both arrays have the class of the dtype.
        (this.data as Float32Array).set(data as Float32Array, offset);
    }

    release(): void {
        // The garbage collector frees the memory.
    }
}

/** How a backend runs graphs. */
export interface HostProvider {
    readonly ort: Ort;
    /** For messages. */
    readonly name: string;
    readonly options: OrtOptions;
    /** Whether the provider refuses tensors without data, such as the logits of no position. */
    readonly refusesEmpty: boolean;
}

/**
 * Load a graph whose KV cache is in JavaScript's memory.
 *
 * @throws ProviderError ONNX Runtime refuses the graph.
 */
export async function loadHostSession(provider: HostProvider, files: GraphFiles): Promise<GraphSession> {
    const graph = returnNewSlots(files.graph, files.kvDtype, files.where);
    const session = await createSession(provider.ort, provider.name, files, graph, provider.options);
    return new HostSession(provider, session, files);
}

class HostSession implements GraphSession {
    /** The names of the bundle's graph, without the changes of `returnNewSlots`. */
    readonly inputNames: readonly string[];
    readonly outputNames: readonly string[];
    private readonly provider: HostProvider;
    private readonly session: OrtSession;
    private readonly shape: CacheShape;
    private readonly where: string;

    constructor(provider: HostProvider, session: OrtSession, files: GraphFiles) {
        this.provider = provider;
        this.session = session;
        this.shape = cacheShape(files);
        this.where = files.where;
        this.inputNames = session.inputNames.filter((name) => name !== NEW_SLOTS);
        this.outputNames = session.outputNames.map((name) => name.replace(/^new\./, "present."));
    }

    createCache(batchSize: number, slots: number): KvCache {
        return new HostKvCache(this.shape, batchSize, slots);
    }

    createResident(dtype: TensorDType, dims: readonly number[]): ResidentTensor {
        return new HostResident(dtype, dims);
    }

    async run(call: GraphCall): Promise<Float32Array> {
        const cache = ownCache(call.cache);
        checkSlots(call);
        const { inputs, wanted } = this.provider.refusesEmpty
            ? keepOneLogit(call.inputs)
            : { inputs: call.inputs, wanted: true };
        const slots = newSlots(call);
        const newSlotsTensor: HostTensor = {
            dtype: "int64",
            dims: [slots.length],
            data: BigInt64Array.from(slots, (slot) => BigInt(slot)),
        };
        const all = { ...inputs, ...cache.tensors(call.sequence), [NEW_SLOTS]: newSlotsTensor };
        const feeds: Record<string, OrtTensor> = {};
        for (const [name, tensor] of Object.entries(all)) feeds[name] = toOrt(this.provider.ort, tensor);
        let outputs;
        try {
            outputs = await this.session.run(feeds);
        } catch (error) {
            throw runError(this.where, this.provider.name, error);
        }
        this.store(call, cache, outputs, slots);
        return wanted ? (outputs.logits!.data as Float32Array) : new Float32Array(0);
    }

    async release(): Promise<void> {
        await this.session.release();
    }

    private store(
        call: GraphCall,
        cache: HostKvCache,
        outputs: Readonly<Record<string, OrtTensor>>,
        slots: readonly number[],
    ): void {
        const index = new Map(slots.map((slot, at) => [slot, at]));
        for (let layer = 0; layer < this.shape.layers; layer++) {
            for (const kind of KINDS) {
                const data = outputs[newSlotsOutput(`present.${layer}.${kind}`)]!.data as KvArray;
                call.starts.forEach((first, row) => {
                    const gathered = { data, count: slots.length, row, index: index.get(first)! };
                    cache.store(layer, kind, call.sequence ?? row, gathered, { first, length: call.length });
                });
            }
        }
    }
}

/** Return the slots that any sequence of the call fills, in ascending order. */
function newSlots(call: GraphCall): number[] {
    const slots = new Set<number>();
    for (const start of call.starts) {
        for (let offset = 0; offset < call.length; offset++) slots.add(start + offset);
    }
    return [...slots].sort((a, b) => a - b);
}
