import { afterAll, beforeAll, expect, test } from "vitest";
import { onnxruntimeWeb } from "../../../src/backends/onnxruntime-web.js";
import { ProviderError, RequestError } from "../../../src/errors.js";
import type { Loaded } from "../support/dense-backend.js";
import { checkBatch, checkPrefill, checkSaved, loadDense } from "../support/dense-backend.js";
import { readGraphBundle } from "../support/graph-bundle.js";

let loaded: Loaded;

beforeAll(async () => {
    loaded = await loadDense(onnxruntimeWeb({ provider: "wasm" }));
});

afterAll(async () => {
    await loaded.session.release();
});

test("the backend describes itself", async () => {
    const backend = onnxruntimeWeb({ provider: "wasm", threads: 4, wasmPaths: "/ort/" });
    const options = { provider: "wasm", threads: 4, wasmPaths: "/ort/" };
    expect(backend.description).toEqual({ kind: "onnxruntime-web", ...options });
    expect(backend.name).toBe("onnxruntime-web (WASM)");
    // Node is not cross-origin isolated.
    expect(backend.threads).toBe(1);
    expect(await onnxruntimeWeb({ provider: "wasm" }).version()).toMatch(/^\d+\.\d+\.\d+$/);
});

test("a prompt in chunks gives the golden logits", async () => {
    await checkPrefill(loaded);
});

test("a batch of different lengths gives the golden logits, also after growth, a copy and a saved cache", async () => {
    await checkSaved(loaded, await checkBatch(loaded));
});

test("a graph that ONNX Runtime refuses is an error of the provider", async () => {
    const { files } = readGraphBundle("dense");
    const damaged = { ...files, data: { ...files.data, content: files.data.content.subarray(0, 64) } };
    await expect(onnxruntimeWeb({ provider: "wasm" }).load(damaged)).rejects.toThrow(ProviderError);
});

test("WebGPU without a GPU is an error of the provider", async () => {
    const { files } = readGraphBundle("dense");
    const loading = onnxruntimeWeb({ provider: "webgpu" }).load(files);
    await expect(loading).rejects.toThrow(
        new ProviderError('WebGPU: found no adapter; use the provider "wasm", or another browser'),
    );
});

test("impossible options are refused", () => {
    expect(() => onnxruntimeWeb({ provider: "webgl" as "wasm" })).toThrow(RequestError);
    expect(() => onnxruntimeWeb({ provider: "wasm", threads: 0 })).toThrow(RequestError);
});
