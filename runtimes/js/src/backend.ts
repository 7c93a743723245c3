/**
 * The interface of a backend: what runs the dense graph. The adapters in backends/ implement it with ONNX Runtime.
 *
 * The KV cache and the experts of decode steps belong to the session of the graph, since a GPU keeps them in its own
 * memory.
 */

import type { Description } from "./source.js";

export type TensorDType = "float32" | "float16" | "int64" | "int32" | "int8";

/** Numbers of a tensor in JavaScript's memory. Float16 numbers are bit patterns. */
export type TensorData = Float32Array | Uint16Array | BigInt64Array | Int32Array | Int8Array;

/** A tensor in JavaScript's memory. */
export interface HostTensor {
    readonly dtype: TensorDType;
    readonly dims: readonly number[];
    readonly data: TensorData;
}

/** A tensor that stays where the backend computes, and that the driver changes in part. It begins with zeros. */
export interface ResidentTensor {
    readonly dtype: TensorDType;
    readonly dims: readonly number[];
    /** Replace the numbers from number `offset` on by `data`. */
    write(offset: number, data: TensorData): void;
    release(): void;
}

/** The KV cache of one layer. A layer that uses the cache of another layer has none. */
export interface KvCacheShape {
    readonly layer: number;
    /** Hkv */
    readonly heads: number;
    readonly headDim: number;
}

/** Keys and values of some slots of one layer's cache: each [Hkv, slots, head_dim], row by row. */
export interface LayerSlots {
    readonly key: Float32Array | Int8Array;
    readonly value: Float32Array | Int8Array;
}

/**
 * The KV cache of a batch of sequences: [B, Hkv, slots, head_dim] for each of `GraphFiles.caches`, in their order. It
 * begins with zeros.
 */
export interface KvCache {
    readonly batchSize: number;
    readonly slots: number;
    /** Enlarge the cache. Sequences keep their numbers. At most one call at a time uses a cache. */
    grow(slots: number): Promise<void>;
    /** Return the first `count` slots of a sequence, for each of the caches. */
    read(sequence: number, count: number): Promise<LayerSlots[]>;
    /** Replace the slots `first` to `first + n - 1` of a sequence, for each of the caches. */
    write(sequence: number, first: number, layers: readonly LayerSlots[]): Promise<void>;
    /** Copy the first `count` slots of a sequence of `source`, a cache of the same graph, to `sequence`. */
    copy(sequence: number, source: KvCache, sourceSequence: number, count: number): Promise<void>;
    release(): void;
}

/** A call of the graph. */
export interface GraphCall {
    /** All inputs except past_key_values. */
    readonly inputs: Readonly<Record<string, HostTensor | ResidentTensor>>;
    readonly cache: KvCache;
    /** The sequence whose row of the cache the call uses, alone (B = 1); undefined: the call uses all sequences. */
    readonly sequence?: number | undefined;
    /** The position of the first new token, for each sequence of the call, in its order. */
    readonly starts: readonly number[];
    /** New tokens of each sequence: T. */
    readonly length: number;
}

/** A loaded graph. */
export interface GraphSession {
    readonly inputNames: readonly string[];
    readonly outputNames: readonly string[];
    createCache(batchSize: number, slots: number): KvCache;
    createResident(dtype: TensorDType, dims: readonly number[]): ResidentTensor;
    /**
     * Run the graph: it writes the new keys and values into the cache. Return the logits, [B, logits_to_keep, V] row by
     * row; an empty array if `logits_to_keep` is 0. The array is valid until the next call.
     *
     * @throws BundleError The graph fails in the call.
     */
    run(call: GraphCall): Promise<Float32Array>;
    release(): Promise<void>;
}

/** The graph of profile "cpu", checked by the driver, and its weights. */
export interface GraphFiles {
    /** The graph's path or address, for messages. */
    readonly where: string;
    /** The ONNX file. */
    readonly graph: Uint8Array;
    /** The name of the file of weights in the graph, and its content, or the folder where a backend reads it. */
    readonly data: { readonly name: string } & ({ readonly content: Uint8Array } | { readonly folder: string });
    /** The KV caches, by their layers. The graph has `past_key_values` and `present` of these layers and of no others. */
    readonly caches: readonly KvCacheShape[];
    readonly kvDtype: "float32" | "int8";
}

export interface Backend {
    /** How a worker makes the same backend; undefined: the backend works only in the thread that made it. */
    readonly description?: Description | undefined;
    /** For people, such as "onnxruntime-web (WebGPU)". */
    readonly name: string;
    /** Threads that the backend computes with; 0 if it does not say. */
    readonly threads: number;
    /** Whether the backend can read weights from a folder; default: no. It then maps them into memory and does not copy them. */
    readonly readsFiles?: boolean;
    /** Load ONNX Runtime, if it is not loaded. Return its version, such as "1.30.0". */
    version(): Promise<string>;
    /** @throws ProviderError ONNX Runtime refuses the graph or has no such provider. */
    load(files: GraphFiles): Promise<GraphSession>;
}
