/** What the adapters for ONNX Runtime's packages share: their types, sessions and errors. */

import type * as common from "onnxruntime-common";
import { BundleError, ProviderError, RequestError } from "../errors.js";
import type { GraphCall, GraphFiles, HostTensor } from "../backend.js";

/** A package of ONNX Runtime. onnxruntime-node and onnxruntime-web have the same interface. */
export type Ort = Pick<typeof common, "InferenceSession" | "Tensor" | "env">;
export type OrtSession = common.InferenceSession;
export type OrtTensor = common.Tensor;
export type OrtOptions = common.InferenceSession.SessionOptions;
export type OrtFetches = Record<string, OrtTensor | null>;

/** The numbers of a KV cache: those of each layer have this class. */
export type KvArray = Float32Array<ArrayBuffer> | Int8Array<ArrayBuffer>;

/** Return the reason of a failure in one line. */
export function reason(error: unknown): string {
    const message = error instanceof Error ? error.message : String(error);
    return message.replace(/\s+/g, " ").trim().slice(0, 500);
}

/** @throws RequestError The number of threads is impossible. */
export function checkThreads(threads: number | undefined): void {
    if (threads === undefined || (Number.isInteger(threads) && threads >= 1 && threads <= 1024)) return;
    throw new RequestError(`threads: found ${threads}, expected an integer from 1 to 1024, or undefined`);
}

/** Return what `load` imports. @throws ProviderError The package is not installed or does not load. */
export async function importPackage(name: string, load: () => Promise<unknown>): Promise<Ort> {
    let loaded: unknown;
    try {
        loaded = await load();
    } catch (error) {
        throw new ProviderError(`${name} cannot be loaded (${reason(error)}); run \`npm install ${name}\``, {
            cause: error,
        });
    }
    const ort = loaded as Ort;
    // Warnings about graphs are for the authors of ONNX Runtime.
    ort.env.logLevel = "error";
    return ort;
}

/**
 * Load a graph with its weights.
 *
 * @throws ProviderError ONNX Runtime refuses the graph or has no such provider.
 */
export async function createSession(
    ort: Ort,
    name: string,
    files: GraphFiles,
    graph: Uint8Array,
    options: OrtOptions,
): Promise<OrtSession> {
    try {
        return await ort.InferenceSession.create(graph, {
            graphOptimizationLevel: "all",
            executionMode: "sequential",
            logSeverityLevel: 3,
            ...weights(files),
            ...options,
        });
    } catch (error) {
        throw new ProviderError(`${files.where}: ${name} refuses to load the graph: ${reason(error)}`, {
            cause: error,
        });
    }
}

function weights({ data }: GraphFiles): OrtOptions {
    if ("content" in data) return { externalData: [{ path: data.name, data: data.content }] };
    // The graph is bytes, so it has no folder of its own.
    return { extra: { session: { model_external_initializers_file_folder_path: data.folder } } };
}

/** @throws RequestError The cache has no slots for the tokens of a call: the graph would use a longer one. */
export function checkSlots(call: GraphCall): void {
    const end = Math.max(...call.starts) + call.length;
    if (end <= call.cache.slots) return;
    throw new RequestError(`cache: found ${call.cache.slots} slots, expected at least ${end}; enlarge the cache`);
}

/** Return the error of a call that failed. */
export function runError(where: string, name: string, error: unknown): BundleError {
    return new BundleError(`${where}: the graph fails in ${name}: ${reason(error)}; verify the bundle`, {
        cause: error,
    });
}

/** Return a tensor of ONNX Runtime that shares the numbers of `tensor`. */
export function toOrt(ort: Ort, tensor: HostTensor): OrtTensor {
    // The constructor's overloads do not accept a union of dtypes.
    return new ort.Tensor(tensor.dtype as "float32", tensor.data as Float32Array, [...tensor.dims]);
}

/**
 * Return the inputs with `logits_to_keep` of at least 1, for providers that refuse tensors without data.
 *
 * `wanted` says whether the call's caller wants logits.
 */
export function keepOneLogit<T>(inputs: Readonly<Record<string, T | HostTensor>>): {
    inputs: Readonly<Record<string, T | HostTensor>>;
    wanted: boolean;
} {
    const keep = inputs.logits_to_keep;
    const none = keep !== undefined && isHostTensor(keep) && keep.data[0] === 0n;
    if (!none) return { inputs, wanted: true };
    return { inputs: { ...inputs, logits_to_keep: { ...keep, data: BigInt64Array.of(1n) } }, wanted: false };
}

/** Whether an input is in JavaScript's memory and holds numbers. */
export function isHostTensor(tensor: unknown): tensor is HostTensor {
    return typeof tensor === "object" && tensor !== null && "data" in tensor;
}
