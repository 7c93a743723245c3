/** Opens the bundle beside the page with the driver. */

import type { Model } from "../src/api.js";
import type { Progress } from "../src/options.js";
import { BundleError, Model as Driver, httpBundle, onnxruntimeWeb, webWorker } from "../src/web.js";

export type Provider = "wasm" | "webgpu";

/** Progress of the opening; ONNX Runtime is downloaded before the model. */
export type OpeningProgress = Omit<Progress, "phase" | "file"> & { readonly phase: Progress["phase"] | "runtime" };

/** What a person chose, and who hears of the progress. */
export interface Choices {
    readonly provider: Provider;
    /** The number of lowest ids whose records are fetched ahead. */
    readonly prefetch: number;
    readonly onProgress: (progress: OpeningProgress) => void;
    readonly signal: AbortSignal;
}

/** The folder of ONNX Runtime, and its WebAssembly for each provider. The build sets it. */
declare const ONNXRUNTIME: {
    readonly folder: string;
    readonly files: Readonly<Record<Provider, { readonly name: string; readonly bytes: number }>>;
};

/** Open the bundle. The build writes the address of the worker into the page. */
export async function openModel({ provider, prefetch, onProgress, signal }: Choices): Promise<Model> {
    await downloadRuntime(provider, onProgress, signal);
    const model = await Driver.open(httpBundle(address("bundle/"), { cache: "opfs", prefetch }), {
        backend: onnxruntimeWeb({ provider, threads: threads(provider), wasmPaths: address(ONNXRUNTIME.folder) }),
        worker: webWorker({ url: address(document.documentElement.dataset.worker!) }),
        onProgress,
        signal,
    });
    try {
        // The driver loads the tokenizer at its first use. The page must have it before a visit without a network.
        if (model.hasTokenizer) await model.encode("");
    } catch (error) {
        await model.close();
        throw error;
    }
    return model;
}

/**
 * Download ONNX Runtime's WebAssembly, which may be larger than the model without its table, and report the bytes. The
 * worker then gets it from the service worker or from the browser's cache.
 */
async function downloadRuntime(
    provider: Provider,
    onProgress: Choices["onProgress"],
    signal: AbortSignal,
): Promise<void> {
    const { name, bytes: totalBytes } = ONNXRUNTIME.files[provider];
    const url = address(ONNXRUNTIME.folder + name);
    const report = (loadedBytes: number): void => {
        onProgress({ phase: "runtime", loadedBytes, totalBytes });
    };
    report(0);
    try {
        const response = await fetch(url, { signal });
        if (!response.ok) throw new Error(`status ${response.status}`);
        let loaded = 0;
        for (const reader = response.body!.getReader(); ;) {
            const { done, value } = await reader.read();
            if (done) return;
            report((loaded += value.length));
        }
    } catch (error) {
        signal.throwIfAborted();
        const reason = error instanceof Error ? error.message : String(error);
        throw new BundleError(`${url}: ONNX Runtime cannot be downloaded (${reason})`, { cause: error });
    }
}

/** Threads need memory that they share, which browsers allow only in isolated pages. */
function threads(provider: Provider): number {
    if (provider === "webgpu" || !crossOriginIsolated) return 1;
    return Math.max(1, Math.min(4, Math.floor(navigator.hardwareConcurrency / 2)));
}

function address(relative: string): string {
    return new URL(relative, document.baseURI).href;
}
