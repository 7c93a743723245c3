import { describe, expect, test } from "vitest";

import { BundleError } from "../../../src/errors.js";
import { GoldenErrors, parseGolden, type Golden, type GoldenText } from "../../../src/format/golden.js";
import type { ModelConfig } from "../../../src/format/manifest.js";
import { parseManifest } from "../../../src/format/read-manifest.js";
import { parseSafetensors, writeSafetensors, type Tensor } from "../../../src/format/safetensors.js";
import { bundleNames, readBundleFile } from "../support/conformance.js";

async function open(name: string): Promise<{ bytes: Uint8Array; config: ModelConfig; golden: Golden }> {
    const manifest = await parseManifest(readBundleFile(name, "manifest.json"), "manifest.json");
    const graph = manifest.graphs[0]!;
    const config = { ...manifest.model, maxPositionEmbeddings: graph.contextLength };
    const bytes = readBundleFile(name, graph.golden);
    return { bytes, config, golden: parseGolden(bytes, graph.golden, config) };
}

test.each(bundleNames)("the golden vectors of %s are read", async (name) => {
    const { golden, config } = await open(name);
    expect(golden.texts.length).toBeGreaterThanOrEqual(2);
    for (const text of golden.texts) {
        expect(text.topIds.length).toBe(text.inputIds.length * 16);
        expect(text.projection.length).toBe(text.inputIds.length * 8);
        // The projections of any logits have about the size of the logits.
        expect(text.projection.every((number) => Math.abs(number) < 1000)).toBe(true);
        expect(text.inputIds.every((id) => id >= 0 && id < config.vocabSize)).toBe(true);
    }
});

test("the numbers are those that the Python driver reads", async () => {
    const { golden } = await open("molkv");
    expect(golden.limits).toEqual({ maxAbs: 1.4483928680419922e-5, relativeL2: 1.3378814855968812e-6 });
    expect(golden.texts.map((text) => text.inputIds.length)).toEqual([40, 39, 38, 37, 128]);
    expect(golden.texts.map((text) => text.greedyIds.length)).toEqual([16, 16, 16, 16, 0]);
    const text = golden.texts[1]!;
    expect([...text.inputIds.subarray(0, 4)]).toEqual([24, 1, 0, 7]);
    expect([...text.greedyIds.subarray(0, 3)]).toEqual([32, 36, 36]);
    expect(text.topLogits[2 * 16]).toBe(Math.fround(2.2765656));
});

// Results of the Python driver's GoldenErrors for the same logits.
test.each([
    ["molkv", 15.327254056930542, 4.3972825541008165, 282, 0],
    ["mole", 19.146337032318115, 0.9300419218481307, 282, 275],
])("errors of %s are those of the Python driver", async (name, projection, l2, certain, right) => {
    const { golden, config } = await open(name);
    const vocabSize = config.vocabSize;
    const errors = new GoldenErrors(vocabSize, golden.limits);
    golden.texts.forEach((text, index) => {
        const logits = Float32Array.from(
            { length: text.inputIds.length * vocabSize },
            (_, i) => ((i * 7919 + index) % 1009) / 128,
        );
        text.topIds.forEach((id, i) => {
            logits[Math.floor(i / 16) * vocabSize + id] = text.topLogits[i]!;
        });
        errors.add(text, 0, logits.subarray(0, 5 * vocabSize));
        errors.add(text, 5, logits.subarray(5 * vocabSize));
    });
    expect(errors.maxAbsLogit).toBe(0);
    expect(errors.maxAbsProjection).toBeCloseTo(projection, 5);
    expect(errors.relativeL2).toBeCloseTo(l2, 6);
    expect([errors.certainTokens, errors.rightTokens]).toEqual([certain, right]);
});

/** One position of a vocabulary of one token, whose signs are the bits of hash(1) = 0x514e28b7. */
function single(logit: number): GoldenText {
    const signs = [-1, -1, -1, 1, -1, -1, 1, -1];
    return {
        inputIds: new Int32Array(1),
        topCount: 1,
        topIds: new Int32Array(1),
        topLogits: new Float32Array([logit]),
        projection: Float32Array.from(signs, (sign) => sign * logit),
        greedyIds: new Int32Array(),
    };
}

describe("errors", () => {
    test("have the signs of the document", () => {
        const errors = new GoldenErrors(1, { maxAbs: 0, relativeL2: 0 });
        errors.add(single(3), 0, new Float32Array([3]));
        expect([errors.maxAbsLogit, errors.maxAbsProjection, errors.relativeL2, errors.failure()]).toEqual([
            0,
            0,
            0,
            "",
        ]);
    });

    test.each<[string, number, number, number, string]>([
        ["a logit", 3.5, 0.25, 1, "largest difference of a logit 0.5, expected at most 0.25"],
        ["all", 3.5, 1, 0.01, `relative L2 ${0.5 / 3}, expected at most 0.01`],
        ["within the limits", 3.5, 0.5, 0.17, ""],
        ["NaN", NaN, 1, 1, "largest difference of a logit NaN, expected at most 1"],
    ])("%s", (_name, logit, maxAbs, relativeL2, failure) => {
        const errors = new GoldenErrors(1, { maxAbs, relativeL2 });
        errors.add(single(3), 0, new Float32Array([logit]));
        errors.add(single(0), 0, new Float32Array([0]));
        expect(errors.failure()).toBe(failure);
    });

    test("count tokens that are certain and wrong", () => {
        const errors = new GoldenErrors(3, { maxAbs: 1, relativeL2: 10 });
        const text: GoldenText = {
            ...single(0),
            topCount: 2,
            topIds: new Int32Array([2, 1, 2, 1]),
            topLogits: new Float32Array([5, 2.5, 5, 3]),
            projection: new Float32Array(16).fill(1),
        };
        errors.add(text, 0, new Float32Array([5.5, 2.5, 5]));
        errors.add(text, 1, new Float32Array([5.5, 3, 5]));
        expect([errors.certainTokens, errors.rightTokens]).toEqual([1, 0]);
    });

    test("contain wrong certain tokens, even if all numbers are within the limits", () => {
        const errors = new GoldenErrors(16, { maxAbs: 100, relativeL2: Infinity });
        const text = {
            ...single(0),
            topCount: 2,
            topIds: new Int32Array([2, 1]),
            topLogits: new Float32Array([201, 0]),
        };
        const logits = new Float32Array(16);
        logits[0] = 102;
        logits[2] = 101;
        errors.add(text, 0, logits);
        expect(errors.failure()).toBe("0 of 1 certain tokens are right, expected all");
    });
});

describe("a golden file is refused", () => {
    const integers = (...numbers: number[]) => new Uint8Array(Int32Array.from(numbers).buffer);
    const floats = (...numbers: number[]) => new Uint8Array(Float32Array.from(numbers).buffer);

    async function refusal(change: (tensors: Map<string, Tensor>, metadata: Map<string, string>) => void) {
        const { bytes, config } = await open("dense");
        const file = parseSafetensors(bytes, "golden.safetensors");
        const tensors = new Map(file.tensors);
        const metadata = new Map(file.metadata);
        change(tensors, metadata);
        try {
            parseGolden(writeSafetensors(metadata, tensors), "golden.safetensors", config);
        } catch (error) {
            expect(error).toBeInstanceOf(BundleError);
            return (error as BundleError).message;
        }
        return "nothing was refused";
    }

    test("of another version", async () => {
        expect(await refusal((_, metadata) => metadata.set("golden_version", "1"))).toContain(
            'found "1", expected "2"',
        );
        expect(await refusal((_, metadata) => metadata.delete("golden_version"))).toContain("found none");
    });

    test.each<[string, string, Tensor | undefined, string]>([
        ["a missing tensor", "texts.0.top_ids", undefined, "expected limits and five for each text"],
        ["a further tensor", "texts.9.x", { dtype: "I32", shape: [0], data: integers() }, "expected limits and five"],
        ["a negative limit", "limits", { dtype: "F32", shape: [2], data: floats(-1, 0) }, "limits: found -1"],
        ["an infinite limit", "limits", { dtype: "F32", shape: [2], data: floats(0, Infinity) }, "found Infinity"],
        [
            "another shape",
            "limits",
            { dtype: "F32", shape: [1, 2], data: floats(0, 0) },
            "found F32 [1, 2], expected F32 [2]",
        ],
        ["no tokens", "texts.0.input_ids", { dtype: "I32", shape: [0], data: integers() }, "found 0 tokens"],
        ["two dimensions", "texts.0.input_ids", { dtype: "I32", shape: [1, 1], data: integers(1) }, "one dimension"],
        [
            "fewer tokens",
            "texts.0.input_ids",
            { dtype: "I32", shape: [1], data: integers(1) },
            "texts.0.top_ids: found",
        ],
        ["a large id", "texts.0.greedy_ids", { dtype: "I32", shape: [1], data: integers(99999) }, "found 99999"],
        ["a negative id", "texts.0.greedy_ids", { dtype: "I32", shape: [1], data: integers(-1) }, "found -1"],
    ])("with %s", async (_name, name, tensor, why) => {
        const message = await refusal((tensors) => {
            if (tensor === undefined) tensors.delete(name);
            else tensors.set(name, tensor);
        });
        expect(message).toContain(why);
    });

    test("with more tokens than the context", async () => {
        const { bytes, config } = await open("dense");
        const short = { ...config, maxPositionEmbeddings: 40 };
        expect(() => parseGolden(bytes, "golden.safetensors", short)).toThrow(
            "at most 40 without the last greedy token",
        );
    });
});
