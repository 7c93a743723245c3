import { afterAll, beforeAll, expect, test } from "vitest";
import { onnxruntimeNode } from "../../../src/backends/onnxruntime-node.js";
import { HostKvCache } from "../../../src/backends/host-cache.js";
import { importPackage } from "../../../src/backends/onnxruntime.js";
import { BundleError, MemoryError, ProviderError, RequestError } from "../../../src/errors.js";
import type { Loaded } from "../support/dense-backend.js";
import { checkBatch, checkPrefill, checkSaved, loadDense } from "../support/dense-backend.js";
import { readGraphBundle, runDense } from "../support/graph-bundle.js";

let loaded: Loaded;

beforeAll(async () => {
    loaded = await loadDense(onnxruntimeNode({ threads: 1 }));
});

afterAll(async () => {
    await loaded.session.release();
});

test("the backend describes itself", async () => {
    const backend = onnxruntimeNode({ threads: 2 });
    expect(backend.description).toEqual({ kind: "onnxruntime-node", threads: 2 });
    expect(backend.threads).toBe(2);
    expect(onnxruntimeNode().threads).toBe(0);
    expect(await backend.version()).toMatch(/^\d+\.\d+\.\d+$/);
});

test("the session has the names of the bundle's graph", () => {
    const past = ["past_key_values.0.key", "past_key_values.0.value", "past_key_values.1.key"];
    const names = ["inputs_embeds", "seqlens_k", "total_sequence_length", "logits_to_keep", ...past];
    expect(loaded.session.inputNames).toEqual([...names, "past_key_values.1.value"]);
    const present = ["present.0.key", "present.0.value", "present.1.key", "present.1.value"];
    expect(loaded.session.outputNames).toEqual(["logits", ...present]);
});

test("a prompt in chunks gives the golden logits", async () => {
    await checkPrefill(loaded);
});

test("a batch of different lengths gives the golden logits, also after growth, a copy and a saved cache", async () => {
    await checkSaved(loaded, await checkBatch(loaded));
});

test("a call that fails is an error of the bundle, and the cache stays usable", async () => {
    const { bundle, session } = loaded;
    const cache = session.createCache(1, 4);
    const damaged = { ...bundle, embedding: () => new Float32Array(32) };
    damaged.manifest = { ...bundle.manifest, model: { ...bundle.manifest.model, hidden_size: 32 } };
    const failed = runDense(damaged, session, { cache, starts: [0], ids: [[1]], keep: 1 });
    await expect(failed).rejects.toThrow(BundleError);
    await expect(failed).rejects.toThrow(/^dense\/model\.onnx: the graph fails in onnxruntime-node: [^\n]*$/);
    await runDense(bundle, session, { cache, starts: [0], ids: [[1]], keep: 1 });
});

test("a call beyond the cache is refused", async () => {
    const { bundle, session } = loaded;
    const cache = session.createCache(1, 4);
    const beyond = runDense(bundle, session, { cache, starts: [3], ids: [[1, 2]], keep: 1 });
    await expect(beyond).rejects.toThrow(
        new RequestError("cache: found 4 slots, expected at least 5; enlarge the cache"),
    );
});

test("a graph that ONNX Runtime refuses is an error of the provider", async () => {
    const { files } = readGraphBundle("dense");
    const short = { ...files, data: { ...files.data, content: files.data.content.subarray(0, 64) } };
    const loading = onnxruntimeNode().load(short);
    await expect(loading).rejects.toThrow(ProviderError);
    await expect(loading).rejects.toThrow(/^dense\/model\.onnx: onnxruntime-node refuses to load the graph: [^\n]*$/);
});

test("a missing package says how to install it", async () => {
    const missing = importPackage("onnxruntime-node", () => Promise.reject(new Error("Cannot find package")));
    await expect(missing).rejects.toThrow(ProviderError);
    await expect(missing).rejects.toThrow("run `npm install onnxruntime-node`");
});

test("impossible numbers of threads are refused", () => {
    for (const threads of [0, -1, 1.5, Number.NaN, 1e9]) {
        expect(() => onnxruntimeNode({ threads })).toThrow(RequestError);
    }
});

test("a resident tensor begins with zeros and is changed in part", async () => {
    const { bundle, session } = loaded;
    const resident = session.createResident("float32", [1, 1, 64]);
    const cache = session.createCache(1, 4);
    const inputs = {
        inputs_embeds: resident,
        seqlens_k: { dtype: "int32", dims: [1], data: Int32Array.of(0) },
        total_sequence_length: { dtype: "int32", dims: [], data: Int32Array.of(1) },
        logits_to_keep: { dtype: "int64", dims: [1], data: BigInt64Array.of(1n) },
    } as const;
    const embedding = bundle.embedding(7);
    resident.write(0, embedding.subarray(0, 32));
    resident.write(32, embedding.subarray(32));
    const logits = await session.run({ inputs, cache, starts: [0], length: 1 });
    const expected = await runDense(bundle, session, { cache, starts: [0], ids: [[7]], keep: 1 });
    expect(logits).toEqual(expected);
});

test("a cache that does not fit into memory is an error of memory", () => {
    const shape = { caches: [{ layer: 0, heads: 1024, headDim: 65536 }], kvDtype: "float32" } as const;
    expect(() => new HostKvCache(shape, 1024, 65536)).toThrow(MemoryError);
});
