import { createHash } from "node:crypto";

import { describe, expect, test } from "vitest";

import { BundleError } from "../../../src/errors.js";
import { crc32 } from "../../../src/format/crc32.js";
import { checkInterface, graphInterface } from "../../../src/format/graph-interface.js";
import type { Manifest } from "../../../src/format/manifest.js";
import { parseManifest } from "../../../src/format/read-manifest.js";
import { checkRecord, isSoundRecord, recordChecksum, recordFields } from "../../../src/format/record.js";
import { RecordDecoder } from "../../../src/format/record-decoder.js";
import { bundleNames, patchedBundleFile, patchedCases, readBundleFile } from "../support/conformance.js";

async function manifestOf(bundle: string): Promise<Manifest> {
    return parseManifest(readBundleFile(bundle, "manifest.json"), `${bundle}/manifest.json`);
}

/** Return the records of a bundle. Every second one begins at an odd byte of its buffer. */
function recordsOf(bundle: string, { experts }: Manifest): Uint8Array[] {
    return experts.shards.flatMap((shard) => {
        const bytes = readBundleFile(bundle, shard.file);
        return Array.from({ length: shard.count }, (_, i) => {
            const start = shard.dataOffset + i * experts.stride;
            const shifted = new Uint8Array(experts.stride + 1).subarray(i % 2);
            shifted.set(bytes.subarray(start, start + experts.stride));
            return shifted.subarray(0, experts.stride);
        });
    });
}

function bytesOf(numbers: Float32Array | Int8Array): Uint8Array {
    return new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);
}

// SHA-256 (16 digits) of all records of a bundle, decoded by a program with numpy: the float32 numbers of embedding,
// keys and values; and the codes and scales of an int8 window.
const decoded: Readonly<Record<string, readonly [string, string]>> = {
    "byte-fallback": ["4be7ed4533efd207", "2ac5bf18ffa0919f"],
    bytes: ["d7c536538f45f63c", "b5dfe8cf4f7374d9"],
    coreml: ["8af582b6922eaa8a", "5c9c80c5337bdee7"],
    dense: ["64aa12e9166bcb2b", "e3b0c44298fc1c14"],
    "dense-int4": ["4eee3577f232a44a", "e99349f283b8f9ae"],
    "dense-int8": ["718f265d0cc58e41", "9404d4694ae19d16"],
    "experts-int4": ["3b2274f20ebffb65", "79759c97b292ddc0"],
    "experts-int8": ["4fbfc2a785f32b8a", "daf67674196ae667"],
    "experts-nf4": ["82f448c9ea16070b", "46caf0d606cee93d"],
    gemma4: ["d525d2b7d105b1c9", "85647d49a66cdf15"],
    "kv-int8": ["2279add5eaac777d", "1757368150e1700e"],
    mole: ["2abdc7ebb9209093", "fd2026799125b174"],
    molkv: ["e70bfa668f0239af", "0335fb216748cf1f"],
    "molkv-foreign": ["74e83f59c3dfe913", "9a8c8b45bbf5f5a5"],
    nnapi: ["755c990f922ea503", "6c4163e1930ce8b7"],
    "window-int8": ["36566e8da3f79113", "7630caf547855a43"],
    "window-int8-float16": ["5b25223f160dbbc3", "8b5793a8eb5d8a21"],
};

describe.each(bundleNames)("bundle %s", (name) => {
    test("has the layout of the model", async () => {
        const { model, experts, graphs } = await manifestOf(name);
        expect(recordFields(model, experts.dtype)).toEqual({ fields: experts.fields, stride: experts.stride });
        checkRecord(model, experts, "manifest.json");
        for (const graph of graphs.filter(({ profile }) => profile === "cpu")) {
            const [file] = graph.files;
            expect(graphInterface(model, graph)).toEqual({ inputs: file!.inputs, outputs: file!.outputs });
            checkInterface(model, graph, file!, "model.onnx");
        }
    });

    test("has sound records, and every changed byte of a record is found", async () => {
        const manifest = await manifestOf(name);
        const records = recordsOf(name, manifest);
        const { id } = manifest.experts;
        expect(records.map((record, row) => isSoundRecord(crc32, id, row, record))).not.toContain(false);
        const record = records[5]!;
        expect(isSoundRecord(crc32, id, 4, record)).toBe(false);
        expect(isSoundRecord(crc32, "0123456789abcdef", 5, record)).toBe(false);
        for (let at = 0; at < record.length; at += 7) {
            record[at]! ^= 16;
            expect(isSoundRecord(crc32, id, 5, record)).toBe(false);
            record[at]! ^= 16;
        }
    });

    test("is decoded to the bit", async () => {
        const manifest = await manifestOf(name);
        const { model } = manifest;
        const decoder = new RecordDecoder(manifest.experts, model);
        const floats = createHash("sha256");
        const window = createHash("sha256");
        const attention = model.expertAttention;
        const keyCount = attention === undefined ? 0 : attention.experts * attention.keySize;
        const valueCount = model.expertValueShape.reduce((product, size) => product * size, 1);
        const out = new Float32Array(3 + Math.max(keyCount, valueCount, model.hiddenSize)).fill(NaN);
        const add = (count: number): void => {
            expect(out.subarray(0, 3)).toEqual(new Float32Array(3).fill(NaN));
            floats.update(bytesOf(out.subarray(3, 3 + count)));
            out.fill(NaN);
        };
        const codes = new Int8Array(1 + valueCount);
        const scales = new Float32Array(2 + valueCount / model.expertValueShape.at(-1)!);
        for (const record of recordsOf(name, manifest)) {
            decoder.embedding(record, out, 3);
            add(model.hiddenSize);
            for (let layer = 0; layer < model.expertLayers.length; layer++) {
                if (attention !== undefined) {
                    decoder.keys(record, layer, out, 3);
                    add(keyCount);
                }
                decoder.values(record, layer, out, 3);
                add(valueCount);
                decoder.codes(record, layer, codes, 1, scales, 2);
                window.update(bytesOf(codes.subarray(1)));
                window.update(bytesOf(scales.subarray(2)));
            }
        }
        expect([floats.digest("hex").slice(0, 16), window.digest("hex").slice(0, 16)]).toEqual(decoded[name]);
    });
});

test("the checksum is that of the document", () => {
    expect(recordChecksum(crc32, "0123456789abcdef", 258, new Uint8Array(64))).toBe(0xde7960de);
});

test("a record of 16,384 bytes or more has a stride of whole pages", async () => {
    const { model } = await manifestOf("dense");
    const stride = (hiddenSize: number) => recordFields({ ...model, hiddenSize }, "float32").stride;
    expect(stride(4079)).toBe(16_320);
    expect(stride(4080)).toBe(16_384);
    expect(stride(4094)).toBe(16_384);
    expect(stride(4095)).toBe(16_384);
    expect(stride(4096)).toBe(20_480);
});

test("a value must have a multiple of the numbers that share a scale", async () => {
    const { model } = await manifestOf("experts-int4");
    expect(() => recordFields({ ...model, expertValueShape: [2, 48] }, "int4")).toThrow(BundleError);
    expect(() => recordFields({ ...model, expertValueShape: [96] }, "nf4")).toThrow(
        "dtype: found nf4 for values of 96 numbers",
    );
});

test("sizes beyond all memory are refused, not allocated", async () => {
    const { model, experts } = await manifestOf("experts-int8");
    const size = 2 ** 31 - 1;
    const attention = { experts: size, keySize: size, ropeTheta: undefined };
    const huge = { ...model, hiddenSize: size, expertValueShape: [size, size], expertAttention: attention };
    expect(() => {
        checkRecord(huge, experts, "manifest.json");
    }).toThrow(BundleError);
});

describe("an int8 window rounds", () => {
    async function round(numbers: readonly number[]): Promise<{ codes: number[]; scale: number }> {
        const { model } = await manifestOf("molkv");
        const config = { ...model, expertLayers: [0], expertValueShape: [1, numbers.length] };
        const { fields, stride } = recordFields(config, "float32");
        const record = new Uint8Array(stride);
        const { offset } = fields.find((field) => field.name === "expert_value.0")!;
        record.set(bytesOf(new Float32Array(numbers)), offset);
        const decoder = new RecordDecoder({ rows: 1, id: "", dtype: "float32", stride, fields, shards: [] }, config);
        const codes = new Int8Array(numbers.length);
        const scales = new Float32Array(1);
        decoder.codes(record, 0, codes, 0, scales, 0);
        return { codes: [...codes], scale: scales[0]! };
    }

    test("ties to even, and the largest number to 127", async () => {
        expect(await round([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127])).toEqual({
            codes: [127, 0, 2, 2, 0, -2, -2, -127],
            scale: 1,
        });
    });

    test("values of zeros and of subnormal scales to zeros", async () => {
        expect(await round([0, -0])).toEqual({ codes: [0, 0], scale: 0 });
        expect(await round([126 * 2 ** -126, -1e-40])).toEqual({ codes: [0, 0], scale: 0 });
        expect(await round([127 * 2 ** -126, 0])).toEqual({ codes: [127, 0], scale: 2 ** -126 });
    });
});

describe("conformance cases that the checks 8, 10 and 17 find", () => {
    test.each([
        ["another head size", "interface"],
        ["another offset of a field", "record"],
        ["inputs that the model does not call for", "interface"],
        ["outputs that the model does not call for", "interface"],
        ["another dtype of an input", "interface"],
        ["a window dtype that the graph does not have", "interface"],
    ])("%s", async (name, check) => {
        const { bundle, patches } = patchedCases("damage").find((one) => one.name.endsWith(`damage/${name}`))!;
        const manifest = await parseManifest(patchedBundleFile(bundle, "manifest.json", patches)!, "manifest.json");
        const [graph] = manifest.graphs;
        const run = () => {
            if (check === "record") checkRecord(manifest.model, manifest.experts, "manifest.json");
            else checkInterface(manifest.model, graph!, graph!.files[0]!, "model.onnx");
        };
        expect(run).toThrow(BundleError);
    });

    const records = patchedCases("damage").filter(({ name, patches }) => {
        return (
            patches.every((one) => one.file?.startsWith("experts-")) && !name.endsWith("a bit of the shard's header")
        );
    });
    test.each(records)("$name", async ({ bundle, patches }) => {
        const manifest = await manifestOf(bundle);
        const { id, stride, shards } = manifest.experts;
        const damaged = shards.filter((shard) => {
            const bytes = patchedBundleFile(bundle, shard.file, patches);
            const whole = shard.dataOffset + shard.count * stride;
            if (bytes?.length !== whole) return true; // check 7
            return Array.from({ length: shard.count }).some((_, i) => {
                const start = shard.dataOffset + i * stride;
                return !isSoundRecord(crc32, id, shard.firstRow + i, bytes.subarray(start, start + stride));
            });
        });
        expect(damaged).not.toEqual([]);
    });
});
