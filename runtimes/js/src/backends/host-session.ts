/** A graph whose KV cache is in JavaScript's memory: onnxruntime-node, and onnxruntime-web with WASM. */

import type {
    GraphCall,
    GraphFiles,
    GraphSession,
    HostTensor,
    KvCache,
    ResidentTensor,
    TensorData,
    TensorDType,
} from "../backend.js";
import { NEW_SLOTS, newSlotsOutput, returnNewSlots } from "../format/new-slots.js";
import { cacheParts, type CachePart } from "./cache-parts.js";
import { allocate, HostKvCache, ownCache } from "./host-cache.js";
import type { KvArray, Ort, OrtOptions, OrtSession, OrtTensor } from "./onnxruntime.js";
import { checkSlots, createSession, keepOneLogit, runError, toOrt } from "./onnxruntime.js";

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
    private readonly files: GraphFiles;
    private readonly parts: readonly CachePart[];

    constructor(provider: HostProvider, session: OrtSession, files: GraphFiles) {
        this.provider = provider;
        this.session = session;
        this.files = files;
        this.parts = cacheParts(files.caches);
        this.inputNames = session.inputNames.filter((name) => name !== NEW_SLOTS);
        this.outputNames = session.outputNames.map((name) => name.replace(/^new\./, "present."));
    }

    createCache(batchSize: number, slots: number): KvCache {
        return new HostKvCache(this.files, batchSize, slots);
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
            throw runError(this.files.where, this.provider.name, error);
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
        this.parts.forEach(({ present }, part) => {
            const data = outputs[newSlotsOutput(present)]!.data as KvArray;
            call.starts.forEach((first, row) => {
                const gathered = { data, count: slots.length, row, index: index.get(first)! };
                cache.store(part, call.sequence ?? row, gathered, { first, length: call.length });
            });
        });
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
