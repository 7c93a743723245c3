import { expect, test } from "vitest";

import { readSettings, readStored, readTokenIds } from "../../../page/settings.js";

test("empty fields mean the bundle's defaults", () => {
    const defaults = { temperature: 0.6, topK: 20 };
    expect(readSettings({ temperature: " ", seed: "" }, defaults)).toEqual({ sampling: defaults });
    expect(readSettings({ temperature: "0", seed: "3" }, defaults)).toEqual({
        sampling: { temperature: 0, topK: 20, seed: 3n },
    });
});

test("numbers become options, and a large seed keeps all digits", () => {
    const texts = {
        maxNewTokens: "64",
        temperature: "0.7",
        topP: "0.9",
        topK: "40",
        minP: "0.05",
        repetitionPenalty: "1.1",
    };
    expect(readSettings({ ...texts, seed: "18446744073709551615" }, {})).toEqual({
        maxNewTokens: 64,
        sampling: { temperature: 0.7, topP: 0.9, topK: 40, minP: 0.05, repetitionPenalty: 1.1, seed: 2n ** 64n - 1n },
    });
});

test.each([
    [{ temperature: "warm" }, "temperature", 'Temperature: found "warm", expected a number from 0 to 1000000'],
    [{ topP: "1.5" }, "topP", 'Top-p: found "1.5", expected a number from 0 to 1'],
    [{ topK: "2.5" }, "topK", 'Top-k: found "2.5", expected a whole number from 0 to 2147483647'],
    [{ maxNewTokens: "0" }, "maxNewTokens", 'New tokens at most: found "0", expected a whole number from 1 to 100000'],
    [
        { repetitionPenalty: "0" },
        "repetitionPenalty",
        'Repetition penalty: found "0", expected a number from 0.01 to 100',
    ],
    [{ seed: "18446744073709551616" }, "seed", 'Seed: found "18446744073709551616", expected a whole number from 0'],
    [{ seed: "-1" }, "seed", 'Seed: found "-1"'],
    [{ minP: "Infinity" }, "minP", 'Min-p: found "Infinity"'],
])("%j is refused", (texts, field, message) => {
    const refused = expect.objectContaining({ field, message: expect.stringContaining(message) as string }) as Error;
    expect(() => readSettings(texts, {})).toThrow(refused);
});

test("token ids have spaces or commas between them", () => {
    expect(readTokenIds(" 1, 2\n3 ", 4)).toEqual([1, 2, 3]);
    expect(() => readTokenIds("1 4", 4)).toThrow('found "4", expected token ids from 0 to 3');
    expect(() => readTokenIds("one", 4)).toThrow('found "one"');
});

test("stored texts of another form are ignored", () => {
    expect(readStored('{"topK": "5", "seed": 7}')).toEqual({ topK: "5" });
    for (const stored of [null, "", "{", "null", "7"]) expect(readStored(stored)).toEqual({});
});
