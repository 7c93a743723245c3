import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { BundleError } from "../../../src/errors.js";
import { checkGraph } from "../../../src/format/onnx-model.js";
import { bytesField, integerField, joinBytes } from "../../../src/format/protobuf.js";
import { readBundleFile } from "../support/graph-bundle.js";

const DATA = { dataName: "w", dataSize: 16 };

interface Parts {
    model?: Uint8Array[];
    opsets?: Uint8Array[];
    graph?: Uint8Array[];
}

/** A field of onnx.proto that holds a message. */
const sub = (number: number, ...fields: Uint8Array[]): Uint8Array => bytesField(number, joinBytes(fields));
const opset = (domain: string, version: number): Uint8Array => sub(8, bytesField(1, domain), integerField(2, version));
const value = (number: 11 | 12, name: string): Uint8Array => sub(number, bytesField(1, name));
const texts = (number: number, names: string[]): Uint8Array[] => names.map((name) => bytesField(number, name));
const node = (op: string, inputs: string[], outputs: string[], ...rest: Uint8Array[]): Uint8Array =>
    sub(1, ...texts(1, inputs), ...texts(2, outputs), bytesField(4, op), ...rest);
const attribute = (name: string, type: number, ...rest: Uint8Array[]): Uint8Array =>
    sub(5, bytesField(1, name), integerField(20, type), ...rest);
const tensor = (number: 5, dims: number[], type: number, ...rest: Uint8Array[]): Uint8Array =>
    sub(number, ...dims.map((size) => integerField(1, size)), integerField(2, type), ...rest);
const entry = (key: string, text: string): Uint8Array => sub(13, bytesField(1, key), bytesField(2, text));
const external = (...entries: [string, string][]): Uint8Array[] => [
    bytesField(8, "t"),
    ...entries.map(([key, text]) => entry(key, text)),
    integerField(14, 1),
];

/** A file with an input "x", the node Abs and an output "y", and additional fields. */
function file({ model = [], opsets = [opset("", 22)], graph = [] }: Parts = {}): Uint8Array {
    const fields = [value(11, "x"), node("Abs", ["x"], ["y"]), value(12, "y"), ...graph];
    return joinBytes([...opsets, ...model, sub(7, ...fields)]);
}

const check = (bytes: Uint8Array): void => {
    checkGraph(bytes, "m.onnx", DATA);
};

const WHOLE: [string, string][] = [
    ["location", "w"],
    ["offset", "8"],
    ["length", "8"],
];

test.each<[string, Parts]>([
    ["the smallest graph", {}],
    ["fields without an effect", { model: [integerField(1, 10), bytesField(2, "p"), sub(14)] }],
    ["both operator sets", { opsets: [opset("", 22), opset("com.microsoft", 1)] }],
    ["data in the file", { graph: [tensor(5, [2], 10, bytesField(8, "t"), bytesField(9, "four"))] }],
    ["a tensor without numbers", { graph: [tensor(5, [0, 5], 1, bytesField(8, "t"))] }],
    ["data in the file of weights", { graph: [tensor(5, [2], 1, ...external(...WHOLE))] }],
    ["a bound of logits", { graph: [node("Tanh", ["x"], ["z"])] }],
    ["sliding attention", { opsets: bothOpsets(), graph: [attention(integerField(3, 8))] }],
    ["an attribute of -1", { graph: [node("Softmax", ["x"], ["z"], attribute("axis", 2, minusOne()))] }],
])("%s is allowed", (_, parts) => {
    check(file(parts));
});

function bothOpsets(): Uint8Array[] {
    return [opset("", 22), opset("com.microsoft", 1)];
}

/** A node whose past is an output of another node. `window` is the value of its attribute local_window_size. */
function attention(window: Uint8Array): Uint8Array {
    const scale = attribute("scale", 1, Uint8Array.of(2 * 8 + 5, 0, 0, 128, 63));
    const inputs = ["x", "", "", "y", "y", "x", "x", "x", "x"];
    return node(
        "GroupQueryAttention",
        inputs,
        ["a", "b", "c"],
        bytesField(7, "com.microsoft"),
        attribute("local_window_size", 2, window),
        scale,
    );
}

/** AttributeProto.i = -1, as ten bytes. */
function minusOne(): Uint8Array {
    return Uint8Array.of(3 * 8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1);
}

test.each<[string, Parts, string]>([
    ["an older operator set", { opsets: [opset("", 21)] }, "found operator set 21"],
    ["no default operator set", { opsets: [opset("com.microsoft", 1)] }, "no operator set of the default domain"],
    ["an operator set twice", { opsets: [opset("", 22), opset("", 22)] }, "at most once"],
    ["another domain", { opsets: [opset("", 22), opset("ai.onnx.ml", 1)] }, 'of the domain "ai.onnx.ml"'],
    ["functions", { model: [sub(25)] }, "found field 25 of ModelProto"],
    ["sparse tensors", { graph: [sub(15)] }, "found field 15 of GraphProto"],
    ["two names of the graph", { graph: [bytesField(2, "a"), bytesField(2, "b")] }, "a second time"],
    ["a wrong wire type", { graph: [integerField(1, 3)] }, "a wrong wire type"],
    ["a subgraph", { graph: [node("Abs", ["x"], ["z"], attribute("g", 5, sub(6)))] }, "field 6 of AttributeProto"],
    ["an operator of another domain", { graph: [node("Abs", ["x"], ["z"], bytesField(7, "com.microsoft"))] }, "Abs"],
    ["an unknown operator", { graph: [node("Loop", ["x"], ["z"])] }, 'node "" ("Loop")'],
    ["a missing input", { graph: [node("Add", ["x"], ["z"])] }, 'inputs: found "x", expected "xx"'],
    ["an empty input", { graph: [node("Add", ["x", ""], ["z"])] }, 'inputs: found "x-", expected "xx"'],
    ["too many inputs", { graph: [node("Concat", ["x", "x", "x", "x"], ["z"])] }, 'expected "xx" or "xxx"'],
    ["two outputs", { graph: [node("Abs", ["x"], ["z", "u"])] }, 'outputs: found "xx", expected "x"'],
    ["a name before its definition", { graph: [node("Abs", ["z"], ["z"])] }, '"z", which is not defined'],
    ["a name twice", { graph: [node("Abs", ["x"], ["y"])] }, '"y" defined twice'],
    ["an initializer with an input's name", { graph: [tensor(5, [0], 1, bytesField(8, "x"))] }, '"x" defined twice'],
    ["an initializer without a name", { graph: [tensor(5, [0], 1)] }, "a value without a name"],
    ["an undefined output", { graph: [value(12, "z")] }, '"z", which is not defined'],
    ["a name that is not UTF-8", { graph: [sub(11, bytesField(1, Uint8Array.of(255)))] }, "not UTF-8"],
    ["an unknown attribute", { graph: [node("Abs", ["x"], ["z"], attribute("a", 2, minusOne()))] }, 'attribute "a"'],
    [
        "an attribute of another type",
        { graph: [node("Softmax", ["x"], ["z"], attribute("axis", 3, bytesField(4, "1")))] },
        'attribute "axis"',
    ],
    [
        "an attribute with two values",
        { graph: [node("Softmax", ["x"], ["z"], attribute("axis", 2, minusOne(), bytesField(4, "1")))] },
        'attribute "axis"',
    ],
    [
        "an attribute twice",
        {
            graph: [node("Softmax", ["x"], ["z"], attribute("axis", 2, minusOne()), attribute("axis", 2, minusOne()))],
        },
        'attribute "axis"',
    ],
    [
        "an attribute above 31 bits",
        { graph: [node("Softmax", ["x"], ["z"], attribute("axis", 2, integerField(3, 2 ** 31)))] },
        'attribute "axis"',
    ],
    [
        "a constant in the file of weights",
        {
            graph: [
                node("Constant", [], ["z"], attribute("value", 4, sub(5, integerField(2, 1), ...external(...WHOLE)))),
            ],
        },
        "a tensor in another file",
    ],
    ["a data type without a size", { graph: [tensor(5, [], 8, bytesField(8, "t"))] }, "found the data type 8"],
    ["nine dimensions", { graph: [tensor(5, Array(9).fill(1) as number[], 1)] }, "9 dimensions"],
    ["a dimension above 31 bits", { graph: [tensor(5, [2 ** 31, 0], 1)] }, "expected the data type"],
    [
        "another size",
        { graph: [tensor(5, [2], 1, bytesField(8, "t"), bytesField(9, "four"))] },
        "found 4 bytes, expected 8",
    ],
    ["a size that overflows", { graph: [tensor(5, Array(8).fill(2 ** 31 - 1) as number[], 7)] }, "found 0 bytes"],
    [
        "another file",
        { graph: [tensor(5, [2], 1, ...external(["location", "/etc/passwd"], ...WHOLE.slice(1)))] },
        'found its data in "/etc/passwd"',
    ],
    [
        "bytes beyond the file",
        { graph: [tensor(5, [2], 1, ...external(["offset", "9"], ["location", "w"], ["length", "8"]))] },
        "at byte 9 with length 8",
    ],
    [
        "a number of 19 digits",
        {
            graph: [
                tensor(5, [2], 1, ...external(["offset", "0".repeat(19)], ...WHOLE.filter(([k]) => k !== "offset"))),
            ],
        },
        "at byte -1",
    ],
    ["a key twice", { graph: [tensor(5, [2], 1, ...external(...WHOLE, ["offset", "8"]))] }, "found its data"],
    ["a missing length", { graph: [tensor(5, [2], 1, ...external(...WHOLE.slice(0, 2)))] }, "with length -1"],
    [
        "data at two places",
        { graph: [tensor(5, [2], 1, bytesField(9, "8 bytes!"), ...external(...WHOLE))] },
        "found its data",
    ],
])("%s is refused", (_, parts, message) => {
    expect(() => {
        check(file(parts));
    }).toThrow(BundleError);
    expect(() => {
        check(file(parts));
    }).toThrow(message);
});

const BUNDLES = ["dense", "dense-int4", "dense-int8", "kv-int8", "mole", "molkv", "window-int8", "experts-nf4"];
const weights = (bundle: string): { dataName: string; dataSize: number } => ({
    dataName: "model.onnx.data",
    dataSize: readBundleFile(bundle, "model.onnx.data").length,
});

test.each(BUNDLES)("the graph of the bundle %s is allowed", (bundle) => {
    checkGraph(readBundleFile(bundle, "model.onnx"), `${bundle}/model.onnx`, weights(bundle));
});

test.each([
    ["coreml", "model.coreml.1.onnx", "model.coreml.data"],
    ["nnapi", "model.nnapi.1.onnx", "model.nnapi.data"],
])("the static graph of the bundle %s is allowed", (bundle, graph, dataName) => {
    checkGraph(readBundleFile(bundle, graph), graph, { dataName, dataSize: readBundleFile(bundle, dataName).length });
});

interface DamageCase {
    readonly name: string;
    readonly bundle: string;
    readonly patches: readonly { file: string; offset?: number; delete?: number; insert?: string }[];
}

test("the operator of cases.json that is not on the list is refused", () => {
    const path = new URL("../../../../conformance/cases.json", import.meta.url);
    const { cases } = JSON.parse(readFileSync(path, "utf8")) as { cases: DamageCase[] };
    const damage = cases.find(({ name }) => name === "molkv/damage/an operator that is not on the list")!;
    const patch = damage.patches.find((one) => one.file === "model.onnx")!;
    const graph = readBundleFile(damage.bundle, "model.onnx");
    graph.set(Buffer.from(patch.insert!, "hex"), patch.offset);
    expect(() => {
        checkGraph(graph, "molkv/model.onnx", weights("molkv"));
    }).toThrow(/^molkv\/model\.onnx: node ".*" \("Hardmax"\): found an operator/);
});

test("a file that is cut short or has changed bytes gives errors of the bundle only", () => {
    const graph = readBundleFile("kv-int8", "model.onnx");
    const data = weights("kv-int8");
    let state = 1;
    const next = (limit: number): number => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return Math.floor((state / 2 ** 32) * limit);
    };
    let refused = 0;
    for (let round = 0; round < 1000; round++) {
        const damaged = graph.slice(0, round % 4 === 0 ? next(graph.length) : graph.length);
        for (let change = 0; change < 3 && damaged.length > 0; change++) damaged[next(damaged.length)] = next(256);
        try {
            checkGraph(damaged, "m.onnx", data);
        } catch (error) {
            expect(error).toBeInstanceOf(BundleError);
            expect((error as Error).message).not.toContain("\n");
            refused += 1;
        }
    }
    expect(refused).toBeGreaterThan(500);
});

test("bytes that are no protobuf are refused", () => {
    const files = [
        Uint8Array.of(),
        Uint8Array.of(0x3a),
        Uint8Array.of(0x3a, 0xff, 0xff, 0xff, 0xff, 0x7f),
        Uint8Array.of(0x3b),
        new Uint8Array(11).fill(0x80),
        Uint8Array.of(0x08, ...(Array(10).fill(0xff) as number[])),
    ];
    for (const bytes of files) {
        expect(() => {
            check(bytes);
        }).toThrow(/^m\.onnx: is not an ONNX file: /);
    }
});
