import { describe, expect, test } from "vitest";

import { BundleError } from "../../../src/errors.js";
import { parseManifest } from "../../../src/format/read-manifest.js";
import { bundleNames, hashed, patchedBundleFile, patchedCases, readBundleFile } from "../support/conformance.js";

const molkv = new TextDecoder().decode(readBundleFile("molkv", "manifest.json"));

async function refusal(bytes: Uint8Array): Promise<string> {
    const error: unknown = await parseManifest(bytes, "b/manifest.json").then(
        () => "nothing was refused",
        (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(BundleError);
    const { message } = error as BundleError;
    expect(message).not.toContain("\n");
    return message;
}

/** Return the manifest of the bundle "molkv" after a replacement of text. */
function changed(before: string | RegExp, after: string): Uint8Array {
    const text = molkv.replace(before, after);
    expect(text).not.toBe(molkv);
    return hashed(text);
}

test("the helper of these tests computes the hash of the exporter", () => {
    expect(hashed(molkv)).toEqual(readBundleFile("molkv", "manifest.json"));
});

interface RawManifest {
    readonly model: Readonly<Record<string, unknown>>;
    readonly graphs: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
    readonly tables: { readonly experts: Readonly<Record<string, unknown>> };
    readonly generation: Readonly<Record<string, unknown>>;
    readonly files: Readonly<Record<string, unknown>>;
    readonly sha256: string;
}

/** Return an object with the names of this driver. */
function camelCase(value: unknown): unknown {
    if (Array.isArray(value)) return value.map(camelCase);
    if (typeof value !== "object" || value === null) return value;
    const name = (key: string): string => key.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase());
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [name(key), camelCase(item)]));
}

/** Return what all families have in the parsed model. */
function expectedModel(model: RawManifest["model"]): object {
    return {
        vocabSize: model.vocab_size,
        hiddenSize: model.hidden_size,
        maxPositionEmbeddings: model.max_position_embeddings,
        expertWindow: model.expert_window ?? 0,
        expertLayers: model.expert_layers ?? Array.from({ length: model.num_hidden_layers as number }, (_, i) => i),
        kvCaches: Array.from(
            { length: (model.num_hidden_layers as number) - ((model.num_kv_shared_layers as number | undefined) ?? 0) },
            (_, layer) => ({ layer, heads: model.num_key_value_heads }),
        ),
    };
}

test.each(bundleNames)("the manifest of %s is read completely", async (name) => {
    const bytes = readBundleFile(name, "manifest.json");
    const raw = JSON.parse(new TextDecoder().decode(bytes)) as RawManifest;
    const manifest = await parseManifest(bytes, "manifest.json");
    expect(manifest.model).toMatchObject(expectedModel(raw.model));
    expect(manifest.graphs).toEqual(
        Object.entries(raw.graphs).map(([profile, graph]) => ({ profile, ...(camelCase(graph) as object) })),
    );
    expect({ ...manifest.experts, index: "token_id" }).toEqual(camelCase(raw.tables.experts));
    expect(manifest.generation).toEqual(camelCase(raw.generation));
    expect(Object.fromEntries(manifest.files)).toEqual(raw.files);
    expect(manifest.sha256).toBe(raw.sha256);
});

describe("manifests of conformance cases are refused", () => {
    // Later checks find the other ones. The manifests themselves are sound.
    const later = [
        "a foreign manifest",
        "another head size",
        "a larger vocabulary",
        "another table id",
        "another offset of a field",
        "inputs that the model does not call for",
        "outputs that the model does not call for",
        "another dtype of an input",
        "a window dtype that the graph does not have",
        "an operator that is not on the list",
        "a graph for a newer ONNX Runtime",
        "fewer layers share than in the graph",
        "other layers are sliding",
        "another size of per-layer embeddings",
        "no output of a layer that shares",
    ];
    const cases = patchedCases("damage").filter(({ bundle, patches, name }) => {
        const manifest = patchedBundleFile(bundle, "manifest.json", patches);
        const isChanged = patches.some((patch) => patch.file === "manifest.json");
        return manifest !== undefined && isChanged && !later.some((end) => name.endsWith(end));
    });
    test.each(cases)("$name", async ({ bundle, patches }) => {
        await refusal(patchedBundleFile(bundle, "manifest.json", patches)!);
    });
});

test.each<[string, string | RegExp, string, string]>([
    ["another version", '"schema_version": 4', '"schema_version": 5', "update this driver"],
    ["an old version", '"schema_version": 4', '"schema_version": 3', "export it again"],
    ["a fraction", '"schema_version": 4', '"schema_version": 4.0', "schema_version: found a number"],
    ["an unknown field", '"model": {', '"model": {"x\\ny": 1, ', 'model: found the unknown field "x\\ny"'],
    ["an unknown field of a tensor", '"shape": [', '"x": 1, "shape": [', "inputs[0]: found the unknown field"],
    ["a missing field", /"head_dim": \d+,\s*/, "", 'model: found no field "head_dim"'],
    ["an odd head", /"head_dim": \d+/, '"head_dim": 7', "model.head_dim: found 7, expected an even number"],
    ["no family", '"model_type": "molkv"', '"model_type": "dense"', 'expected "molkv" or "mole" or "gemma4_text"'],
    ["a large vocabulary", /"vocab_size": \d+/, '"vocab_size": 2147483648', "expected 1 to 2147483647"],
    ["too many layers", /"num_hidden_layers": \d+/, '"num_hidden_layers": 65537', "expected 1 to 65536"],
    ["a long context", /"max_position_embeddings": \d+/, '"max_position_embeddings": 16777217', "1 to 16777216"],
    ["theta 0", /"rope_theta": [\d.]+/, '"rope_theta": 0', "rope_theta: found 0, expected a number above 0"],
    ["heads", /"num_key_value_heads": \d+/, '"num_key_value_heads": 3', "a multiple of num_key_value_heads, 3"],
    ["no experts", /"num_experts": \d+/, '"num_experts": 0', "model.expert_layers: found"],
    ["layers that descend", /"expert_layers": \[[^\]]*\]/, '"expert_layers": [1, 0]', "model.expert_layers[1]"],
    ["no window", /("model": \{[^}]*"expert_window": )\d+/, "$10", "expert_window: found 0"],
    ["a profile", '"cpu": {', '"gpu": {', "graphs.gpu: found a profile of this name"],
    ["a dtype of weights", /"dense_dtype": "\w+"/, '"dense_dtype": "qdq-int8"', "dense_dtype"],
    ["a dtype of the cache", /"kv_dtype": "\w+"/, '"kv_dtype": "float16"', 'expected "float32" or "int8"'],
    ["blocks", /"block_size": \d+/, '"block_size": 32', "graphs.cpu.block_size: found 32, expected 0"],
    ["a version of two numbers", /"min_onnxruntime": "[\d.]+"/, '"min_onnxruntime": "1.25"', "min_onnxruntime"],
    ["a version of 6 digits", /"min_onnxruntime": "[\d.]+"/, '"min_onnxruntime": "1.25.123456"', "min_onnxruntime"],
    ["another index", '"index": "token_id"', '"index": "row"', 'tables.experts.index: found "row"'],
    ["an id in upper case", /"id": "[0-9a-f]{15}/, '"id": "ABCDEFABCDEFABC', "tables.experts.id"],
    ["a stride of 0", /"stride": \d+/, '"stride": 0', "tables.experts.stride: found 0"],
    ["a negative offset", /"offset": 0/, '"offset": -1', "fields[0].offset: found -1"],
    ["an end twice as long", /"eos_token_ids": \[[^\]]*\]/, '"eos_token_ids": [61]', "eos_token_ids[0]: found 61"],
    ["a temperature", /"temperature": [\d.]+/, '"temperature": 1e-7', "found 1e-7, expected 0, or 1e-6 to 1e6"],
    ["top_p 0", /"top_p": [\d.]+/, '"top_p": 0', "generation.sampling.top_p: found 0"],
    ["min_p", /"min_p": [\d.]+/, '"min_p": 1.5', "expected 0 to 1"],
    ["a penalty", /"repetition_penalty": [\d.]+/, '"repetition_penalty": 101', "expected 0.01 to 100"],
    ["top_k", /"top_k": \d+/, '"top_k": 1.0', "top_k: found a number, expected an integer"],
    ["a template", /"chat_template": ""/, '"chat_template": "chat_template.jinja"', "listed under files"],
    ["a name", /"golden.safetensors": \{/, '"..": {', 'files: found the name ".."'],
    ["a name with NUL", /"golden.safetensors": \{/, '"a\\u0000b": {', 'files: found the name "a\\u0000b"'],
    ["provenance", '"tools": {', '"tools": {"x": 1, ', "provenance.tools.x: found an integer"],
])("%s is refused", async (_name, before, after, why) => {
    expect(await refusal(changed(before, after))).toContain(why);
});

test("the context of profile cpu may be shorter than that of the model", async () => {
    const context = /"context_length": 160/;
    const { model, graphs } = await parseManifest(changed(context, '"context_length": 48'), "manifest.json");
    expect([model.maxPositionEmbeddings, graphs[0]!.contextLength]).toEqual([160, 48]);
    expect(await refusal(changed(context, '"context_length": 0'))).toContain("found 0, expected 1 to 160");
    expect(await refusal(changed(context, '"context_length": 161'))).toContain("found 161, expected 1 to 160");
});

test.each([
    ["a window", /("model": \{[^}]*"expert_window": )0/, "$15", "model.expert_window: found 5, expected 0"],
    ["a rotation", '"expert_rope": false', '"expert_rope": true', "model.expert_rope: found true"],
    ["a norm", '"expert_qk_norm": false', '"expert_qk_norm": true', "model.expert_qk_norm: found true"],
    ["a gate", '"expert_gate": "none"', '"expert_gate": "sigmoid"', 'expert_gate: found "sigmoid", expected "none"'],
])("a dense model with %s is refused", async (_name, before, after, why) => {
    const dense = new TextDecoder().decode(readBundleFile("dense", "manifest.json"));
    expect(dense.replace(before, after)).not.toBe(dense);
    expect(await refusal(hashed(dense.replace(before, after)))).toContain(why);
});

describe("files of a graph are refused:", () => {
    interface Files {
        graphs: Record<string, { files: { length: number }[] }>;
    }
    async function refusalOf(bundle: string, change: (files: { length: number }[]) => void): Promise<string> {
        const manifest = JSON.parse(new TextDecoder().decode(readBundleFile(bundle, "manifest.json"))) as Files;
        change(Object.values(manifest.graphs)[0]!.files);
        return refusal(hashed(JSON.stringify(manifest, undefined, 1)));
    }

    test("two in profile cpu, and none", async () => {
        expect(await refusalOf("molkv", (files) => files.push({ ...files[0]!, length: 1 }))).toContain("a second file");
        expect(await refusalOf("molkv", (files) => (files.length = 0))).toContain("found no file");
    });

    test("static lengths that do not ascend from 1", async () => {
        expect(await refusalOf("coreml", (files) => files.reverse())).toContain("files[0].length: found 8, expected 1");
        expect(await refusalOf("coreml", (files) => (files[1]!.length = 1))).toContain("files[1].length: found 1");
        expect(await refusalOf("coreml", (files) => (files[1]!.length = 100_000))).toContain("found 100000");
    });
});

test("a changed byte anywhere is refused", async () => {
    const bytes = readBundleFile("molkv", "manifest.json");
    for (let at = 0; at < bytes.length; at += 13) {
        const copy = bytes.slice();
        copy[at]! ^= 1;
        await refusal(copy);
    }
});

test("a hash in escape sequences is refused", async () => {
    const text = molkv.replace(
        /("sha256": "[0-9a-f]{20})([0-9a-f])([0-9a-f]{43}"\s*\}\s*)$/,
        (_, ...parts: string[]) => {
            const code = parts[1]!.charCodeAt(0).toString(16).padStart(4, "0");
            return `${parts[0]!}\\u${code}${parts[2]!}`;
        },
    );
    expect(await refusal(new TextEncoder().encode(text))).toContain("digits with escape sequences");
});
