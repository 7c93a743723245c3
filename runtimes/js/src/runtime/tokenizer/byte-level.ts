/**
 * The characters that byte-level BPE uses for bytes (GPT-2): printable Latin-1 characters stand for themselves; the
 * other bytes, in ascending order, have U+0100, U+0101, ...
 */

import { byteLength } from "./fields.js";

const standsForItself = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;

function makeCharacters(): string[] {
    let substitute = 0x100;
    return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(standsForItself(byte) ? byte : substitute++));
}

const characters = makeCharacters();
const bytesOfCharacters = new Map(characters.map((character, byte) => [character, byte]));

/** Return one character for each byte of the text's UTF-8. */
export function charactersOfBytes(text: string): string {
    let found = "";
    for (const byte of new TextEncoder().encode(text)) found += characters[byte]!;
    return found;
}

/**
 * Return the text of tokens. If one of a token's characters stands for no byte, the token stands for its own UTF-8.
 * Bytes that are no character become U+FFFD.
 */
export function decodeByteLevel(tokens: readonly string[]): string {
    const bytes = new Uint8Array(tokens.reduce((size, token) => size + byteLength(token), 0));
    let end = 0;
    for (const token of tokens) {
        const start = end;
        for (const character of token) {
            const byte = bytesOfCharacters.get(character);
            if (byte === undefined) {
                const own = new TextEncoder().encode(token);
                bytes.set(own, start);
                end = start + own.length;
                break;
            }
            bytes[end++] = byte;
        }
    }
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.subarray(0, end));
}
