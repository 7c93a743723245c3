import * as ort from "onnxruntime-node";
import { expect, test } from "vitest";
import { BundleError } from "../../../src/errors.js";
import { NEW_SLOTS, newSlotsOutput, returnNewSlots } from "../../../src/format/new-slots.js";
import { readBundleFile, readGraphBundle } from "../support/graph-bundle.js";

/** Numbers from -1 to 1. */
function noise(length: number, seed: number): Float32Array {
    let state = seed;
    return Float32Array.from({ length }, () => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return state / 2 ** 31 - 1;
    });
}

const BATCH = 2;
const MAX_LENGTH = 12;
/** The length of each sequence before the step. */
const STARTS = [3, 7];

/** The inputs of a decode step of two sequences, from the manifest's names and shapes. */
function decodeInputs(bundle: string): Record<string, ort.Tensor> {
    const manifest = JSON.parse(new TextDecoder().decode(readBundleFile(bundle, "manifest.json"))) as {
        model: { expert_window: number; num_experts: number };
        graphs: { cpu: { files: { inputs: { name: string; dtype: string; shape: (number | string)[] }[] }[] } };
    };
    const { expert_window, num_experts } = manifest.model;
    const sizes: Record<string, number> = {
        batch: BATCH,
        blocks: BATCH,
        length: 1,
        block_length: 1,
        max_length: MAX_LENGTH,
        window_experts: expert_window * num_experts,
    };
    const fixed: Record<string, ort.Tensor> = {
        seqlens_k: new ort.Tensor("int32", Int32Array.from(STARTS)),
        total_sequence_length: new ort.Tensor("int32", Int32Array.of(8), []),
        logits_to_keep: new ort.Tensor("int64", BigInt64Array.of(1n)),
        position_ids: new ort.Tensor("int64", BigInt64Array.from(STARTS, BigInt), [BATCH, 1]),
    };
    const inputs: Record<string, ort.Tensor> = {};
    for (const [index, { name, dtype, shape }] of manifest.graphs.cpu.files[0]!.inputs.entries()) {
        const dims = shape.map((size) => (typeof size === "number" ? size : sizes[size]!));
        const numbers = noise(
            dims.reduce((product, size) => product * size, 1),
            index,
        );
        const codes = (): ort.Tensor =>
            new ort.Tensor(
                "int8",
                Int8Array.from(numbers, (x) => Math.round(x * 127)),
                dims,
            );
        inputs[name] = fixed[name] ?? (dtype === "int8" ? codes() : new ort.Tensor("float32", numbers, dims));
    }
    return inputs;
}

test.each(["dense", "dense-int4", "molkv", "kv-int8"])(
    "the changed graph of %s gives the same numbers",
    async (bundle) => {
        const { files } = readGraphBundle(bundle);
        const options = {
            logSeverityLevel: 3,
            externalData: [{ path: files.data.name, data: files.data.content }],
        } as const;
        const original = await ort.InferenceSession.create(files.graph, options);
        const changed = await ort.InferenceSession.create(
            returnNewSlots(files.graph, files.kvDtype, files.where),
            options,
        );
        expect(changed.inputNames).toEqual([...original.inputNames, NEW_SLOTS]);
        const presents = original.outputNames.filter((name) => name.startsWith("present."));
        expect(presents).toHaveLength(2 * files.caches.length);
        expect(changed.outputNames).toEqual(["logits", ...presents.map(newSlotsOutput)]);

        const inputs = decodeInputs(bundle);
        const expected = await original.run(inputs);
        const slots = new ort.Tensor("int64", BigInt64Array.from(STARTS, BigInt));
        const found = await changed.run({ ...inputs, [NEW_SLOTS]: slots });
        expect(found.logits!.data).toEqual(expected.logits!.data);
        const { heads, headDim: size } = files.caches[0]!;
        for (const name of presents) {
            const all = expected[name]!.data as Float32Array;
            const gathered = found[newSlotsOutput(name)]!;
            expect(gathered.dims).toEqual([BATCH, heads, STARTS.length, size]);
            for (let head = 0; head < BATCH * heads; head++) {
                for (const [index, slot] of STARTS.entries()) {
                    const from = (head * MAX_LENGTH + slot) * size;
                    const to = (head * STARTS.length + index) * size;
                    const numbers = (gathered.data as Float32Array).subarray(to, to + size);
                    expect(numbers).toEqual(all.subarray(from, from + size));
                }
            }
        }
    },
);

test("a file that is cut short is an error of the bundle", () => {
    const graph = readBundleFile("dense", "model.onnx");
    expect(() => returnNewSlots(graph.subarray(0, 1000), "float32", "m.onnx")).toThrow(BundleError);
});
