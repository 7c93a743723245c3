import { readFileSync } from "node:fs";

import { describe, expect, test } from "vitest";

import { Class, classOf, nfc, startsWithSpace, startsWithWord } from "../../../src/runtime/tokenizer/unicode.js";

// The classes and NFC data of the tokenizers library, which the C++ driver's generator asked for each code point.
const tables = readFileSync(new URL("../../../../native/src/unicode_tables.h", import.meta.url), "utf8");

function rows(name: string): number[][] {
    const body = new RegExp(` ${name}\\[\\] = \\{([^;]*)\\};`).exec(tables)![1]!;
    return Array.from(body.matchAll(/\{([^{}]*)\}/g), (row) => row[1]!.split(",").map(Number));
}

function codesOf(name: string): Set<number> {
    const codes = new Set<number>();
    for (const [first, last] of rows(name)) for (let code = first!; code <= last!; code++) codes.add(code);
    return codes;
}

function* allCodes(): Generator<number> {
    for (let code = 0; code < 0x110000; code++) if (code < 0xd800 || code > 0xdfff) yield code;
}

function differences(name: string, isMember: (code: number) => boolean): string[] {
    const codes = codesOf(name);
    return Array.from(allCodes())
        .filter((code) => isMember(code) !== codes.has(code))
        .map((code) => code.toString(16));
}

describe("classes of all code points are those of the library", () => {
    const kinds =
        (...expected: number[]) =>
        (code: number) =>
            expected.includes(classOf(code));
    const character = String.fromCodePoint;
    test.each([
        ["letter_ranges", kinds(Class.letter)],
        ["number_ranges", kinds(Class.number)],
        ["space_ranges", kinds(Class.space, Class.newline)],
        ["space_ranges", (code: number) => startsWithSpace(character(code))],
        ["word_ranges", (code: number) => startsWithWord(character(code))],
    ])("%s", (name, isMember) => {
        expect(differences(name, isMember)).toEqual([]);
    });
});

describe("NFC is that of the library", () => {
    const classes = new Map<number, number>();
    for (const [first, last, value] of rows("combining_ranges")) {
        for (let code = first!; code <= last!; code++) classes.set(code, value!);
    }
    const decompositions = new Map(rows("decompositions").map((row) => [row[0]!, row.slice(1)]));

    function decomposed(code: number): string {
        const [first, second] = decompositions.get(code) ?? [];
        if (first === undefined) return String.fromCodePoint(code);
        return decomposed(first) + (second ? decomposed(second) : "");
    }

    test("each character that the library does not decompose stays", () => {
        const wrong: string[] = [];
        for (const code of allCodes()) {
            if (decompositions.has(code) || (code >= 0xac00 && code <= 0xd7a3)) continue;
            const text = String.fromCodePoint(code);
            if (nfc(text) !== text) wrong.push(code.toString(16));
        }
        expect(wrong).toEqual([]);
    });

    test("a mark is moved only if the library knows it", () => {
        const wrong: string[] = [];
        for (const code of allCodes()) {
            const mark = String.fromCodePoint(code);
            const value = classes.get(code) ?? 0;
            if (code < 0x300 || decompositions.has(code) || code === 0x334 || code === 0x345) continue;
            // U+0334 has class 1, U+0345 has class 240; neither makes a composition with "q".
            const isBefore = nfc(`q${mark}\u0334`) === `q\u0334${mark}`;
            const isAfter = nfc(`q\u0345${mark}`) === `q${mark}\u0345`;
            if (isBefore !== value > 1 || isAfter !== (value > 0 && value < 240)) wrong.push(code.toString(16));
        }
        expect(wrong).toEqual([]);
    });

    test("two parts compose as the table says, and newer parts do not", () => {
        for (const [first, second, code] of rows("compositions")) {
            expect(nfc(String.fromCodePoint(first!, second!))).toBe(String.fromCodePoint(code!));
        }
        const composed = new Set(rows("compositions").map((row) => row[2]));
        for (const code of decompositions.keys()) {
            if (!composed.has(code)) expect(nfc(decomposed(code))).not.toContain(String.fromCodePoint(code));
        }
        const newer = ["\u{105d2}\u0307", "\u{11935}\u{11930}", "\u{16d67}\u{16d67}", "\u{113c2}\u{113b8}"];
        for (const text of newer) expect(nfc(text)).toBe(text);
    });

    test("by hand", () => {
        expect(nfc("a\u0301\u0323")).toBe("\u1ea1\u0301"); // marks in another order
        expect(nfc("\u1112\u1161\u11ab \u212b")).toBe("\ud55c \u00c5"); // a syllable and a singleton
        expect(nfc("e\u030d\u0301")).toBe("e\u030d\u0301"); // a mark between a letter and a mark of the same class
        expect(nfc("\u0958")).toBe("\u0915\u093c"); // a composition exclusion
    });
});
