/** The decoder of a tokenizer: tokens to text. */

import { type JsonValue, quoted } from "../../format/json.js";
import { decodeByteLevel } from "./byte-level.js";
import { partsOf, typeOf } from "./fields.js";
import { Growth, readReplace, type TextStep } from "./normalizer.js";
import { isOneCharacter, readMetaspace } from "./pre-tokenizer.js";

/** Returns the text of tokens. Bytes that are not a character become U+FFFD. */
export interface TokenDecoder {
    decode(tokens: readonly string[]): string;
    /** The largest factor by which the text is longer than the tokens. */
    readonly growth: number;
}

/** Return the byte of a token such as <0xE4>, or undefined. */
export function byteOfToken(token: string): number | undefined {
    return /^<0x[0-9A-Fa-f]{2}>$/.test(token) && token.length === 6 ? parseInt(token.slice(3, 5), 16) : undefined;
}

/**
 * Return the decoder of the field `decoder`: ByteLevel, Metaspace, or a Sequence of Replace, ByteFallback, Fuse and
 * Strip, each of which may be missing.
 */
export function readDecoder(field: JsonValue): TokenDecoder {
    const type = typeOf(field, ["ByteLevel", "Metaspace", "Sequence", "Replace", "ByteFallback", "Fuse"]);
    if (type === "ByteLevel") return { decode: decodeByteLevel, growth: 1 };
    if (type !== "Metaspace") return readSequence(field);
    const { replacement, scheme } = readMetaspace(field);
    const decode = (tokens: readonly string[]): string =>
        tokens
            .map((token, index) => token.replaceAll(replacement, index === 0 && scheme !== "never" ? "" : " "))
            .join("");
    return { decode, growth: 1 };
}

/** The four steps must be in the order in which they work as one: replacements in tokens, then bytes, then the text. */
function readSequence(sequence: JsonValue): TokenDecoder {
    const names = ["Replace", "ByteFallback", "Fuse", "Strip"] as const;
    const growth = new Growth();
    const replacements: TextStep[] = [];
    const seen = new Set<string>();
    let latest = 0;
    let stripped = "";
    for (const part of partsOf(sequence, "decoders")) {
        const type = typeOf(part, names);
        const place = names.indexOf(type);
        if (place < latest) {
            throw part.error(
                `"${type}" after "${names[latest]}"`,
                `an earlier place: the order is ${names.join(", ")}`,
            );
        }
        latest = place;
        if (type === "Replace") replacements.push(readReplace(part, growth));
        if (type === "Strip") {
            if (!seen.has("Fuse")) throw part.error('"Strip"', '"Fuse" before it');
            if (seen.has("Strip")) throw part.error('"Strip" a second time', "it once");
            stripped = readStrip(part);
        }
        seen.add(type);
    }
    const hasBytes = seen.has("ByteFallback");
    const replace: TextStep = (token) => replacements.reduce((changed, step) => step(changed), token);
    const decode = (tokens: readonly string[]): string => {
        const text = decodeBytes(tokens.map(replace), hasBytes);
        return text.startsWith(stripped) ? text.slice(stripped.length) : text;
    };
    return { decode, growth: growth.factor };
}

/** Return the character that is removed once at the start of a text. */
function readStrip(part: JsonValue): string {
    part.get("start").integer(1, 1);
    part.get("stop").integer(0, 0);
    const content = part.get("content").text();
    if (!isOneCharacter(content)) throw part.get("content").error(quoted(content), "one character");
    return content;
}

/** Join tokens, and decode each run of byte tokens as a whole. */
function decodeBytes(tokens: readonly string[], hasBytes: boolean): string {
    let text = "";
    let run: number[] = [];
    const endRun = (): void => {
        if (run.length > 0) text += decodeRun(run);
        run = [];
    };
    for (const token of tokens) {
        const byte = hasBytes ? byteOfToken(token) : undefined;
        if (byte === undefined) {
            endRun();
            text += token;
        } else {
            run.push(byte);
        }
    }
    endRun();
    return text;
}

function decodeRun(bytes: readonly number[]): string {
    try {
        return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(bytes));
    } catch {
        return "\ufffd".repeat(bytes.length);
    }
}
