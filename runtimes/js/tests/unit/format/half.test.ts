import { expect, test } from "vitest";

import { halfTable, halfToFloat } from "../../../src/format/half.js";

test.each([
    [0x0001, 2 ** -24],
    [0x03ff, 1023 * 2 ** -24],
    [0x0400, 2 ** -14],
    [0x3555, 0.333251953125],
    [0x3c00, 1],
    [0x3c01, 1.0009765625],
    [0x7bff, 65504],
    [0xc000, -2],
    [0xfc00, -Infinity],
    [0x7c00, Infinity],
    [0x8000, -0],
])("%i", (bits, number) => {
    expect(Object.is(halfTable()[bits], number)).toBe(true);
});

test("patterns of NaN stay NaN", () => {
    expect(halfTable()[0x7c01]).toBeNaN();
    expect(halfTable()[0xffff]).toBeNaN();
});

test("numbers are written from an offset on", () => {
    const out = new Float32Array(4);
    halfToFloat(new Uint16Array([0x3c00, 0xc000]), out, 1);
    expect([...out]).toEqual([0, 1, -2, 0]);
});
