import { readFileSync } from "node:fs";

import { describe, expect, test } from "vitest";

import { BundleError, MemoryError, RequestError } from "../../../src/errors.js";
import { Tokenizer } from "../../../src/runtime/tokenizer/tokenizer.js";
import { findWordPattern } from "../../../src/runtime/tokenizer/word-pattern.js";

const byteLevel = { type: "ByteLevel", add_prefix_space: false, use_regex: true };
const byteModel = {
    type: "BPE",
    vocab: { a: 0, b: 1, ab: 2, Ġ: 3, Ġab: 4, Ã: 5, "¤": 6, "<s>": 7 },
    merges: ["a b", ["Ġ", "ab"]],
};
const replace = (from: string, to: string) => ({ type: "Replace", pattern: { String: from }, content: to });
const fallback = {
    normalizer: { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, replace(" ", "▁")] },
    post_processor: {
        type: "TemplateProcessing",
        single: [{ SpecialToken: { id: "x", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
        special_tokens: { x: { id: "x", ids: [9] } },
    },
    decoder: {
        type: "Sequence",
        decoders: [
            replace("▁", " "),
            { type: "ByteFallback" },
            { type: "Fuse" },
            { type: "Strip", content: " ", start: 1, stop: 0 },
        ],
    },
    model: {
        type: "BPE",
        unk_token: "<unk>",
        fuse_unk: true,
        byte_fallback: true,
        merges: [["▁", "a"]],
        vocab: { "<unk>": 0, "<0xC3>": 1, "<0xA4>": 2, "▁": 3, a: 4, "▁a": 5, "<0x0A>": 6 },
    },
};

function make(fields: object): Tokenizer {
    const content = JSON.stringify({ decoder: byteLevel, model: byteModel, ...fields });
    return Tokenizer.parse(new TextEncoder().encode(content), "tokenizer.json");
}

function added(content: string, ...flags: string[]): Record<string, unknown> {
    const names = ["special", "normalized", "single_word", "lstrip", "rstrip"];
    return { id: 0, content, ...Object.fromEntries(names.map((name) => [name, flags.includes(name)])) };
}

const ids = (tokenizer: Tokenizer, text: string): string => tokenizer.encode(text, true).join(" ");

describe("ids and texts by hand", () => {
    test("byte-level", () => {
        const tokenizer = make({ pre_tokenizer: byteLevel, added_tokens: [added("<s>", "special")] });
        expect(ids(tokenizer, "")).toBe("");
        expect(ids(tokenizer, "ab ab")).toBe("2 4");
        expect(ids(tokenizer, "b aä")).toBe("1 3 0 5 6"); // U+00E4 is C3 A4: the characters U+00C3 and U+00A4
        expect(ids(tokenizer, "a<s> ab")).toBe("0 7 4");
        expect(tokenizer.decode([2, 7, 4, 5])).toBe("ab ab\ufffd");
        expect(tokenizer.decode([5, 6, -1, 8, 3])).toBe("ä ");
        expect([7, 8, -1].map((id) => tokenizer.has(id))).toEqual([true, false, false]);
        expect([7, 0].map((id) => tokenizer.isSpecial(id))).toEqual([true, false]);
        expect([7, 0].map((id) => tokenizer.hasText(id))).toEqual([false, true]);
        expect(tokenizer.specialIds("<s>")).toEqual([7]);
        expect(tokenizer.specialIds("a")).toEqual([]);
    });

    test("byte fallback", () => {
        const tokenizer = make(fallback);
        expect(ids(tokenizer, "a a")).toBe("9 5 5");
        expect(ids(tokenizer, "äa")).toBe("9 3 1 2 4");
        expect(ids(tokenizer, "xxa")).toBe("9 3 0 4");
        expect(ids(tokenizer, "x\na")).toBe("9 3 6 0 4"); // the unknown token comes after the bytes, as in the library
        expect(tokenizer.encode("a", false)).toEqual([5]);
        expect(tokenizer.decode([5, 1, 2, 5])).toBe("aä a");
        expect(tokenizer.decode([1, 2, 1, 4])).toBe("\ufffd\ufffd\ufffda");
        expect([1, 0].map((id) => tokenizer.isByte(id))).toEqual([true, false]);
    });

    test("added tokens", () => {
        const withTokens = (...tokens: object[]) => make({ added_tokens: tokens });
        expect(ids(withTokens(added("x", "single_word")), "x ax x. x")).toBe("8 0 8 8");
        expect(ids(withTokens(added("x", "lstrip", "rstrip")), "a \u3000x\t a")).toBe("0 8 0");
        expect(ids(withTokens(added("x"), added("xa"), added("b")), "xxab")).toBe("8 9 1");
        const normalized = make({
            normalizer: { type: "NFC" },
            added_tokens: [added("a\u0323", "normalized", "special")],
        });
        expect(ids(normalized, "a\u1ea1b")).toBe("0 8 1");
        expect(normalized.decode([8])).toBe("\u1ea1"); // as in the library: the special token is not "U+1EA1"
        const overlap = withTokens(added("x", "rstrip"), added(" ", "lstrip"));
        expect(() => overlap.encode("x  ", false)).toThrow(/^tokenizer.json: added_tokens\[1\]: .*white space/);
    });

    test("the order of merges", () => {
        // "b c" comes first and removes the pair "a b"; then "bc d" comes before "a bc".
        const vocab = { a: 0, b: 1, c: 2, d: 3, ab: 4, bc: 5, abc: 6, bcd: 7 };
        const tokenizer = make({ model: { vocab, merges: ["b c", "a b", "bc d", "a bc"] } });
        expect(ids(tokenizer, "abcd")).toBe("0 7");
        expect(ids(tokenizer, "abc")).toBe("6");
    });

    test.each(["bytes", "byte-fallback"])("the text of a conformance bundle: %s", (name) => {
        const file = new URL(`../../../../conformance/bundles/${name}/tokenizer.json`, import.meta.url);
        const tokenizer = Tokenizer.parse(readFileSync(file), "tokenizer.json");
        const text = "def f(x):\n    return x + 1  # caf\u00e9 \u{1f642}\n";
        expect(tokenizer.decode(tokenizer.encode(text, false))).toBe(text);
    });
});

describe("words", () => {
    const gpt2 = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
    const newer = (numbers: string) =>
        String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|${numbers}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
    const llama3 = newer(String.raw`\p{N}{1,3}`);
    const qwen2 = newer(String.raw`\p{N}`);
    test.each([
        [gpt2, "it's  IT'S 1234\n\n x", "[it]['s][ ][ IT]['][S][ 1234][\n\n][ x]"],
        [llama3, "it's  IT'S 1234\n\n x", "[it]['s][ ][ IT]['S][ ][123][4][\n\n][ x]"],
        [llama3, "\u{1f642}a \u{1d7db}\u{1d7db}11", "[\u{1f642}a][ ][\u{1d7db}\u{1d7db}1][1]"],
        [qwen2, "'\u017f 12 !!\r\n\t\n  ", "['\u017f][ ][1][2][ !!\r\n][\t\n][  ]"],
        [qwen2, "'\u017fx 'Sx", "['\u017f][x][ '][Sx]"],
        [qwen2, "\tab'x(y", "[\tab]['x][(y]"],
    ])("%s", (expression, text, words) => {
        const found = findWordPattern(expression)!(text);
        expect(found.map((word) => `[${word}]`).join("")).toBe(words);
    });
});

describe("long texts", () => {
    test("a word of 400,000 characters", () => {
        expect(make({}).encode("ab".repeat(200_000), false).length).toBe(200_000);
    });

    test.each(["lstrip", "rstrip"])("white space that tokens take: %s", (flag) => {
        const tokenizer = make({ model: { vocab: { " ": 0 }, merges: [] }, added_tokens: [added(" ", flag)] });
        expect(tokenizer.encode(" ".repeat(200_000), false).length).toBe(200_000);
    });

    test("a text that would not fit in memory", () => {
        const normalizer = { type: "Sequence", normalizers: Array(6).fill(replace("a", "aa")) };
        expect(() => make({ normalizer }).encode("a".repeat(2 ** 20 + 1), false)).toThrow(MemoryError);
        const decoder = { type: "Sequence", decoders: Array(6).fill(replace("a", "aa")) };
        expect(() => make({ decoder }).decode(Array<number>(2 ** 20 + 1).fill(0))).toThrow(MemoryError);
    });
});

test("half a surrogate pair is no text", () => {
    expect(() => make({}).encode("a\ud83d", false)).toThrow(RequestError);
    expect(() => make({}).encode("\ude42a", false)).toThrow(RequestError);
});

describe("a tokenizer is refused", () => {
    const sequence = (count: number, part: object, list: string) => ({
        type: "Sequence",
        [list]: Array(count).fill(part),
    });
    const twice = replace("a", "aa");
    const template = (count: number, listed: number[]) => ({
        type: "TemplateProcessing",
        single: [{ Sequence: { id: "A" } }, ...Array<object>(count).fill({ SpecialToken: { id: "x" } })],
        special_tokens: { x: { ids: listed } },
    });
    test.each<[string, object]>([
        [
            'tokenizer.json: normalizer.type: found "Lowercase", expected "NFC" or "Prepend" or "Replace"',
            { normalizer: { type: "Lowercase" } },
        ],
        ['pre_tokenizer.type: found "Whitespace"', { pre_tokenizer: { type: "Whitespace" } }],
        [
            'pre_tokenizer.pattern.Regex: found "a+"',
            { pre_tokenizer: { type: "Split", pattern: { Regex: "a+" }, behavior: "Isolated", invert: false } },
        ],
        ['post_processor.type: found "BertProcessing"', { post_processor: { type: "BertProcessing" } }],
        ['found no field "decoder"', { decoder: undefined }],
        ["decoder: found null", { decoder: null }],
        ['decoder.type: found "WordPiece"', { decoder: { type: "WordPiece" } }],
        [
            'decoder.decoders[1]: found "ByteFallback" after "Fuse"',
            { decoder: { type: "Sequence", decoders: [{ type: "Fuse" }, { type: "ByteFallback" }] } },
        ],
        ['model.type: found "Unigram", expected "BPE"', { model: { type: "Unigram" } }],
        ["model.dropout", { model: { ...byteModel, dropout: 0.1 } }],
        ["model.end_of_word_suffix", { model: { ...byteModel, end_of_word_suffix: "</w>" } }],
        ["model.vocab: found the id 0 a second time", { model: { vocab: { a: 0, b: 0 }, merges: [] } }],
        ["model.vocab.a", { model: { vocab: { a: 2 ** 31 }, merges: [] } }],
        ["model.vocab.a", { model: { vocab: { a: 0.5 }, merges: [] } }],
        ['model.merges[0]: found "ab"', { model: { vocab: { a: 0, b: 1 }, merges: ["a b"] } }],
        ['model.merges[0]: found "a"', { model: { vocab: { a: 0 }, merges: ["a"] } }],
        ["model.merges[0]: found an integer", { model: { vocab: { a: 0 }, merges: [1] } }],
        ["model: found null", { model: null }],
        ['added_tokens[1]: found "x" a second time', { added_tokens: [added("x"), added("x")] }],
        ["normalizer.normalizers[6]: found steps", { normalizer: sequence(7, twice, "normalizers") }],
        ["normalizer.normalizers[3]: found steps", { normalizer: sequence(4, { type: "NFC" }, "normalizers") }],
        ["decoder.decoders[6]: found steps", { decoder: sequence(7, twice, "decoders") }],
        [
            'pre_tokenizer.pretokenizers[1]: found "ByteLevel" a second time',
            { pre_tokenizer: sequence(2, byteLevel, "pretokenizers") },
        ],
        [
            "normalizer.prepend: found a text of 1001 bytes",
            { normalizer: { type: "Prepend", prepend: "a".repeat(1001) } },
        ],
        ["post_processor.single: found 1002 ids, expected at most 1000", { post_processor: template(500, [1, 2, 3]) }],
        ["post_processor.single: found 1001 parts, expected at most 1000", { post_processor: template(1000, []) }],
        ["found half of a surrogate pair", { model: { ...byteModel, unk_token: "\ud83d" } }],
    ])("%s", (message, fields) => {
        let found: unknown;
        try {
            make(fields);
        } catch (error) {
            found = error;
        }
        expect(found).toBeInstanceOf(BundleError);
        expect((found as BundleError).message).toContain(message);
    });

    test("bytes that are no JSON", () => {
        for (const content of ["", "{", "\ufeff{}", "[".repeat(100_000), '{"version": "1.0", "version": "1.0"}']) {
            expect(() => Tokenizer.parse(new TextEncoder().encode(content), "t.json")).toThrow(BundleError);
        }
        expect(() => Tokenizer.parse(Uint8Array.of(0x22, 0xff, 0x22), "t.json")).toThrow(BundleError);
    });

    test("an unknown token that does not exist, once a text needs it", () => {
        const tokenizer = make({ model: { ...byteModel, unk_token: "<unk>" } });
        expect(tokenizer.encode("ab", false)).toEqual([2]);
        expect(() => tokenizer.encode("x", false)).toThrow('tokenizer.json: model.unk_token: found "<unk>"');
    });
});
