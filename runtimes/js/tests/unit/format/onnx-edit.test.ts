import { expect, test } from "vitest";

import { BundleError } from "../../../src/errors.js";
import { decodeOnnx } from "../../../src/format/onnx-file.js";
import { dropOutputs } from "../../../src/format/onnx-edit.js";
import { readBundleFile } from "../support/conformance.js";

const graph = readBundleFile("dense", "model.onnx");

test("outputs are dropped, and everything else stays", () => {
    const before = decodeOnnx(graph, "m.onnx");
    const after = decodeOnnx(dropOutputs(graph, new Set(["present.1.value", "present.0.key"]), "m.onnx"), "m.onnx");
    expect(before.outputs).toEqual(["logits", ...[0, 1].flatMap((l) => [`present.${l}.key`, `present.${l}.value`])]);
    expect(after).toEqual({ ...before, outputs: ["logits", "present.0.value", "present.1.key"] });
});

test("an output that the graph does not have is an error of the bundle", () => {
    const drop = () => dropOutputs(graph, new Set(["present.1.key", "present.2.key"]), "m.onnx");
    expect(drop).toThrow(BundleError);
    expect(drop).toThrow("m.onnx: found no output present.2.key");
});
