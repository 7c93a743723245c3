/** Classes of characters as Python defines them. A character is a code point. */

import { unsupported } from "./failures.js";

/** White space of Python's `str.isspace` and of `\s` in its regular expressions, for a class of characters. */
export const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";

const IS_SPACE = new RegExp(`^[${SPACE}]$`);
const ASCII = /^[\0-\x7f]*$/;

export function isSpace(character: string): boolean {
    return IS_SPACE.test(character);
}

export function isAscii(text: string): boolean {
    return ASCII.test(text);
}

/** Return the characters of a text. */
export function characters(text: string): string[] {
    return isAscii(text) ? text.split("") : Array.from(text);
}

/** Return the number of characters of a text. */
export function length(text: string): number {
    if (isAscii(text)) {
        return text.length;
    }
    let count = 0;
    for (let at = 0; at < text.length; at += (text.codePointAt(at) ?? 0) > 0xffff ? 2 : 1) {
        count += 1;
    }
    return count;
}

/** Return a text without the characters for which `strips` is true, at its start, its end or both. */
export function strip(text: string, strips: (character: string) => boolean, start: boolean, end: boolean): string {
    const all = characters(text);
    let from = 0;
    let to = all.length;
    while (start && from < to && strips(all[from]!)) {
        from += 1;
    }
    while (end && to > from && strips(all[to - 1]!)) {
        to -= 1;
    }
    return all.slice(from, to).join("");
}

/** Compare two texts by code points. */
export function compareText(left: string, right: string): number {
    const size = Math.min(left.length, right.length);
    for (let at = 0; at < size; at += 1) {
        let a = left.charCodeAt(at);
        let b = right.charCodeAt(at);
        if (a !== b) {
            // Surrogates stand for code points above 0xffff.
            a += a >= 0xd800 && a < 0xe000 ? 0x10000 : 0;
            b += b >= 0xd800 && b < 0xe000 ? 0x10000 : 0;
            return a - b;
        }
    }
    return left.length - right.length;
}

type Property = (character: string) => boolean;

const isDecimal: Property = (character) => /^\p{Nd}$/u.test(character);
const isLetter: Property = (character) => /^\p{L}$/u.test(character);
export const isUpper: Property = (character) => /^\p{Uppercase}$/u.test(character);
export const isLower: Property = (character) => /^\p{Lowercase}$/u.test(character);
export const isCased: Property = (character) => /^[\p{Lowercase}\p{Uppercase}\p{Lt}]$/u.test(character);

/** Refuse characters whose numeric properties JavaScript does not know, such as "²" and "一". */
function digit(character: string, name: string, letters: RegExp): boolean {
    if (isDecimal(character)) {
        return true;
    }
    return letters.test(character) ? unsupported(`${name} of the character "${character}"`) : false;
}

/** The tests of texts such as `isalpha`, for each character. */
export const CHARACTER_TESTS: ReadonlyMap<string, Property> = new Map<string, Property>([
    ["isalpha", isLetter],
    ["isalnum", (character) => /^[\p{L}\p{N}]$/u.test(character)],
    ["isdecimal", isDecimal],
    ["isdigit", (character) => digit(character, "isdigit", /^\p{No}$/u)],
    ["isnumeric", (character) => /^\p{N}$/u.test(character) || digit(character, "isnumeric", /^\p{Script=Han}$/u)],
    ["isspace", isSpace],
]);

/** Return a character as the first one of a word. */
export function titleCase(character: string): string {
    const upper = character.toUpperCase();
    if (characters(upper).length > 1 || /^[\u01c4-\u01cc\u01f1-\u01f3\u10d0-\u10ff]$/.test(character)) {
        unsupported(`the title case of the character "${character}"`);
    }
    return upper;
}
