/**
 * An engine without ONNX Runtime. Its graph computes three numbers (the logits of the ids 0 to 2) for each position, from everything that a real graph
 * would see there: the KV cache, the visible experts and the position. `expectedLogits` computes the same numbers from
 * the token ids alone, as docs/bundle-format.md defines what a position sees.
 */

import type {
    GraphCall,
    GraphSession,
    HostTensor,
    KvCache,
    LayerSlots,
    ResidentTensor,
    TensorData,
    TensorDType,
} from "../../../src/backend.js";
import { BundleError } from "../../../src/errors.js";
import type { ModelConfig } from "../../../src/format/manifest.js";
import type { RecordDecoder } from "../../../src/format/record-decoder.js";
import type { Bundle } from "../../../src/runtime/bundle.js";
import type { Engine } from "../../../src/runtime/sequences.js";
import { Store } from "../../../src/runtime/store.js";
import type { RecordReader } from "../../../src/source.js";

export const VOCAB = 50;
const EXPERTS = 2;
const LAYERS = [0, 2];
const HEADS = 2;
const HEAD_DIM = 3;
const HIDDEN = 4;
const THETA = 100;

export type Kind = "molkv" | "molkv-int8" | "mole" | "dense";

/** Return number `i` of the value of an expert. */
function value(id: number, layer: number, expert: number, i: number): number {
    return ((id * 7 + layer * 3 + expert * 5 + i * 11) % 63) - 31;
}

/** Return a key before its rotation: a unit vector that depends on the expert. */
function key(expert: number): [number, number] {
    return expert === 0 ? [1, 0] : [0, 1];
}

function weight(layer: number, expertKey: ArrayLike<number>, expertValue: number): number {
    return (layer + 1) * expertValue * (3 * expertKey[0]! + 7 * expertKey[1]! + 11);
}

/** Return the three numbers of the last position of a text. */
export function expectedLogits(kind: Kind, ids: readonly number[], window: number): number[] {
    const last = ids.length - 1;
    const cache = ids.reduce((sum, id, position) => sum + (id + 1) * (position + 1), 0);
    let experts = 0;
    if (kind === "mole") {
        for (const [layer] of LAYERS.entries())
            for (let expert = 0; expert < EXPERTS; expert++) experts += value(ids[last]!, layer, expert, 0);
    } else if (kind !== "dense") {
        for (let position = Math.max(0, last - window + 1); position <= last; position++) {
            for (const [layer] of LAYERS.entries()) {
                for (let expert = 0; expert < EXPERTS; expert++) {
                    const [a, b] = key(expert);
                    const [cos, sin] = [Math.cos(position), Math.sin(position)];
                    const rotated = [a * cos - b * sin, b * cos + a * sin];
                    experts += weight(layer, rotated, value(ids[position]!, layer, expert, 0));
                }
            }
        }
    }
    return [cache, experts, last];
}

export class FakeResident implements ResidentTensor, HostTensor {
    readonly data: TensorData;
    released = false;

    constructor(
        readonly dtype: TensorDType,
        readonly dims: readonly number[],
    ) {
        const size = dims.reduce((product, dim) => product * dim, 1);
        this.data = dtype === "int8" ? new Int8Array(size) : new Float32Array(size);
    }

    write(offset: number, data: TensorData): void {
        if (offset < 0 || offset + data.length > this.data.length) throw new Error("a write outside of the tensor");
        (this.data as Float32Array).set(data as Float32Array, offset);
    }

    release(): void {
        this.released = true;
    }
}

/** Keys and values hold (id + 1) * (head + 1) in each slot. */
export class FakeCache implements KvCache {
    released = false;
    numbers: Float32Array[][];

    constructor(
        readonly batchSize: number,
        public slots: number,
    ) {
        this.numbers = this.#allocate(slots);
    }

    #allocate(slots: number): Float32Array[][] {
        return Array.from({ length: this.batchSize }, () =>
            Array.from({ length: HEADS }, () => new Float32Array(slots * HEAD_DIM)),
        );
    }

    grow(slots: number): Promise<void> {
        const larger = this.#allocate(slots);
        this.numbers.forEach((heads, b) => {
            heads.forEach((numbers, head) => {
                larger[b]![head]!.set(numbers);
            });
        });
        this.numbers = larger;
        this.slots = slots;
        return Promise.resolve();
    }

    read(sequence: number, count: number): Promise<LayerSlots[]> {
        const all = new Float32Array(HEADS * count * HEAD_DIM);
        this.numbers[sequence]!.forEach((numbers, head) => {
            all.set(numbers.subarray(0, count * HEAD_DIM), head * count * HEAD_DIM);
        });
        return Promise.resolve([{ key: all, value: all.slice() }]);
    }

    write(sequence: number, first: number, layers: readonly LayerSlots[]): Promise<void> {
        const { key: numbers } = layers[0]!;
        const size = numbers.length / HEADS;
        this.numbers[sequence]!.forEach((into, head) => {
            into.set(numbers.subarray(head * size, (head + 1) * size), first * HEAD_DIM);
        });
        return Promise.resolve();
    }

    async copy(sequence: number, source: KvCache, sourceSequence: number, count: number): Promise<void> {
        await this.write(sequence, 0, await source.read(sourceSequence, count));
    }

    release(): void {
        this.released = true;
    }

    set(sequence: number, slot: number, number: number): void {
        if (slot >= this.slots) throw new Error(`slot ${slot} of ${this.slots}`);
        this.numbers[sequence]!.forEach((numbers, head) => {
            numbers.fill(number * (head + 1), slot * HEAD_DIM, (slot + 1) * HEAD_DIM);
        });
    }

    get(sequence: number, slot: number): number {
        const [first, second] = this.numbers[sequence]!.map((numbers) => numbers[slot * HEAD_DIM]!);
        if (second !== 2 * first!) throw new Error("heads were mixed up");
        return first!;
    }
}

/** What `run` was called with. */
export interface SeenCall {
    readonly sequence: number | undefined;
    readonly starts: number[];
    readonly length: number;
    readonly keep: number;
    readonly shapes: Record<string, readonly number[]>;
}

export class FakeGraph implements GraphSession {
    readonly inputNames = [];
    readonly outputNames = [];
    readonly calls: SeenCall[] = [];
    readonly residents: FakeResident[] = [];
    readonly caches: FakeCache[] = [];
    /** Fail in this number of calls from now on. */
    failures = 0;

    constructor(
        readonly kind: Kind,
        readonly context: number,
    ) {}

    createCache(batchSize: number, slots: number): KvCache {
        const cache = new FakeCache(batchSize, slots);
        this.caches.push(cache);
        return cache;
    }

    createResident(dtype: TensorDType, dims: readonly number[]): ResidentTensor {
        const resident = new FakeResident(dtype, dims);
        this.residents.push(resident);
        return resident;
    }

    async run(call: GraphCall): Promise<Float32Array> {
        await Promise.resolve();
        const inputs = call.inputs as Record<string, HostTensor>;
        const { cache } = call;
        if (!(cache instanceof FakeCache)) throw new Error("a cache of another graph");
        for (const [name, { dims, data }] of Object.entries(inputs)) {
            const size = dims.reduce((product, dim) => product * dim, 1);
            if (data.length !== size) throw new Error(`${name}: ${data.length} numbers for [${dims.join()}]`);
        }
        const keep = Number(inputs.logits_to_keep!.data[0]);
        this.calls.push({
            sequence: call.sequence,
            starts: [...call.starts],
            length: call.length,
            keep,
            shapes: Object.fromEntries(Object.entries(inputs).map(([name, { dims }]) => [name, dims])),
        });
        this.#checkPositions(call, inputs);
        const logits: number[] = [];
        call.starts.forEach((start, row) => {
            const sequence = call.sequence ?? row;
            for (let t = 0; t < call.length; t++) {
                const flat = row * call.length + t;
                cache.set(sequence, start + t, inputs.inputs_embeds!.data[flat * HIDDEN] as number);
                if (t < call.length - keep) continue;
                let sum = 0;
                for (let slot = 0; slot <= start + t; slot++) sum += cache.get(sequence, slot) * (slot + 1);
                logits.push(sum, this.#experts(inputs, flat), start + t, ...new Array<number>(VOCAB - 3).fill(0));
            }
        });
        if (this.failures > 0) {
            this.failures--;
            throw new BundleError("the graph fails");
        }
        return Float32Array.from(logits);
    }

    release(): Promise<void> {
        return Promise.resolve();
    }

    #checkPositions(call: GraphCall, inputs: Record<string, HostTensor>): void {
        const ends = call.starts.map((start) => start + call.length);
        const total = inputs.total_sequence_length!;
        const found = JSON.stringify([[...inputs.seqlens_k!.data].map(Number), total.data[0], total.dims]);
        const expected = JSON.stringify([ends.map((end) => end - 1), Math.max(...ends), []]);
        if (found !== expected || Math.max(...ends) > this.context) throw new Error(`${found}, expected ${expected}`);
        const ids = inputs.position_ids;
        if ((ids !== undefined) !== this.kind.startsWith("molkv")) throw new Error("position_ids");
        const positions = call.starts.flatMap((start) => Array.from({ length: call.length }, (_, t) => start + t));
        if (ids !== undefined && [...ids.data].join() !== positions.join()) throw new Error("wrong position_ids");
    }

    #experts(inputs: Record<string, HostTensor>, flat: number): number {
        if (this.kind === "dense") return 0;
        let sum = 0;
        LAYERS.forEach((number, layer) => {
            const values = inputs[`expert_value.${number}`]!;
            if (this.kind === "mole") {
                for (let expert = 0; expert < EXPERTS; expert++)
                    sum += values.data[(flat * EXPERTS + expert) * HIDDEN] as number;
                return;
            }
            const [, blockLength, reach] = inputs.expert_mask!.dims as [number, number, number];
            const block = Math.floor(flat / blockLength);
            let visible = 0;
            for (let row = 0; row < reach; row++) {
                const at = block * reach + row;
                const keys = (inputs[`expert_key.${number}`]!.data as Float32Array).subarray(2 * at, 2 * at + 2);
                const scale = (inputs[`expert_value_scale.${number}`]?.data[at] ?? 1) as number;
                const one = scale * (values.data[at * HIDDEN] as number);
                if (!Number.isFinite(keys[0]! + keys[1]! + one)) throw new Error("an expert is not finite");
                if (inputs.expert_mask!.data[flat * reach + row] !== 0) continue;
                visible++;
                sum += weight(layer, keys, one);
            }
            if (visible === 0) throw new Error("a position sees no expert");
        });
        return sum;
    }
}

/** Reads records of one byte: the id. */
export class FakeReader implements RecordReader {
    readonly reads: number[][] = [];
    failures = 0;
    onRead: (() => void) | undefined;

    async read(
        rows: readonly number[],
        options?: { readonly signal?: AbortSignal | undefined },
    ): Promise<Uint8Array[]> {
        await Promise.resolve();
        options?.signal?.throwIfAborted();
        if (new Set(rows).size !== rows.length) throw new Error("rows with duplicates");
        this.reads.push([...rows]);
        this.onRead?.();
        if (this.failures > 0) {
            this.failures--;
            throw new BundleError("a record is damaged");
        }
        return rows.map((row) => Uint8Array.of(row));
    }

    close(): Promise<void> {
        return Promise.resolve();
    }
}

/** The methods of `RecordDecoder` for the records of `FakeReader`. */
function fakeDecoder(): RecordDecoder {
    const each = (visit: (expert: number, i: number) => void): void => {
        for (let expert = 0; expert < EXPERTS; expert++) for (let i = 0; i < HIDDEN; i++) visit(expert, i);
    };
    const decoder = {
        embedding(record: Uint8Array, into: Float32Array, at: number): void {
            into.fill(record[0]! + 1, at, at + HIDDEN);
        },
        keys(_: Uint8Array, __: number, into: Float32Array, at: number): void {
            for (let expert = 0; expert < EXPERTS; expert++) into.set(key(expert), at + 2 * expert);
        },
        values(record: Uint8Array, layer: number, into: Float32Array, at: number): void {
            each((expert, i) => (into[at + expert * HIDDEN + i] = value(record[0]!, layer, expert, i)));
        },
        codes(record: Uint8Array, layer: number, into: Int8Array, at: number, scales: Float32Array, to: number): void {
            each((expert, i) => (into[at + expert * HIDDEN + i] = 2 * value(record[0]!, layer, expert, i)));
            scales.fill(0.5, to, to + EXPERTS);
        },
    };
    return decoder as unknown as RecordDecoder;
}

export interface FakeEngine extends Engine {
    readonly graph: FakeGraph;
    readonly reader: FakeReader;
}

/** Return an engine of a model with two layers of experts, or without experts ("dense"). */
export function fakeEngine(kind: Kind, context: number, window: number): FakeEngine {
    const config: ModelConfig = {
        profiles: ["cpu"],
        vocabSize: VOCAB,
        hiddenSize: HIDDEN,
        maxPositionEmbeddings: context,
        expertLayers: kind === "dense" ? [] : LAYERS,
        expertValueShape: [EXPERTS, HIDDEN],
        expertWindow: window,
        expertAttention: kind.startsWith("molkv") ? { experts: EXPERTS, keySize: 2, ropeTheta: THETA } : undefined,
        kvCaches: [{ layer: 0, heads: HEADS, headDim: HEAD_DIM }],
        sharedKvCaches: new Map(),
    };
    const bundle = {
        config,
        graph: { kvDtype: "float32", windowDtype: kind === "molkv-int8" ? "int8" : "float32" },
        graphFile: { inputs: kind.startsWith("molkv") ? [{ name: "position_ids" }] : [] },
    } as unknown as Bundle;
    const reader = new FakeReader();
    const graph = new FakeGraph(kind, context);
    return { bundle, graph, reader, store: new Store(reader, 1, 20), decoder: fakeDecoder() };
}
