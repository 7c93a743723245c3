/** The loading of a model: everything that its sequences share. */

import type { Backend, GraphFiles, GraphSession } from "../backend.js";
import { BundleError, ProviderError } from "../errors.js";
import { sharedOutputs } from "../format/graph-interface.js";
import type { ModelConfig, TensorInfo } from "../format/manifest.js";
import { dropOutputs } from "../format/onnx-edit.js";
import { checkGraph } from "../format/onnx-model.js";
import { RecordDecoder } from "../format/record-decoder.js";
import type { OpenOptions } from "../options.js";
import type { Source } from "../source.js";
import { type Bundle, openBundle, type ReadCheckedOptions } from "./bundle.js";
import { wholeNumber } from "./checks.js";
import { DEFAULT_CHUNK } from "./chunks.js";
import { BatchState, type Engine } from "./sequences.js";
import { Store } from "./store.js";

/** A loaded graph and an open store. */
export class LoadedModel implements Engine {
    readonly decoder: RecordDecoder;
    readonly #prefillChunk: number | undefined;

    constructor(
        readonly bundle: Bundle,
        readonly graph: GraphSession,
        readonly store: Store,
        /** The version of ONNX Runtime. */
        readonly onnxruntime: string,
        prefillChunk: number | undefined,
    ) {
        this.decoder = new RecordDecoder(bundle.manifest.experts, bundle.config);
        this.#prefillChunk = prefillChunk;
    }

    get config(): ModelConfig {
        return this.bundle.config;
    }

    /**
     * Return free sequences. `maxLength` (default: the context) limits their tokens.
     *
     * @throws RequestError A number is out of its range.
     * @throws MemoryError There is not enough memory.
     */
    sequences(batchSize: number, maxLength?: number): BatchState {
        return new BatchState(this, { batchSize, maxLength, prefillChunk: this.#prefillChunk });
    }

    /** Release the graph, the store and the source. Release the sequences first. */
    async close(): Promise<void> {
        await this.store.close();
        await this.graph.release();
        await this.bundle.source.close();
    }
}

/**
 * Open a bundle and load its graph (checks 1 to 12, 14 and 15; ONNX Runtime opens no file, so check 13 does not apply).
 *
 * @throws BundleError A check fails, or a file cannot be read.
 * @throws ProviderError ONNX Runtime is missing, too old, or refuses the graph.
 * @throws MemoryError The weights do not fit into memory.
 * @throws RequestError `prefillChunk` is no whole number above 0.
 */
export async function loadModel(source: Source, backend: Backend, options: OpenOptions = {}): Promise<LoadedModel> {
    const { signal, onProgress, prefillChunk } = options;
    wholeNumber("prefillChunk", prefillChunk ?? DEFAULT_CHUNK, 1);
    signal?.throwIfAborted();
    onProgress?.({ phase: "manifest", file: "", loadedBytes: 0, totalBytes: 0 });
    const bundle = await openBundle(source, { signal });
    const version = await backend.version();
    checkVersion(backend.name, version, bundle.graph.minOnnxruntime);
    signal?.throwIfAborted();
    const { graph, data } = await readGraph(bundle, backend, options);
    const loadedBytes = wholeBytes(bundle);
    onProgress?.({ phase: "load", file: "", loadedBytes, totalBytes: loadedBytes });
    const session = await loadGraph(bundle, backend, graph, data);
    try {
        signal?.throwIfAborted();
        const store = new Store(await source.openTable(bundle.table()), bundle.manifest.experts.stride);
        return new LoadedModel(bundle, session, store, version, prefillChunk);
    } catch (error) {
        await session.release();
        throw error;
    }
}

/**
 * Check that ONNX Runtime is not older than the graph requires (check 11).
 *
 * @throws ProviderError It is older, or its version is no version.
 */
export function checkVersion(backend: string, found: string, least: string): void {
    const numbers = (version: string): number[] | undefined =>
        /^(\d{1,5})\.(\d{1,5})\.(\d{1,5})(?!\d)/.exec(version)?.slice(1).map(Number);
    const has = numbers(found);
    const needs = numbers(least);
    const first = needs?.findIndex((number, i) => number !== has?.[i]) ?? -1;
    if (has !== undefined && (first < 0 || has[first]! > needs![first]!)) return;
    throw new ProviderError(
        `${backend}: has ONNX Runtime ${found}, the bundle needs ${least} or newer; install a newer version`,
    );
}

/** Return the bytes of the graph and its weights. */
function wholeBytes(bundle: Bundle): number {
    return bundle.size(bundle.graphFile.file) + bundle.size(bundle.graph.data);
}

/** Read the graph and its weights at the same time. Weights that the backend can read itself are only hashed. */
async function readGraph(
    bundle: Bundle,
    backend: Backend,
    options: OpenOptions,
): Promise<Pick<GraphFiles, "graph" | "data">> {
    const totalBytes = wholeBytes(bundle);
    const loaded = new Map<string, number>();
    // If one file cannot be read, the other one is not needed any more.
    const controller = new AbortController();
    const abort = (): void => {
        controller.abort(options.signal?.reason);
    };
    options.signal?.addEventListener("abort", abort, { once: true });
    const readOptions = (name: string): ReadCheckedOptions => ({
        signal: controller.signal,
        onBytes: (bytes) => {
            loaded.set(name, bytes);
            const loadedBytes = [...loaded.values()].reduce((sum, one) => sum + one, 0);
            options.onProgress?.({ phase: "download", file: name, loadedBytes, totalBytes });
        },
    });
    const readData = async (name: string): Promise<GraphFiles["data"]> => {
        const folder = backend.readsFiles ? await bundle.checkedFolder(name, readOptions(name)) : undefined;
        if (folder !== undefined) return { name, folder };
        return { name, content: await bundle.readChecked(name, readOptions(name)) };
    };
    try {
        const { file } = bundle.graphFile;
        const reading = [bundle.readChecked(file, readOptions(file)), readData(bundle.graph.data)] as const;
        try {
            const [graph, data] = await Promise.all(reading);
            return { graph, data };
        } catch (error) {
            abort();
            // The source may be closed only when nothing reads it any more.
            await Promise.allSettled(reading);
            throw error;
        }
    } finally {
        options.signal?.removeEventListener("abort", abort);
    }
}

async function loadGraph(
    bundle: Bundle,
    backend: Backend,
    graph: Uint8Array,
    data: GraphFiles["data"],
): Promise<GraphSession> {
    const { graphFile, config } = bundle;
    const where = bundle.path(graphFile.file);
    checkGraph(graph, where, { dataName: data.name, dataSize: bundle.size(data.name) });
    // Backends bind no output to the memory of an input, so a cache that is written again would be a copy.
    const dropped = new Set(sharedOutputs(config));
    const session = await backend.load({
        where,
        graph: dropped.size === 0 ? graph : dropOutputs(graph, dropped, where),
        data,
        caches: config.kvCaches,
        kvDtype: bundle.graph.kvDtype === "int8" ? "int8" : "float32",
    });
    try {
        checkNames(`${where}: inputs`, session.inputNames, graphFile.inputs);
        const outputs = graphFile.outputs.filter(({ name }) => !dropped.has(name));
        checkNames(`${where}: outputs`, session.outputNames, outputs);
    } catch (error) {
        await session.release();
        throw error;
    }
    return session;
}

// Check 15. ONNX Runtime for JavaScript does not give the types and shapes on all platforms.
function checkNames(what: string, found: readonly string[], expected: readonly TensorInfo[]): void {
    for (let i = 0; i < Math.max(found.length, expected.length); i++) {
        if (found[i] === expected[i]?.name) continue;
        throw new BundleError(
            `${what} in ONNX Runtime: found ${found[i] ?? "nothing"} at place ${i}, the manifest says ` +
                `${expected[i]?.name ?? "nothing"}; export the bundle again`,
        );
    }
}
