/**
 * A strict reader of JSON (RFC 8259). Keys that occur twice, NaN, Infinity, bad UTF-8 and text after the document are
 * errors. Messages name the file and the field.
 */

import type { MolkvError } from "../errors.js";
import {
    bundleError,
    JsonValue,
    quoted,
    type Content,
    type Document,
    type JsonType,
    type MakeError,
} from "./json-value.js";

export { bundleError, JsonValue, quoted, type JsonType, type MakeError } from "./json-value.js";

const deepest = 64; // levels of lists and objects

/**
 * Parse a document. `where` names it in messages.
 *
 * @throws BundleError The content is not strict JSON in UTF-8. With `makeError`: another kind of error.
 */
export function parseJson(content: Uint8Array | string, where: string, makeError: MakeError = bundleError): JsonValue {
    const text = typeof content === "string" ? content : decodeUtf8(content, where, makeError);
    return new Parser(text, { where, makeError }).parse();
}

function decodeUtf8(bytes: Uint8Array, where: string, makeError: MakeError): string {
    try {
        return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    } catch {
        throw makeError(`${where}: is not valid JSON: found bytes that are not UTF-8`);
    }
}

const escapes: Readonly<Record<string, string>> = {
    '"': '"',
    "\\": "\\",
    "/": "/",
    b: "\b",
    f: "\f",
    n: "\n",
    r: "\r",
    t: "\t",
};

// Codes of characters.
const quote = 0x22;
const plus = 0x2b;
const comma = 0x2c;
const minus = 0x2d;
const point = 0x2e;
const zero = 0x30;
const nine = 0x39;
const colon = 0x3a;
const upperE = 0x45;
const openBracket = 0x5b;
const backslash = 0x5c;
const closeBracket = 0x5d;
const lowerE = 0x65;
const lowerU = 0x75;
const openBrace = 0x7b;
const closeBrace = 0x7d;

const words: readonly (readonly [string, JsonType, Content])[] = [
    ["true", "boolean", true],
    ["false", "boolean", false],
    ["null", "null", null],
];

/** A recursive-descent parser. */
class Parser {
    private position = 0;

    constructor(
        private readonly text: string,
        private readonly document: Document,
    ) {}

    parse(): JsonValue {
        const root = this.value(undefined, "", 0);
        this.skipSpaces();
        if (this.position < this.text.length) throw this.error("text after the end of the document");
        return root;
    }

    private error(found: string): MolkvError {
        const { where, makeError } = this.document;
        return makeError(`${where}: is not valid JSON: found ${found} at character ${this.position}`);
    }

    private skipSpaces(): void {
        for (;;) {
            const code = this.text.charCodeAt(this.position);
            if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return;
            this.position++;
        }
    }

    /** Read a character if it is the next one. */
    private take(code: number): boolean {
        if (this.text.charCodeAt(this.position) !== code) return false;
        this.position++;
        return true;
    }

    private value(parent: JsonValue | undefined, place: string | number, depth: number): JsonValue {
        if (depth > deepest) throw this.error(`more than ${deepest} levels of lists and objects`);
        this.skipSpaces();
        if (this.take(openBrace)) {
            const fields = new Map<string, JsonValue>();
            const object = new JsonValue("object", fields, this.document, parent, place);
            this.fields(object, fields, depth);
            return object;
        }
        if (this.take(openBracket)) {
            const items: JsonValue[] = [];
            const list = new JsonValue("list", items, this.document, parent, place);
            this.items(list, items, depth);
            return list;
        }
        if (this.take(quote)) return new JsonValue("text", this.string(), this.document, parent, place);
        const [type, content] = this.word() ?? this.number();
        return new JsonValue(type, content, this.document, parent, place);
    }

    private word(): [JsonType, Content] | undefined {
        for (const [word, type, content] of words) {
            if (!this.text.startsWith(word, this.position)) continue;
            this.position += word.length;
            return [type, content];
        }
        return undefined;
    }

    private fields(object: JsonValue, fields: Map<string, JsonValue>, depth: number): void {
        this.skipSpaces();
        if (this.take(closeBrace)) return;
        do {
            this.skipSpaces();
            if (!this.take(quote)) throw this.error("no key of an object");
            const key = this.string();
            if (fields.has(key)) throw this.error(`the key ${quoted(key)} a second time`);
            this.skipSpaces();
            if (!this.take(colon)) throw this.error("no colon after a key");
            fields.set(key, this.value(object, key, depth + 1));
            this.skipSpaces();
        } while (this.take(comma));
        if (!this.take(closeBrace)) throw this.error("no end of an object");
    }

    private items(list: JsonValue, items: JsonValue[], depth: number): void {
        this.skipSpaces();
        if (this.take(closeBracket)) return;
        do {
            items.push(this.value(list, items.length, depth + 1));
            this.skipSpaces();
        } while (this.take(comma));
        if (!this.take(closeBracket)) throw this.error("no end of a list");
    }

    private number(): [JsonType, Content] {
        const start = this.position;
        let type: JsonType = "integer";
        this.take(minus);
        if (!this.take(zero) && !this.takeDigits()) throw this.error("no value");
        if (this.take(point)) {
            type = "number";
            if (!this.takeDigits()) throw this.error("no digit after the decimal point");
        }
        if (this.take(lowerE) || this.take(upperE)) {
            type = "number";
            if (!this.take(plus)) this.take(minus);
            if (!this.takeDigits()) throw this.error("no digit in an exponent");
        }
        // The sum with 0 makes 0 of -0.
        return [type, Number(this.text.slice(start, this.position)) + 0];
    }

    private takeDigits(): boolean {
        const start = this.position;
        for (;;) {
            const code = this.text.charCodeAt(this.position);
            if (!(code >= zero && code <= nine)) return this.position > start;
            this.position++;
        }
    }

    /** Read the characters of a string and the quotation mark after it. */
    private string(): string {
        let decoded = "";
        for (;;) {
            decoded += this.plainCharacters();
            if (this.take(quote)) return decoded;
            if (!this.take(backslash)) throw this.error("a control character, or no end, in a text");
            decoded += this.take(lowerU) ? this.codePoint() : this.escape();
        }
    }

    private plainCharacters(): string {
        const start = this.position;
        for (;;) {
            const code = this.text.charCodeAt(this.position);
            // After the end of the text `code` is NaN.
            if (!(code >= 0x20) || code === quote || code === backslash) return this.text.slice(start, this.position);
            this.position++;
        }
    }

    private escape(): string {
        const meaning = escapes[this.text.charAt(this.position)];
        if (meaning === undefined) throw this.error("an unknown escape sequence");
        this.position++;
        return meaning;
    }

    private codePoint(): string {
        const first = this.hexadecimal();
        if (first < 0xd800 || first > 0xdfff) return String.fromCharCode(first);
        if (first > 0xdbff || !(this.take(backslash) && this.take(lowerU)))
            throw this.error("half of a surrogate pair");
        const second = this.hexadecimal();
        if (second < 0xdc00 || second > 0xdfff) throw this.error("half of a surrogate pair");
        return String.fromCharCode(first, second);
    }

    private hexadecimal(): number {
        const digits = this.text.slice(this.position, this.position + 4);
        if (!/^[0-9a-fA-F]{4}$/.test(digits)) throw this.error("a wrong escape sequence");
        this.position += 4;
        return parseInt(digits, 16);
    }
}
