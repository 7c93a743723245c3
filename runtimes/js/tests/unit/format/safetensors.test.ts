import { expect, test } from "vitest";

import { BundleError, RequestError } from "../../../src/errors.js";
import {
    parseSafetensors,
    parseSafetensorsHeader,
    tensorNumbers,
    writeSafetensors,
} from "../../../src/format/safetensors.js";

const tensors = new Map([
    ["a", { dtype: "F16", shape: [1, 3], data: new Uint8Array([1, 2, 3, 4, 5, 6]) }],
    ["b", { dtype: "I8", shape: [0], data: new Uint8Array() }],
    ["c", { dtype: "U8", shape: [], data: new Uint8Array([7]) }],
]);

function file(header: string, data: number): Uint8Array {
    const json = new TextEncoder().encode(header);
    const bytes = new Uint8Array(8 + json.length + data);
    bytes[0] = json.length & 255;
    bytes[1] = json.length >> 8;
    bytes.set(json, 8);
    return bytes;
}

test("a written file has the bytes of the format, and is read again", () => {
    const bytes = writeSafetensors(new Map([["k", "ä"]]), tensors);
    const header =
        '{"__metadata__":{"k":"ä"},"a":{"dtype":"F16","shape":[1,3],"data_offsets":[0,6]},' +
        '"b":{"dtype":"I8","shape":[0],"data_offsets":[6,6]},"c":{"dtype":"U8","shape":[],"data_offsets":[6,7]}}';
    const json = new TextEncoder().encode(header);
    const padded = Math.ceil(json.length / 8) * 8;
    const spaces = Array<number>(padded - json.length).fill(0x20);
    expect([...bytes]).toEqual([padded, 0, 0, 0, 0, 0, 0, 0, ...json, ...spaces, 1, 2, 3, 4, 5, 6, 7]);
    const read = parseSafetensors(bytes, "f");
    expect(read.metadata).toEqual(new Map([["k", "ä"]]));
    expect(read.tensors).toEqual(tensors);
});

const entry = (dtype: string, shape: string, begin: number, end: number) =>
    `{"dtype":"${dtype}","shape":${shape},"data_offsets":[${begin},${end}]}`;

test.each([
    ["a truncated file", file(`{"a":${entry("F32", "[2]", 0, 8)}}`, 7), "a part of the 7 bytes of data"],
    ["bytes after the data", file(`{"a":${entry("F32", "[2]", 0, 8)}}`, 9), "found"],
    ["a gap", file(`{"a":${entry("I8", "[2]", 0, 2)},"b":${entry("I8", "[1]", 3, 4)}}`, 4), "found a tensor at byte"],
    [
        "an overlap",
        file(`{"a":${entry("I8", "[2]", 0, 2)},"b":${entry("I8", "[2]", 1, 3)}}`, 3),
        "found a tensor at byte",
    ],
    ["another size", file(`{"a":${entry("F32", "[3]", 0, 8)}}`, 8), "found a tensor that is larger than the file"],
    ["a smaller size", file(`{"a":${entry("F32", "[1]", 0, 8)}}`, 8), "found 8 bytes, expected 4 bytes"],
    [
        "an overflow",
        file(`{"a":${entry("F64", "[4294967296,4294967296,4294967296]", 0, 8)}}`, 8),
        "larger than the file",
    ],
    ["a huge shape with 0", file(`{"a":${entry("F64", "[9007199254740991,0]", 0, 8)}}`, 8), "expected 0 bytes"],
    ["a negative size", file(`{"a":${entry("I8", "[-1]", 0, 0)}}`, 0), "a.shape[0]: found -1"],
    ["offsets in reverse", file(`{"a":${entry("I8", "[0]", 1, 0)}}`, 1), "found [1, 0]"],
    ["9 dimensions", file(`{"a":${entry("I8", "[1,1,1,1,1,1,1,1,1]", 0, 1)}}`, 1), "found 9 dimensions"],
    ["an unknown dtype", file(`{"a":${entry("F128", "[1]", 0, 16)}}`, 16), 'a.dtype: found "F128"'],
    ["three offsets", file('{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1,1]}}', 1), "found 3 numbers"],
    ["an unknown field", file('{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1],"x":1}}', 1), 'unknown field "x"'],
    ["metadata of numbers", file('{"__metadata__":{"x":1}}', 0), "__metadata__.x: found an integer"],
    ["a list", file("[]", 0), "found a list, expected an object"],
    ["a tensor twice", file('{"a":1,"a":1}', 0), 'the key "a" a second time'],
    ["no header", new Uint8Array(7), "found 7 bytes"],
    ["a header longer than the file", new Uint8Array([3, 0, 0, 0, 0, 0, 0, 0, 123, 125]), "found a header of 3 bytes"],
    ["a huge header", new Uint8Array([255, 255, 255, 255, 255, 255, 255, 255, 123, 125]), "found a header of"],
])("%s is refused", (_name, bytes, why) => {
    expect(() => parseSafetensors(bytes, "f")).toThrow(why);
    expect(() => parseSafetensors(bytes, "f")).toThrow(BundleError);
    expect(() => parseSafetensors(bytes, "f", (message) => new RequestError(message))).toThrow(RequestError);
});

test("a header alone is enough for the places of tensors", () => {
    const start = file(`{"a":${entry("I8", "[1000]", 0, 1000)}}`, 0);
    const { tensors: places, dataOffset } = parseSafetensorsHeader(start, start.length + 1000, "f");
    expect(places.get("a")).toMatchObject({ begin: dataOffset, end: dataOffset + 1000 });
});

test("numbers are read at every byte", () => {
    const bytes = new Uint8Array([0, 1, 0, 0, 0, 2, 0, 0, 0]);
    expect(tensorNumbers(bytes.subarray(1), Int32Array)).toEqual(new Int32Array([1, 2]));
    expect(tensorNumbers(bytes.subarray(0, 8), Uint16Array)).toEqual(new Uint16Array([256, 0, 512, 0]));
    expect(tensorNumbers(bytes.subarray(3, 3), Int32Array)).toEqual(new Int32Array());
});
