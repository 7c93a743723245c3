/** The added tokens of a tokenizer, such as <s>. The rules of ids and search are those of the tokenizers library. */

import { BundleError } from "../../errors.js";
import { type JsonValue, quoted } from "../../format/json.js";
import type { Vocabulary } from "./bpe.js";
import { byteLength } from "./fields.js";
import type { TextStep } from "./normalizer.js";
import { startsWithSpace, startsWithWord } from "./unicode.js";

const longestContent = 1000; // bytes; it limits the time of a search
const largestId = 2 ** 31 - 1;

export interface AddedToken {
    readonly content: string;
    /** The content as the normalizer changes it (if `normalized`); it is searched and decoded. */
    readonly text: string;
    readonly id: number;
    readonly special: boolean;
    /** Found only between characters that are not of a word. */
    readonly singleWord: boolean;
    /** White space before it belongs to it. */
    readonly lstrip: boolean;
    /** White space after it belongs to it. */
    readonly rstrip: boolean;
    /** Searched in the normalized text. */
    readonly normalized: boolean;
    /** The file and the field, for messages. */
    readonly place: string;
}

/** A part of a text: an added token, or text between added tokens, which begins at `start`. */
export interface TextPart {
    readonly text: string;
    readonly start: number;
    readonly token: AddedToken | undefined;
}

function endOfSpace(text: string, start: number): number {
    while (start < text.length && startsWithSpace(text[start]!)) start++;
    return start;
}

function startOfSpace(text: string, least: number, end: number): number {
    while (end > least && startsWithSpace(text[end - 1]!)) end--;
    return end;
}

/** Whether a character of a word is before a place, or after it. */
function isInWord(text: string, start: number, end: number): boolean {
    const before = text.slice(Math.max(0, start - 2), start);
    const last = Array.from(before).at(-1) ?? "";
    return startsWithWord(last) || startsWithWord(text.slice(end, end + 2));
}

/** The search for tokens of a list in a text. At each place the longest token counts. */
export class TokenSearch {
    readonly #tokens: readonly AddedToken[]; // sorted by text
    readonly #starts: ReadonlySet<number>;

    /** Of tokens with the same text, the first one counts. */
    constructor(tokens: readonly AddedToken[]) {
        const byText = new Map<string, AddedToken>();
        for (const token of tokens) if (!byText.has(token.text)) byText.set(token.text, token);
        this.#tokens = [...byText.values()].sort((a, b) => (a.text < b.text ? -1 : 1));
        this.#starts = new Set(this.#tokens.map((token) => token.text.charCodeAt(0)));
    }

    /**
     * Return the longest token that begins at a place. The range of tokens with the same start becomes smaller with each
     * unit.
     */
    #longest(text: string, at: number): AddedToken | undefined {
        if (!this.#starts.has(text.charCodeAt(at))) return undefined;
        let found: AddedToken | undefined;
        let first = 0;
        let last = this.#tokens.length;
        for (let size = 0; first < last; size++) {
            if (this.#tokens[first]!.text.length === size) found = this.#tokens[first++];
            if (at + size === text.length) break;
            const unit = text.charCodeAt(at + size);
            first = this.#bound(first, last, size, unit);
            last = this.#bound(first, last, size, unit + 1);
        }
        return found;
    }

    /** Return the first token of a range whose unit at an index is not below `unit`. */
    #bound(first: number, last: number, index: number, unit: number): number {
        while (first < last) {
            const middle = (first + last) >> 1;
            if (this.#tokens[middle]!.text.charCodeAt(index) < unit) first = middle + 1;
            else last = middle;
        }
        return first;
    }

    /**
     * Return the parts of a text in their order. They overlap in one case: white space that a token takes (`rstrip`) can
     * be a part of the next token.
     */
    split(text: string): TextPart[] {
        const parts: TextPart[] = [];
        const add = (start: number, end: number, token?: AddedToken): void => {
            if (start < end) parts.push({ text: text.slice(start, end), start, token });
        };
        let done = 0;
        for (let at = 0; at < text.length;) {
            const token = this.#longest(text, at);
            if (!token) {
                at++;
                continue;
            }
            let start = at;
            let end = at + token.text.length;
            at = end;
            if (token.singleWord && isInWord(text, start, end)) continue;
            // The text before `done` belongs to earlier tokens. Without these limits, the time for white space is
            // quadratic.
            if (token.lstrip) start = start > done ? startOfSpace(text, done, start) : done;
            if (token.rstrip) end = end < done ? done : endOfSpace(text, end);
            if (start > end) {
                // The library cannot encode such a text either.
                throw new BundleError(
                    `${token.place}: found ${quoted(token.content)} in white space that belongs to the token before it, ` +
                        "expected no token with lstrip there",
                );
            }
            add(done, start);
            add(start, end, token);
            done = end;
        }
        add(done, text.length);
        return parts;
    }
}

function readToken(item: JsonValue, id: number, normalize: TextStep): AddedToken {
    const content = item.get("content").text();
    const normalized = item.get("normalized").boolean();
    return {
        content,
        text: normalized ? normalize(content) : content,
        id,
        special: item.get("special").boolean(),
        singleWord: item.get("single_word").boolean(),
        lstrip: item.get("lstrip").boolean(),
        rstrip: item.get("rstrip").boolean(),
        normalized,
        place: item.place,
    };
}

/**
 * Return the tokens of the field `added_tokens`. A token that is not in the vocabulary has the next free id, whatever id
 * the file has: so does the library. Throws if a content occurs twice, or has more than 1,000 bytes.
 */
export function readAddedTokens(
    list: JsonValue | undefined,
    vocabulary: Vocabulary,
    normalize: TextStep,
): AddedToken[] {
    const tokens: AddedToken[] = [];
    const contents = new Set<string>();
    let next = vocabulary.ids.length;
    for (const item of list?.list() ?? []) {
        const content = item.get("content").text();
        const size = byteLength(content);
        if (size > longestContent)
            throw item.get("content").error(`a text of ${size} bytes`, `at most ${longestContent}`);
        const id = vocabulary.id(content) ?? next;
        const token = readToken(item, id, normalize);
        if (content === "") continue;
        if (contents.has(content)) throw item.error(`${quoted(content)} a second time`, "each content once");
        contents.add(content);
        if (id > largestId) throw item.error(`the id ${id}`, `at most ${largestId}`);
        next = Math.max(next, id + 1);
        tokens.push(token);
    }
    return tokens;
}

/** The added tokens by id, and the searches in the text of the caller and in normalized texts. */
export class AddedTokens {
    readonly all: readonly AddedToken[];
    readonly byId: ReadonlyMap<number, AddedToken>;
    readonly raw: TokenSearch;
    readonly normalized: TokenSearch;
    readonly #hidden: ReadonlySet<string>;

    constructor(tokens: readonly AddedToken[]) {
        this.all = tokens;
        this.byId = new Map(tokens.map((token) => [token.id, token]));
        const special = tokens.filter((token) => token.special);
        const inOrder = [...special, ...tokens.filter((token) => !token.special)];
        this.raw = new TokenSearch(inOrder.filter((token) => !token.normalized));
        this.normalized = new TokenSearch(inOrder.filter((token) => token.normalized));
        this.#hidden = new Set(special.map((token) => token.content));
    }

    /**
     * Whether decoded texts do not show an id: its text is the content of a special token. So the library shows a
     * special token whose content is changed by the normalizer.
     */
    isHidden(id: number): boolean {
        const token = this.byId.get(id);
        return token !== undefined && this.#hidden.has(token.text);
    }
}
