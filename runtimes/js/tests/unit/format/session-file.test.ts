import { createHash } from "node:crypto";

import { describe, expect, test } from "vitest";

import { RequestError } from "../../../src/errors.js";
import { parseManifest } from "../../../src/format/read-manifest.js";
import { parseSession, sessionGraph, writeSession, type SessionOwner } from "../../../src/format/session-file.js";
import { patched, patchedCases, readBundleFile, readSession } from "../support/conformance.js";
import { gemma4 } from "../support/gemma4.js";

type Owner = SessionOwner<"float32" | "float16" | "int8">;

async function ownerOf(bundle: string): Promise<Owner> {
    const manifest = await parseManifest(readBundleFile(bundle, "manifest.json"), "manifest.json");
    const graph = manifest.graphs[0]!;
    return {
        tableId: manifest.experts.id,
        graph: await sessionGraph(manifest, graph),
        config: { ...manifest.model, maxPositionEmbeddings: graph.contextLength },
        kvDtype: graph.kvDtype,
    };
}

interface RawTensor {
    readonly dtype: string;
    readonly shape: number[];
    readonly data_offsets: [number, number];
}

/** Return the tensors of a safetensors file, with JSON.parse. */
function rawTensors(bytes: Uint8Array): Map<string, RawTensor & { readonly data: Buffer }> {
    const start = 8 + Number(Buffer.from(bytes).readBigUInt64LE(0));
    const header = JSON.parse(Buffer.from(bytes.subarray(8, start)).toString()) as Record<string, RawTensor>;
    const entries = Object.entries(header).filter(([name]) => name !== "__metadata__");
    return new Map(
        entries.map(([name, tensor]) => {
            const [begin, end] = tensor.data_offsets;
            return [name, { ...tensor, data: Buffer.from(bytes.subarray(start + begin, start + end)) }];
        }),
    );
}

function bytesOf(numbers: ArrayBufferView): Buffer {
    return Buffer.from(numbers.buffer, numbers.byteOffset, numbers.byteLength);
}

async function refusal(bytes: Uint8Array, owner: Owner): Promise<string> {
    const error: unknown = await parseSession(bytes, owner, "s.safetensors").then(
        () => "nothing was refused",
        (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(RequestError);
    const { message } = error as RequestError;
    expect(message).toMatch(/^s\.safetensors/);
    expect(message).not.toContain("\n");
    return message;
}

const names = ["coreml", "kv-int8", "mole", "molkv"];

describe.each(names)("the saved session of %s", (name) => {
    const bytes = readSession(`${name}.safetensors`);

    test.each([0, 1, 2, 3])("is read at byte %i of a buffer", async (shift) => {
        const shifted = new Uint8Array(bytes.length + shift).subarray(shift);
        shifted.set(bytes);
        const session = await parseSession(shifted, await ownerOf(name), "s.safetensors");
        const raw = rawTensors(bytes);
        const { data } = raw.get("input_ids")!;
        expect(session.ids).toEqual(Array.from({ length: data.length / 4 }, (_, i) => data.readInt32LE(4 * i)));
        expect(session.length).toBe(raw.get("past_key_values.0.key")!.shape[1]);
        expect(session.layers.length).toBe((raw.size - 1) / 2);
        session.layers.forEach(({ key, value }, layer) => {
            expect(bytesOf(key).equals(raw.get(`past_key_values.${layer}.key`)!.data)).toBe(true);
            expect(bytesOf(value).equals(raw.get(`past_key_values.${layer}.value`)!.data)).toBe(true);
        });
    });

    test("is the same after a write", async () => {
        const owner = await ownerOf(name);
        const session = await parseSession(bytes, owner, "s.safetensors");
        const messages = [{ role: "user", content: `ä€😀"\\\n${"0".repeat(64)}`, __proto__x: "" }];
        const written = await writeSession(owner, { ...session, messages });
        expect(await parseSession(written, owner, "s.safetensors")).toEqual({ ...session, messages });
        const text = Buffer.from(written).toString("latin1");
        const digits = /"sha256":"([0-9a-f]{64})"/.exec(text)![1]!;
        const zeroed = Buffer.from(text.replace(digits, "0".repeat(64)), "latin1");
        expect(createHash("sha256").update(zeroed).digest("hex")).toBe(digits);
    });
});

describe("conformance cases", () => {
    test.each(patchedCases("session-refused"))("$name", async ({ bundle, session, patches }) => {
        await refusal(patched(readSession(session!), patches), await ownerOf(bundle));
    });
});

test("every changed byte is found", async () => {
    const owner = await ownerOf("molkv");
    const bytes = readSession("molkv.safetensors");
    for (let at = 0; at < bytes.length; at += 29) {
        const copy = bytes.slice();
        copy[at]! ^= 1;
        await refusal(copy, owner);
    }
});

/** Return a file after a change of its header, with the right hash. */
function rewritten(before: string | RegExp, after: string): Uint8Array {
    const file = Buffer.from(readSession("molkv.safetensors"));
    const start = 8 + Number(file.readBigUInt64LE(0));
    const old = file.subarray(8, start).toString("latin1");
    const header = old.replace(before, after).replace(/("sha256":\s*")[0-9a-f]{64}/, `$1${"0".repeat(64)}`);
    expect(header).not.toBe(old);
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    const bytes = Buffer.concat([length, Buffer.from(header, "latin1"), file.subarray(start)]);
    const digits = createHash("sha256").update(bytes).digest("hex");
    return new Uint8Array(Buffer.from(bytes.toString("latin1").replace("0".repeat(64), digits), "latin1"));
}

test.each<[string, string | RegExp, string, string]>([
    ["tables of another type", /"tables":\s*"[^,]*\}"/, '"tables":"[]"', "found a list, expected an object"],
    ["a table twice", /"tables":\s*"\{/, '"tables":"{\\"experts\\":\\"\\",', 'the key \\"experts\\" a second time'],
    ["a further table", /"tables":\s*"\{/, '"tables":"{\\"x\\":\\"\\",', 'the unknown field "x"'],
    ["no tables", /"tables":/, '"tablez":', "is not valid JSON"],
    ["messages of numbers", "{", '{"__metadata__x":1,', "found an integer"],
    ["messages that are no list", /"__metadata__":\s*\{/, '"__metadata__":{"messages":"{}",', "expected a list"],
    [
        "a message of a number",
        /"__metadata__":\s*\{/,
        '"__metadata__":{"messages":"[{\\"a\\":1}]",',
        "[0].a: found an integer",
    ],
    ["another dtype of ids", /"I32"/, '"F32"', "input_ids: found F32"],
    ["another dtype of the cache", /"F32"/, '"I32"', "past_key_values"],
    ["a shape", /("past_key_values.1.value":[^[]*\[)(\d+),\s*(\d+),\s*(\d+)/, "$1$2,$4,$3", "past_key_values.1.value"],
])("%s is refused", async (_name, before, after, why) => {
    expect(await refusal(rewritten(before, after), await ownerOf("molkv"))).toContain(why.replaceAll("\\", ""));
});

describe("numbers that are not finite", () => {
    test.each<[Owner["kvDtype"], Float32Array | Uint16Array, string]>([
        ["float32", new Float32Array([1, -3e38, 1e-40, NaN]), "found NaN"],
        ["float32", new Float32Array([1, 2, -Infinity, 3]), "found NaN"],
        ["float16", new Uint16Array([0x3c00, 0x7bff, 0xfc00, 1]), "found NaN"],
    ])("%s", async (kvDtype, key, why) => {
        const molkv = await ownerOf("molkv");
        const config = { ...molkv.config, kvCaches: [{ layer: 0, heads: 1, headDim: 4 }] };
        const owner: Owner = { ...molkv, config, kvDtype };
        const value = key.slice().fill(0);
        const saved = { ids: [1], length: 1, layers: [{ key, value }] };
        expect(await refusal(await writeSession(owner, saved), owner)).toContain(why);
        const fine = { ids: [1], length: 1, layers: [{ key: value, value }] };
        expect(await parseSession(await writeSession(owner, fine), owner, "s")).toEqual(fine);
    });
});

test("a text without keys and values is saved, and one with too many is refused", async () => {
    const owner = await ownerOf("molkv");
    const { kvCaches, vocabSize } = owner.config;
    const saved = (ids: readonly number[], length: number) => {
        return writeSession(owner, {
            ids,
            length,
            layers: kvCaches.map(({ heads, headDim }) => {
                const key = new Float32Array(heads * headDim * length);
                return { key, value: key };
            }),
        });
    };
    expect(await parseSession(await saved([0, vocabSize - 1], 0), owner, "s")).toMatchObject({ length: 0 });
    expect(await refusal(await saved([1, 2], 3), owner)).toContain("found 3 tokens, expected at most 2");
    expect(await refusal(await saved([], 0), owner)).toContain("input_ids: found I32 [0]");
    expect(await refusal(await saved([vocabSize], 0), owner)).toContain(`input_ids: found ${vocabSize}`);
    expect(await refusal(await saved([-1], 0), owner)).toContain("input_ids: found -1");
});

test("caches of different shapes are saved by their layers", async () => {
    const owner = { tableId: "0123456789abcdef", graph: "g", config: gemma4(), kvDtype: "int8" } as const;
    const layers = [8, 12, 8].map((size, layer) => {
        const key = Int8Array.from({ length: 2 * 3 * size }, (_, i) => layer + i);
        return { key, value: key.map((number) => -number) };
    });
    const bytes = await writeSession(owner, { ids: [1, 2, 3, 4], length: 3, layers });
    const shapes = [...rawTensors(bytes)].map(([name, { shape }]) => `${name} ${shape.join()}`);
    const names = ["0.key 2,3,8", "0.value 2,3,8", "1.key 2,3,12", "1.value 2,3,12", "2.key 2,3,8", "2.value 2,3,8"];
    expect(shapes.sort()).toEqual(["input_ids 4", ...names.map((name) => `past_key_values.${name}`)]);
    expect(await parseSession(bytes, owner, "s")).toMatchObject({ ids: [1, 2, 3, 4], length: 3, layers });
    const unshared = { ...owner, config: gemma4({ num_kv_shared_layers: 1 }) };
    expect(await refusal(bytes, unshared)).toContain("found 7 tensors, expected 9 for this model");
    const larger = { ...owner, config: gemma4({ global_head_dim: 14 }) };
    const message = "past_key_values.1.key: found I8 [2, 3, 12], expected I8 [2, 3, 14]";
    expect(await refusal(bytes, larger)).toContain(message);
});

test("messages that are not Unicode are not saved", async () => {
    const owner = await ownerOf("molkv");
    const saved = { ids: [1], length: 0, layers: [], messages: [{ role: "\ud800" }] };
    await expect(writeSession(owner, saved)).rejects.toThrow(RequestError);
});
