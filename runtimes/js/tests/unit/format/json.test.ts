import { describe, expect, test } from "vitest";

import { BundleError, RequestError } from "../../../src/errors.js";
import { parseJson } from "../../../src/format/json.js";

const utf8 = new TextEncoder();

function refusal(run: () => unknown): string {
    try {
        run();
    } catch (error) {
        if (error instanceof BundleError) return error.message;
        throw error;
    }
    throw new Error("nothing was refused");
}

describe("a strict document", () => {
    const document = parseJson(
        utf8.encode(' {"a": [1, -0, 2.50, 1e3, true, null], "__proto__": {"ä\\u00df\\n\\ud83d\\ude00": "€"}} '),
        "m.json",
    );

    test("keeps types, order and places", () => {
        expect([...document.fields().keys()]).toEqual(["a", "__proto__"]);
        const items = document.get("a").list();
        expect(items.map((item) => item.type)).toEqual(["integer", "integer", "number", "number", "boolean", "null"]);
        expect(Object.is(items[1]!.integer(-5, 5), 0)).toBe(true);
        expect(items[2]!.number()).toBe(2.5);
        expect(items[0]!.number()).toBe(1);
        expect(items[4]!.boolean()).toBe(true);
        expect(items[5]!.isNull).toBe(true);
        expect(items[3]!.path).toBe("a[3]");
        const [key, value] = [...document.get("__proto__").fields()][0]!;
        expect(key).toBe("äß\n😀");
        expect(value.text()).toBe("€");
        expect(value.path).toBe("__proto__.äß\\n😀");
    });

    test("refuses other types, ranges and fields", () => {
        const list = document.get("a").list();
        expect(refusal(() => list[3]!.integer(0, 5000))).toBe("m.json: a[3]: found a number, expected an integer");
        expect(refusal(() => list[0]!.integer(2, 3))).toBe("m.json: a[0]: found 1, expected 2 to 3");
        expect(refusal(() => list[0]!.integer(2, 2))).toBe("m.json: a[0]: found 1, expected 2");
        expect(refusal(() => list[0]!.text())).toBe("m.json: a[0]: found an integer, expected a text");
        expect(refusal(() => document.get("b"))).toBe('m.json: found no field "b", expected one');
        expect(refusal(() => list[0]!.find("b"))).toBe("m.json: a[0]: found an integer, expected an object");
        expect(
            refusal(() => {
                document.expectFields(["a"]);
            }),
        ).toContain('the unknown field "__proto__"');
        expect(
            refusal(() => {
                document.expectFields(["a", "__proto__", "c"]);
            }),
        ).toContain('no field "c"');
        expect(refusal(() => parseJson('"x\\ny"', "m").oneOf(["a", "b"]))).toBe(
            'm: found "x\\ny", expected "a" or "b"',
        );
        expect(refusal(() => parseJson("1e999", "m").number())).toContain("a number that a float64 can hold");
        expect(refusal(() => parseJson("123456789012345678901", "m").integer(0, Number.MAX_SAFE_INTEGER))).toContain(
            "expected 0 to 9007199254740991",
        );
    });
});

test.each([
    ["", "no value"],
    ["{", "no key"],
    ["{}x", "text after the end"],
    ['{"a":1,"a":2}', 'the key "a" a second time'],
    ['{"a":1,"\\u0061":2}', 'the key "a" a second time'],
    ['{"a" 1}', "no colon"],
    ['{"a":1,}', "no key"],
    ["[1,]", "no value"],
    ["[1 2]", "no end of a list"],
    ['{"a":1 "b"}', "no end of an object"],
    ["NaN", "no value"],
    ["-Infinity", "no value"],
    ["01", "text after the end"],
    ["+1", "no value"],
    ["1.", "no digit after"],
    [".5", "no value"],
    ["1e", "no digit in an exponent"],
    ['"a', "a control character, or no end"],
    ['"a\n"', "a control character"],
    ['"\\x"', "an unknown escape"],
    ['"\\u12g4"', "a wrong escape"],
    ['"\\ud800"', "half of a surrogate pair"],
    ['"\\udc00\\ud800"', "half of a surrogate pair"],
    ['"\\ud800\\u0041"', "half of a surrogate pair"],
    ["\ufeff1", "no value"],
    ["\u00a01", "no value"],
])("%j is refused", (text, why) => {
    expect(refusal(() => parseJson(utf8.encode(text), "m.json"))).toContain(`m.json: is not valid JSON: found ${why}`);
});

test("64 levels are allowed, and not more", () => {
    expect(refusal(() => parseJson("[".repeat(100_000), "m"))).toContain("more than 64 levels");
    expect(parseJson("[".repeat(65) + "]".repeat(65), "m").list()).toHaveLength(1);
});

test.each([[0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80]])("bytes that are not UTF-8 are refused", (...bytes) => {
    expect(refusal(() => parseJson(new Uint8Array([0x22, ...bytes, 0x22]), "m"))).toContain("not UTF-8");
});

test("the caller chooses the kind of error", () => {
    const makeError = (message: string) => new RequestError(message);
    expect(() => parseJson("{", "m", makeError)).toThrow(RequestError);
    expect(() => parseJson("{}", "m", makeError).get("a")).toThrow(RequestError);
});
