import { describe, expect, test } from "vitest";

import { RequestError } from "../../../src/errors.js";
import { StopStrings, TextStream } from "../../../src/runtime/text-stream.js";
import { Tokenizer } from "../../../src/runtime/tokenizer/tokenizer.js";

const flags = { normalized: false, single_word: false, lstrip: false, rstrip: false };
// U+00E4 is the bytes C3 A4, whose characters are U+00C3 and U+00A4. The token 4 is special.
const byteLevel = {
    decoder: { type: "ByteLevel", add_prefix_space: false },
    added_tokens: [{ id: 4, content: "<s>", special: true, ...flags }],
    model: { vocab: { a: 0, Ġb: 1, Ã: 2, "¤": 3 }, merges: [] },
};
const fallback = {
    decoder: {
        type: "Sequence",
        decoders: [
            { type: "Replace", pattern: { String: "▁" }, content: " " },
            { type: "ByteFallback" },
            { type: "Fuse" },
            { type: "Strip", content: " ", start: 1, stop: 0 },
        ],
    },
    model: { vocab: { a: 0, "▁b": 1, "<0xC3>": 2, "<0xA4>": 3, "▁": 4, "": 5 }, merges: [] },
};

/** Return the pieces of a stream, each with "|" after it, and the rest. */
function pieces(fields: object, prompt: readonly number[], ids: readonly number[]): string {
    const tokenizer = Tokenizer.parse(new TextEncoder().encode(JSON.stringify(fields)), "tokenizer.json");
    const stream = new TextStream(tokenizer, prompt);
    return ids.map((id) => `${stream.push(id)}|`).join("") + stream.finish();
}

const many = (id: number): number[] => Array<number>(200_000).fill(id);

describe("pieces of a byte-level tokenizer", () => {
    test.each<[string, number[], number[], string]>([
        ["a character of two tokens", [], [0, 1, 2, 3, 0], "a| b||ä|a|"],
        ["ids without text", [0], [4, 9, -1, 2, 4, 3], "|||||ä|"],
        ["bytes that are no character", [0], [2, 2, 0, 2], "||\ufffd\ufffda||\ufffd"],
        // The first id completes a character of the prompt, so it is decoded alone.
        ["a prompt that ends in a character", [2], [3, 0], "|\ufffda|"],
    ])("%s", (_, prompt, ids, expected) => {
        expect(pieces(byteLevel, prompt, ids)).toBe(expected);
    });
});

describe("pieces of a byte-fallback tokenizer", () => {
    test.each<[string, number[], number[], string]>([
        ["the space at the start of a text", [], [1, 1, 2, 3, 0], "b| b|||äa|"],
        ["a text after a prompt", [0], [1, 2, 3], " b|||ä"],
        ["spaces at the start of a text", [], [4, 4, 4, 0], "| | |a|"],
        ["a wrong run of bytes", [0], [2, 3, 2, 0], "|||\ufffd\ufffd\ufffda|"],
        ["an empty token ends a run of bytes", [0], [2, 5, 3, 0], "|||\ufffd\ufffda|"],
    ])("%s", (_, prompt, ids, expected) => {
        expect(pieces(fallback, prompt, ids)).toBe(expected);
    });
});

// Each of these texts takes minutes if the time of an id grows with the length of the text.
describe("the time of an id does not grow", () => {
    test.each<[string, object, number[], number[], number]>([
        ["a long text", byteLevel, many(0), many(0), 400_000],
        ["wrong bytes", byteLevel, many(0), many(2), 400_000],
        ["spaces", fallback, [], many(4), 399_999],
        ["a run of bytes", fallback, many(0), many(2), 400_000],
        ["empty tokens", fallback, many(5), many(5), 200_000],
    ])("%s", (_, fields, prompt, ids, size) => {
        expect(pieces(fields, prompt, ids).length).toBe(size);
    });
});

describe("stop strings", () => {
    test.each<[string, string[], string[], string]>([
        ["none", [], ["ab", "c"], "ab|c|"],
        ["in two pieces", ["cd"], ["abc", "d", "e"], "ab|||!"],
        ["a beginning that is no stop string", ["cd"], ["abc", "ce"], "ab|cce|"],
        ["a beginning at the end", ["cd"], ["abc"], "ab|c"],
        ["the first that is complete, the longest of equals", ["bc", "abcd", "c"], ["xabcd"], "xa|!"],
        ["a string that overlaps itself", ["aab"], ["aaab"], "a|!"],
        ["characters with the same first unit", ["\u{1f642}"], ["\u{1f643}", "\u{1f642}"], "\u{1f643}||!"],
    ])("%s", (_, strings, parts, expected) => {
        const stop = new StopStrings(strings);
        const found = parts.map((part) => `${stop.push(part)}|`).join("") + stop.finish();
        expect(found + (stop.found ? "!" : "")).toBe(expected);
    });

    test("impossible ones are refused", () => {
        const refused = (strings: unknown, message: string) => {
            expect(() => new StopStrings(strings as string[])).toThrow(RequestError);
            expect(() => new StopStrings(strings as string[])).toThrow(message);
        };
        refused(Array(17).fill("a"), "17 strings");
        refused([""], "0 characters");
        refused(["a".repeat(1001)], "1001 characters");
        refused(["\ud83d"], "no Unicode text");
        refused([1], "no Unicode text");
        refused("abc", "one text");
        const longest = "\u{1f642}".repeat(1000); // 1,000 code points
        expect(new StopStrings([longest]).strings).toEqual([longest]);
    });
});
