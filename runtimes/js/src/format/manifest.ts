/** The manifest of a bundle (docs/bundle-format.md, "manifest.json"): its types. `parseManifest` is in read-manifest.ts. */

import type { KvCacheShape, TensorDType } from "../backend.js";

/** A dimension of a tensor: a number, or a name if its size is free. */
export type Dimension = number | string;

/** An input or output of a graph. */
export interface TensorInfo {
    readonly name: string;
    readonly dtype: TensorDType;
    readonly shape: readonly Dimension[];
}

export interface GraphFile {
    readonly file: string;
    /** Positions of a call; 0: any number. */
    readonly length: number;
    readonly inputs: readonly TensorInfo[];
    readonly outputs: readonly TensorInfo[];
}

export type Profile = "cpu" | "coreml" | "nnapi";

/** The graphs of one profile. */
export interface Graph {
    readonly profile: Profile;
    readonly files: readonly GraphFile[];
    readonly data: string;
    readonly golden: string;
    readonly denseDtype: string;
    readonly kvDtype: "float32" | "float16" | "int8";
    readonly windowDtype: "float32" | "int8";
    readonly blockSize: number;
    readonly contextLength: number;
    readonly expertWindow: number;
    readonly minOnnxruntime: string;
}

/** Experts that later positions see too, in a window of positions: they have keys, and a position attends to them. */
export interface ExpertAttention {
    /** N: the experts of a position. */
    readonly experts: number;
    /** dk: the numbers of a key. */
    readonly keySize: number;
    /** The base of the rotation of keys; undefined: keys are not rotated. */
    readonly ropeTheta: number | undefined;
}

/** What a driver uses of a model's configuration, for all families. */
export interface ModelConfig {
    /** The profiles that the family has graphs for. */
    readonly profiles: readonly Profile[];
    readonly vocabSize: number;
    /** d */
    readonly hiddenSize: number;
    /** The longest sequence in tokens; `Bundle.config` has the graph's `context_length` here. */
    readonly maxPositionEmbeddings: number;
    /** The layers that have experts, in ascending order. */
    readonly expertLayers: readonly number[];
    /** The shape of the values of a token in one layer. The last dimension is that of one value. */
    readonly expertValueShape: readonly number[];
    /** The field `expert_window`; `Bundle.config` has the graph's here. It has an effect only with `expertAttention`. */
    readonly expertWindow: number;
    /** Undefined: a position uses the experts of its own token only. */
    readonly expertAttention: ExpertAttention | undefined;
    /** The KV caches, by their layers. */
    readonly kvCaches: readonly KvCacheShape[];
    /** The layers that use the KV cache of another layer, in ascending order, each with this layer. */
    readonly sharedKvCaches: ReadonlyMap<number, number>;
}

export type TableDType = "float32" | "float16" | "int8" | "int4" | "nf4";

/** A part of a record. */
export interface RecordField {
    readonly name: string;
    readonly dtype: TableDType;
    readonly shape: readonly number[];
    /** Bytes from the start of the record. */
    readonly offset: number;
}

export interface Shard {
    readonly file: string;
    readonly firstRow: number;
    readonly count: number;
    readonly dataOffset: number;
}

export interface Table {
    readonly rows: number;
    /** 16 hexadecimal digits. */
    readonly id: string;
    readonly dtype: TableDType;
    /** Bytes of a record. */
    readonly stride: number;
    readonly fields: readonly RecordField[];
    readonly shards: readonly Shard[];
}

/** The defaults of sampling of a bundle. */
export interface SamplingDefaults {
    readonly temperature: number;
    readonly topK: number;
    readonly topP: number;
    readonly minP: number;
    readonly repetitionPenalty: number;
}

export interface Generation {
    readonly eosTokenIds: readonly number[];
    readonly sampling: SamplingDefaults;
    /** The file of the chat template; "" if there is none. */
    readonly chatTemplate: string;
}

export interface FileInfo {
    readonly size: number;
    readonly sha256: string;
}

export interface Manifest {
    readonly model: ModelConfig;
    /** In the order of the file: the first one is the default. */
    readonly graphs: readonly Graph[];
    readonly experts: Table;
    readonly generation: Generation;
    readonly files: ReadonlyMap<string, FileInfo>;
    readonly sha256: string;
}
