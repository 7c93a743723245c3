/** The backends for browsers: the package onnxruntime-web, with WASM on the CPU or with WebGPU. */

import type { Backend, GraphFiles, GraphSession } from "../backend.js";
import { RequestError } from "../errors.js";
import { decodeOnnx } from "../format/onnx-file.js";
import { optionsOf } from "../runtime/checks.js";
import { loadHostSession } from "./host-session.js";
import type { Ort } from "./onnxruntime.js";
import { checkThreads, importPackage } from "./onnxruntime.js";
import { loadGpuSession, requestDevice } from "./webgpu-session.js";

const PACKAGE = "onnxruntime-web";
/** More threads gain little: decode steps are short. */
const MOST_THREADS = 4;

export interface WebOptions {
    readonly provider: "wasm" | "webgpu";
    /**
     * Threads of WASM; undefined: half of the processor's, at most 4. More than one thread needs a page that is
     * cross-origin isolated; other pages get one thread. The first backend of a page decides for all.
     */
    readonly threads?: number | undefined;
    /** The URL of the folder with ONNX Runtime's .wasm files, with "/" at its end; undefined: next to the script. */
    readonly wasmPaths?: string | undefined;
}

/**
 * Return a backend that runs graphs in a browser with onnxruntime-web. A call blocks the thread that makes it, so use a
 * worker.
 *
 * @throws RequestError An option is impossible.
 */
export function onnxruntimeWeb(options: WebOptions): Backend {
    const { provider, threads, wasmPaths } = optionsOf(options);
    const given: string = provider;
    if (given !== "wasm" && given !== "webgpu") {
        throw new RequestError(`provider: found ${JSON.stringify(given)}, expected "wasm" or "webgpu"`);
    }
    checkThreads(threads);
    const name = `${PACKAGE} (${provider === "wasm" ? "WASM" : "WebGPU"})`;
    const numThreads = usableThreads(threads);
    let loading: Promise<Ort> | undefined;
    const load = (): Promise<Ort> => (loading ??= loadPackage(provider, numThreads, wasmPaths));
    return {
        description: { kind: PACKAGE, provider, threads, wasmPaths },
        name,
        threads: provider === "wasm" ? numThreads : 0,
        async version() {
            return (await load()).env.versions.web ?? "";
        },
        async load(files) {
            const ort = await load();
            return provider === "wasm" ? loadWasm(ort, name, files) : loadWebgpu(ort, name, files);
        },
    };
}

async function loadPackage(
    provider: WebOptions["provider"],
    numThreads: number,
    wasmPaths: string | undefined,
): Promise<Ort> {
    // Two imports with constant names, so that a bundler makes two files and a page loads only one.
    const ort = await importPackage(PACKAGE, () =>
        provider === "wasm" ? import("onnxruntime-web/wasm") : import("onnxruntime-web/webgpu"),
    );
    ort.env.wasm.numThreads = numThreads;
    ort.env.wasm.proxy = false;
    if (wasmPaths !== undefined) ort.env.wasm.wasmPaths = wasmPaths;
    return ort;
}

function loadWasm(ort: Ort, name: string, files: GraphFiles): Promise<GraphSession> {
    return loadHostSession({ ort, name, options: { executionProviders: ["wasm"] }, refusesEmpty: false }, files);
}

let device: Promise<GPUDevice | undefined> | undefined;

async function loadWebgpu(ort: Ort, name: string, files: GraphFiles): Promise<GraphSession> {
    // All sessions of a page share one device.
    const own = await (device ??= requestDevice());
    if (files.kvDtype === "float32") return loadGpuSession({ ort, name, device: own }, files);
    // ONNX Runtime takes no int8 tensor from a GPU buffer, and its shaders for an int8 KV cache are invalid.
    const webgpu = {
        name: "webgpu" as const,
        forceCpuNodeNames: attentionNodes(files),
        ...(own === undefined ? {} : { device: own }),
    };
    return loadHostSession({ ort, name, options: { executionProviders: [webgpu] }, refusesEmpty: true }, files);
}

function attentionNodes(files: GraphFiles): string[] {
    const { nodes } = decodeOnnx(files.graph, files.where);
    return nodes.filter(({ opType }) => opType === "GroupQueryAttention").map(({ name }) => name);
}

function usableThreads(threads: number | undefined): number {
    const scope = globalThis as {
        crossOriginIsolated?: boolean;
        navigator?: { hardwareConcurrency?: number };
    };
    if (scope.crossOriginIsolated !== true) return 1;
    return threads ?? Math.min(MOST_THREADS, Math.ceil((scope.navigator?.hardwareConcurrency ?? 1) / 2));
}
