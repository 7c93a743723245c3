/**
 * The regular expressions that split a text into words before byte-level BPE.
 *
 * They are a closed list, and each has its own code: the engine's `\p{L}` and `\s` are not those of the library, and
 * the code takes one step for each character.
 */

import { Class, classOf } from "./unicode.js";

interface Rules {
    /** Apostrophe and letters, at the place `lastIndex`. */
    readonly contraction: RegExp;
    /** The rules of Llama 3 and Qwen 2: any character but a newline may be before letters, newlines stay together. */
    readonly isNewer: boolean;
    /** The most numbers in a word. */
    readonly numbers: number;
}

const newer = (numbers: string): string =>
    String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|${numbers}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
const anyCase = /'(?:[stmd]|re|ve|ll)/iuy; // with these flags "s" is also U+017F, as in the library
const patterns = new Map<string, Rules>([
    [
        String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
        { contraction: /'(?:[stmd]|re|ve|ll)/y, isNewer: false, numbers: Infinity },
    ],
    [newer(String.raw`\p{N}{1,3}`), { contraction: anyCase, isNewer: true, numbers: 3 }],
    [newer(String.raw`\p{N}`), { contraction: anyCase, isNewer: true, numbers: 1 }],
]);

/** Return the matches of an expression in a text. Together they are the whole text. */
export type WordPattern = (text: string) => string[];

/** Return the pattern with exactly this regular expression (GPT-2, Llama 3 or Qwen 2), or undefined. */
export function findWordPattern(expression: string): WordPattern | undefined {
    const rules = patterns.get(expression);
    return rules && ((text) => matchWords(rules, text));
}

export const gpt2Words: WordPattern = (text) => matchWords(patterns.values().next().value!, text);

function matchWords(rules: Rules, text: string): string[] {
    const classes = classesOf(text);
    const words: string[] = [];
    for (let at = 0; at < text.length;) {
        const end = wordEnd(rules, text, classes, at);
        words.push(text.slice(at, end));
        at = end;
    }
    return words;
}

/** Return the class of each UTF-16 unit, the same for both units of a character, and `Class.end`. */
function classesOf(text: string): Uint8Array {
    const classes = new Uint8Array(text.length + 2).fill(Class.end);
    for (let at = 0; at < text.length; at++) {
        const code = text.codePointAt(at)!;
        classes[at] = classOf(code);
        if (code > 0xffff) classes[++at] = classOf(code);
    }
    return classes;
}

/** Return the end of the match that begins at a place. The alternatives are in the order of the expressions. */
function wordEnd(rules: Rules, text: string, classes: Uint8Array, at: number): number {
    const run = (from: number, kind: number): number => {
        while (classes[from] === kind) from++;
        return from;
    };
    const after = (from: number): number => from + (text.codePointAt(from)! > 0xffff ? 2 : 1);
    const kind = classes[at];
    const next = after(at);
    const afterSpace = text[at] === " " ? next : at; // ' ?'

    rules.contraction.lastIndex = at;
    if (text[at] === "'" && rules.contraction.test(text)) return rules.contraction.lastIndex;

    // ' ?\p{L}+' or '[^\r\n\p{L}\p{N}]?\p{L}+'
    const isPrefix = kind === Class.space || kind === Class.other;
    const letters = !rules.isNewer ? afterSpace : isPrefix ? next : at;
    if (classes[letters] === Class.letter) return run(letters, Class.letter);

    // ' ?\p{N}+', '\p{N}{1,3}' or '\p{N}'
    const numbers = rules.isNewer ? at : afterSpace;
    if (classes[numbers] === Class.number) {
        if (!rules.isNewer) return run(numbers, Class.number);
        let end = numbers;
        for (let count = 0; count < rules.numbers && classes[end] === Class.number; count++) end = after(end);
        return end;
    }

    // ' ?[^\s\p{L}\p{N}]+', and '[\r\n]*' after it
    if (classes[afterSpace] === Class.other) {
        const end = run(afterSpace, Class.other);
        return rules.isNewer ? run(end, Class.newline) : end;
    }

    // '\s*[\r\n]+' in the newer patterns; '\s+(?!\S)|\s+'
    let end = at;
    let afterNewline = at;
    for (; classes[end] === Class.space || classes[end] === Class.newline; end++) {
        if (classes[end] === Class.newline) afterNewline = end + 1;
    }
    if (rules.isNewer && afterNewline > at) return afterNewline;
    return classes[end] === Class.end || end === at + 1 ? end : end - 1;
}
