import { describe, expect, it } from "vitest";

import type { Backend, GraphFiles, GraphSession } from "../../../src/backend.js";
import { BundleError, MemoryError, ProviderError, RequestError } from "../../../src/errors.js";
import { graphInterface } from "../../../src/format/graph-interface.js";
import type { Graph } from "../../../src/format/manifest.js";
import { decodeOnnx } from "../../../src/format/onnx-file.js";
import { recordFields } from "../../../src/format/record.js";
import type { Progress } from "../../../src/options.js";
import { openBundle } from "../../../src/runtime/bundle.js";
import { checkVersion, loadModel } from "../../../src/runtime/load-model.js";
import type { RecordReader, Source } from "../../../src/source.js";
import { nodeFolder } from "../../../src/sources/node-folder.js";
import { hashed, readBundleFile } from "../support/conformance.js";
import { gemma4, GEMMA4 } from "../support/gemma4.js";
import { bundlePath } from "../support/run-cases.js";

/** Return a source over a conformance bundle, with other methods in the place of some of its own. */
function source(bundle: string, methods: Partial<Source> = {}): Source {
    const real = nodeFolder(bundlePath(bundle));
    return {
        where: real.where,
        stats: real.stats,
        checksShards: real.checksShards,
        manifest: (limit, options) => real.manifest(limit, options),
        checkSizes: (files, options) => real.checkSizes(files, options),
        load: (file, options) => real.load(file, options),
        localFile: (file, options) => real.localFile!(file, options),
        readRange: (file, offset, length, options) => real.readRange(file, offset, length, options),
        openTable: (table) => real.openTable(table),
        close: () => real.close(),
        ...methods,
    };
}

class FakeBackend implements Backend {
    readonly name = "fake";
    readonly threads = 1;
    readonly loaded: GraphFiles[] = [];
    released = 0;

    constructor(
        readonly found = "1.30.0",
        readonly reorder: (names: string[]) => string[] = (names) => names,
    ) {}

    version(): Promise<string> {
        return Promise.resolve(this.found);
    }

    async load(files: GraphFiles): Promise<GraphSession> {
        this.loaded.push(files);
        const { graphFile } = await openBundle(source("kv-int8"));
        const session = {
            inputNames: this.reorder(graphFile.inputs.map(({ name }) => name)),
            outputNames: graphFile.outputs.map(({ name }) => name),
            release: () => {
                this.released++;
                return Promise.resolve();
            },
        };
        return session as unknown as GraphSession;
    }
}

describe("openBundle", () => {
    it("gives the configuration of the graph of profile cpu", async () => {
        const { config, graph, graphFile, manifest } = await openBundle(source("molkv"));
        expect(graph.profile).toBe("cpu");
        expect(graphFile.length).toBe(0);
        expect([config.maxPositionEmbeddings, config.expertWindow]).toEqual([160, 5]);
        expect(manifest.experts.rows).toBe(61);
    });

    it("names the profiles of a bundle without profile cpu", async () => {
        await expect(openBundle(source("coreml"))).rejects.toThrow(
            /bundles\/coreml: has graphs of profile "coreml", expected "cpu"; add one with: molkv-export export/,
        );
    });

    it("makes the checks of the source", async () => {
        const bad = new BundleError("wrong size");
        await expect(openBundle(source("molkv", { checkSizes: () => Promise.reject(bad) }))).rejects.toBe(bad);
        const range = (): Promise<Uint8Array> => Promise.resolve(new Uint8Array(4096));
        await expect(openBundle(source("molkv", { readRange: range }))).rejects.toThrow(BundleError);
        await openBundle(source("molkv", { readRange: range, checksShards: false }));
    });

    it("stops when it is aborted", async () => {
        const reason = new Error("stop");
        const controller = new AbortController();
        const real = source("molkv");
        const aborting = source("molkv", {
            manifest: (limit) => {
                controller.abort(reason);
                return real.manifest(limit);
            },
        });
        await expect(openBundle(aborting, { signal: controller.signal })).rejects.toBe(reason);
    });
});

describe("Bundle.readChecked", () => {
    /** A source with a cache whose files are damaged until one is loaded with `refresh`, or always. */
    function damaged(cache: "memory" | "none", always: boolean): { source: Source; refreshes: unknown[] } {
        const real = nodeFolder(bundlePath("molkv"));
        const refreshes: unknown[] = [];
        const load: Source["load"] = async (file, options) => {
            refreshes.push(options?.refresh);
            const content = await real.load(file, options);
            if (always || options?.refresh !== true) content[5]! ^= 1;
            return content;
        };
        return { source: source("molkv", { load, stats: { ...real.stats, cache } }), refreshes };
    }

    it("loads a file again without the cache, if its hash is wrong", async () => {
        const { source: once, refreshes } = damaged("memory", false);
        const bundle = await openBundle(once);
        const expected = await nodeFolder(bundlePath("molkv")).load({
            name: "model.onnx",
            size: bundle.size("model.onnx"),
            sha256: "",
        });
        expect(await bundle.readChecked("model.onnx")).toEqual(expected);
        expect(refreshes).toEqual([false, true]);
    });

    it("refuses a file whose hash stays wrong", async () => {
        const { source: cached, refreshes } = damaged("memory", true);
        await expect((await openBundle(cached)).readChecked("model.onnx")).rejects.toThrow(
            /model\.onnx: has sha256 [0-9a-f]{12}\.\.\., the manifest says/,
        );
        expect(refreshes).toEqual([false, true]);
        const plain = damaged("none", true);
        await expect((await openBundle(plain.source)).readChecked("model.onnx")).rejects.toThrow(BundleError);
        expect(plain.refreshes).toEqual([false]);
    });

    it("refuses other files, and files that do not fit into memory", async () => {
        const load = (): Promise<Uint8Array> => Promise.reject(new RangeError("Array buffer allocation failed"));
        const bundle = await openBundle(source("molkv", { load }));
        await expect(bundle.readChecked("other.bin")).rejects.toThrow(BundleError);
        await expect(bundle.readChecked("model.onnx")).rejects.toThrow(MemoryError);
    });
});

/** Return a manifest for the files of "dense", of a Gemma 4 model whose layer 1 shares the KV cache of layer 0. */
function sharingManifest(): { bytes: Uint8Array; inputNames: string[] } {
    const manifest = JSON.parse(new TextDecoder().decode(readBundleFile("dense", "manifest.json"))) as DenseManifest;
    const fields = {
        ...GEMMA4,
        ...Object.fromEntries(DENSE_FIELDS.map((name) => [name, manifest.model[name]])),
        layer_types: ["full_attention", "full_attention"],
        global_head_dim: manifest.model.head_dim,
        num_kv_shared_layers: 1,
    };
    const model = gemma4(fields);
    const { experts } = manifest.tables;
    const record = recordFields(model, "float32");
    const [shard] = experts.shards;
    manifest.files[shard!.file]!.size = shard!.data_offset + experts.rows * record.stride;
    const [file] = manifest.graphs.cpu.files;
    const tensors = graphInterface(model, { kvDtype: "float32" } as Graph);
    Object.assign(file!, tensors);
    Object.assign(experts, record);
    const bytes = hashed(JSON.stringify({ ...manifest, model: fields }, undefined, 1));
    return { bytes, inputNames: tensors.inputs.map(({ name }) => name) };
}

/** The fields in which the model of `sharingManifest` is that of "dense". */
const DENSE_FIELDS = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
];

interface DenseManifest {
    readonly model: Readonly<Record<string, unknown>>;
    readonly graphs: { readonly cpu: { readonly files: readonly object[] } };
    readonly tables: {
        readonly experts: { rows: number; shards: readonly { readonly file: string; readonly data_offset: number }[] };
    };
    readonly files: Readonly<Record<string, { size: number }>>;
}

describe("loadModel", () => {
    it("gives the backend the checked files, and reports the bytes", async () => {
        const backend = new FakeBackend();
        const progress: Progress[] = [];
        const loaded = await loadModel(source("kv-int8"), backend, { onProgress: (one) => progress.push(one) });
        const [files] = backend.loaded;
        expect(files).toMatchObject({
            caches: [{ layer: 0 }, { layer: 1 }],
            kvDtype: "int8",
            data: { name: "model.onnx.data" },
        });
        const { data } = files!;
        const totalBytes = files!.graph.length + ("content" in data ? data.content.length : 0);
        expect(progress[0]).toEqual({ phase: "manifest", file: "", loadedBytes: 0, totalBytes: 0 });
        expect(progress.at(-1)).toEqual({ phase: "load", file: "", loadedBytes: totalBytes, totalBytes });
        const downloads = progress.filter(({ phase }) => phase === "download");
        expect(downloads.at(-1)!.loadedBytes).toBe(totalBytes);
        expect(new Set(downloads.map(({ file }) => file))).toEqual(new Set(["model.onnx", "model.onnx.data"]));
        await loaded.close();
        expect(backend.released).toBe(1);
    });

    it("asks a backend for no cache that a layer shares", async () => {
        const { bytes, inputNames } = sharingManifest();
        const loaded: GraphFiles[] = [];
        const load = (files: GraphFiles): Promise<GraphSession> => {
            loaded.push(files);
            const outputNames = decodeOnnx(files.graph, "m.onnx").outputs;
            return Promise.resolve({ inputNames, outputNames } as unknown as GraphSession);
        };
        const sharing = source("dense", {
            manifest: () => Promise.resolve(bytes),
            checkSizes: () => Promise.resolve(),
            checksShards: false,
            openTable: () => Promise.resolve({} as RecordReader),
        });
        await loadModel(sharing, { name: "fake", threads: 1, version: () => Promise.resolve("1.30.0"), load });
        expect(loaded[0]!.caches).toEqual([{ layer: 0, heads: 2, headDim: 16 }]);
        const { outputs } = decodeOnnx(loaded[0]!.graph, "m.onnx");
        expect(outputs).toEqual(["logits", "present.0.key", "present.0.value"]);
    });

    it("gives the folder of the weights to a backend that reads files", async () => {
        const backend = new FakeBackend();
        const progress: Progress[] = [];
        const real = source("kv-int8");
        const options = { onProgress: (one: Progress) => progress.push(one) };
        await (await loadModel(real, Object.assign(backend, { readsFiles: true }), options)).close();
        expect(backend.loaded[0]!.data).toEqual({ name: "model.onnx.data", folder: real.where });
        const { loadedBytes, totalBytes } = progress.filter(({ phase }) => phase === "download").at(-1)!;
        expect(loadedBytes).toBe(totalBytes);

        const other = { localFile: () => Promise.resolve({ folder: "/", sha256: "0".repeat(64) }) };
        const damaged = loadModel(source("kv-int8", other), backend);
        await expect(damaged).rejects.toThrow(/model\.onnx\.data: has sha256 000000000000\.\.\./);
    });

    it("refuses an older ONNX Runtime before it reads a graph", async () => {
        const backend = new FakeBackend("1.24.3");
        const load = (): Promise<Uint8Array> => Promise.reject(new Error("a file was read"));
        await expect(loadModel(source("kv-int8", { load }), backend)).rejects.toThrow(ProviderError);
    });

    it("refuses a session with other inputs, and releases it", async () => {
        const backend = new FakeBackend("1.30.0", (names) => [names[1]!, names[0]!, ...names.slice(2)]);
        await expect(loadModel(source("kv-int8"), backend)).rejects.toThrow(
            /model\.onnx: inputs in ONNX Runtime: found position_ids at place 0, the manifest says inputs_embeds/,
        );
        expect(backend.released).toBe(1);
    });

    it("releases the graph if the table cannot be opened", async () => {
        const backend = new FakeBackend();
        const bad = new BundleError("no table");
        const openTable = (): Promise<never> => Promise.reject(bad);
        await expect(loadModel(source("kv-int8", { openTable }), backend)).rejects.toBe(bad);
        expect(backend.released).toBe(1);
    });

    it("ends the other download if one fails or the caller aborts", async () => {
        const bad = new BundleError("not found");
        const signals: AbortSignal[] = [];
        const waiting = (signal: AbortSignal): Promise<never> =>
            new Promise((_, reject) => {
                signals.push(signal);
                signal.addEventListener("abort", () => {
                    reject(signal.reason as Error);
                });
            });
        const load: Source["load"] = ({ name }, options) =>
            name === "model.onnx" ? Promise.reject(bad) : waiting(options!.signal!);
        await expect(loadModel(source("kv-int8", { load }), new FakeBackend())).rejects.toBe(bad);
        expect(signals[0]!.aborted).toBe(true);

        const controller = new AbortController();
        const reason = new Error("stop");
        const both = source("kv-int8", {
            load: (_, options) => {
                setTimeout(() => {
                    controller.abort(reason);
                });
                return waiting(options!.signal!);
            },
        });
        await expect(loadModel(both, new FakeBackend(), { signal: controller.signal })).rejects.toBe(reason);
    });

    it("refuses an impossible prefillChunk", async () => {
        await expect(loadModel(source("kv-int8"), new FakeBackend(), { prefillChunk: 0 })).rejects.toThrow(
            RequestError,
        );
    });
});

describe("checkVersion", () => {
    it.each(["1.25.1", "1.25.2", "1.26.0-dev.20260101", "1.100.0", "2.0.0"])("accepts %s", (found) => {
        checkVersion("fake", found, "1.25.1");
    });

    it.each(["1.25.0", "1.24.9", "0.99.9", "", "latest", "1.25"])("refuses %j", (found) => {
        expect(() => {
            checkVersion("fake", found, "1.25.1");
        }).toThrow(ProviderError);
    });
});
