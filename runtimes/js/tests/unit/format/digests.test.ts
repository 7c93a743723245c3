import { createHash } from "node:crypto";
import { crc32 as zlibCrc32 } from "node:zlib";

import { afterEach, describe, expect, test, vi } from "vitest";

import { crc32 } from "../../../src/format/crc32.js";
import { findText, sha256, sha256InScript, sha256WithZeroedDigits } from "../../../src/format/sha256.js";

const ascii = new TextEncoder();

function noise(length: number): Uint8Array {
    return Uint8Array.from({ length }, (_, i) => (i * i * 31 + (i >> 3) * 7) & 0xff);
}

describe("crc32", () => {
    test("of the check text is the number of the document", () => {
        expect(crc32(ascii.encode("123456789"))).toBe(0xcbf43926);
        expect(crc32(new Uint8Array())).toBe(0);
    });

    test("is the one of zlib, for each length and alignment", () => {
        const bytes = noise(100);
        for (let start = 0; start < 9; start++) {
            for (let end = start; end < 64; end++) {
                const part = bytes.subarray(start, end);
                expect(crc32(part)).toBe(zlibCrc32(part));
            }
        }
    });

    test("continues a value", () => {
        const bytes = noise(1000);
        expect(crc32(bytes.subarray(123), crc32(bytes.subarray(0, 123)))).toBe(zlibCrc32(bytes));
    });
});

describe("sha256", () => {
    afterEach(() => {
        vi.unstubAllGlobals();
    });

    test("in script is the one of OpenSSL, for each length of a last block", () => {
        const bytes = noise(300);
        for (const length of [0, 1, 54, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 299]) {
            const part = bytes.subarray(1, 1 + length);
            expect(sha256InScript(part)).toBe(createHash("sha256").update(part).digest("hex"));
        }
    });

    test.each(["with crypto.subtle", "without crypto", "without crypto.subtle"])("%s", async (how) => {
        if (how === "without crypto") vi.stubGlobal("crypto", undefined);
        if (how === "without crypto.subtle") vi.stubGlobal("crypto", {});
        expect(await sha256(ascii.encode("abc"))).toBe(
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        );
    });

    test("takes shared memory", async () => {
        const shared = new Uint8Array(new SharedArrayBuffer(3));
        shared.set(ascii.encode("abc"));
        expect(await sha256(shared)).toMatch(/^ba7816bf8f01cfea/);
    });

    test("can replace digits by zeros, without a change of the bytes", async () => {
        const digits = "12345678".repeat(8);
        const bytes = ascii.encode(`before ${digits} after`);
        const hash = createHash("sha256")
            .update(`before ${"0".repeat(64)} after`)
            .digest("hex");
        expect(await sha256WithZeroedDigits(bytes, findText(bytes, digits))).toBe(hash);
        expect(bytes).toEqual(ascii.encode(`before ${digits} after`));
    });

    test("findText finds the first place", () => {
        expect(findText(ascii.encode("ababac"), "abac")).toBe(2);
        expect(findText(ascii.encode("ababa"), "abac")).toBe(-1);
        expect(findText(ascii.encode(""), "a")).toBe(-1);
    });
});
