/** The text of a stream of tokens, and the strings that end it (docs/bundle-format.md, "Text"). */

import { RequestError } from "../errors.js";
import { hasLoneSurrogate } from "./checks.js";
import type { Tokenizer } from "./tokenizer/tokenizer.js";

const incomplete = "\ufffd"; // decoders return it for bytes that are no character
const recentTokens = 8; // more than the 4 bytes of a character, each of which can be one token
const mostStrings = 16;
const longestString = 1000; // characters

/**
 * Converts token ids, one at a time, to pieces of text. A piece is returned once no later id can change it. The time of
 * an id does not grow with the length of the text: only the latest ids can change how the next ids are decoded.
 */
export class TextStream {
    readonly #tokenizer: Tokenizer;
    #context: readonly number[] = [];
    #contextText = "";
    #held: number[] = [];

    /** Start after a prompt. */
    constructor(tokenizer: Tokenizer, prompt: readonly number[]) {
        this.#tokenizer = tokenizer;
        const context: number[] = [];
        for (const id of prompt) if (tokenizer.isShown(id)) this.#append(context, id);
        this.#setContext(context);
    }

    /** Add an id. Return the text that it completes, often an empty text. */
    push(id: number): string {
        if (!this.#tokenizer.has(id) || this.#tokenizer.isSpecial(id)) return "";
        if (this.#tokenizer.isShown(id)) this.#append(this.#held, id);
        if (this.#held.length === 0 || this.#tokenizer.isByte(id)) return "";
        const end = this.#recent(this.#held);
        if (end.length < this.#held.length && this.#tokenizer.decode(end).endsWith(incomplete)) return "";
        const text = this.#heldText();
        return text.endsWith(incomplete) ? "" : this.#release(text);
    }

    /** Return the text that is still held back. Call it after the last id. */
    finish(): string {
        return this.#held.length === 0 ? "" : this.#release(this.#heldText());
    }

    /** Append an id. Several empty tokens in a row decode as one does, so they are one: the list stays short. */
    #append(ids: number[], id: number): void {
        if (this.#tokenizer.hasText(id) || ids.at(-1) !== id) ids.push(id);
    }

    /**
     * Return the latest ids, such that more ids change the decoded text of all ids and of these ids in the same way: a
     * run of byte tokens as a whole, and some tokens before the first token that can still change.
     */
    #recent(ids: readonly number[]): readonly number[] {
        let count = 0;
        for (let start = ids.length - 1; start >= 0; start--) {
            if (!this.#tokenizer.hasText(ids[start]!)) continue;
            count++;
            if (count >= recentTokens && !this.#tokenizer.isByte(ids[start]!)) return ids.slice(start);
        }
        return ids;
    }

    #setContext(ids: readonly number[]): void {
        this.#context = this.#recent(ids);
        this.#contextText = this.#tokenizer.decode(this.#context);
    }

    #heldText(): string {
        const text = this.#tokenizer.decode(this.#context.concat(this.#held));
        return text.startsWith(this.#contextText)
            ? text.slice(this.#contextText.length)
            : this.#tokenizer.decode(this.#held);
    }

    #release(text: string): string {
        const held = this.#held;
        this.#held = [];
        if (this.#tokenizer.decode(held) !== "") {
            this.#setContext(held);
            return text;
        }
        // Held ids without a text of their own, such as a space at the start of a text, are no context for later ids.
        const context = [...this.#context];
        for (const id of held) this.#append(context, id);
        this.#setContext(context);
        return text;
    }
}

/** Ends a text before the first stop string, and holds back beginnings of stop strings. */
export class StopStrings {
    readonly strings: readonly string[];
    #held = "";
    #found = false;

    /**
     * Check the strings.
     *
     * @throws RequestError There are more than 16 strings, or one is not Unicode text of 1 to 1,000 characters.
     */
    constructor(strings: readonly string[]) {
        if (typeof strings === "string") throw new RequestError("stop: found one text, expected a list of strings");
        if (strings.length > mostStrings) {
            throw new RequestError(`stop: found ${strings.length} strings, expected at most ${mostStrings}`);
        }
        for (const string of strings as readonly unknown[]) checkString(string);
        this.strings = [...strings];
    }

    /** Whether a stop string is complete. */
    get found(): boolean {
        return this.#found;
    }

    /** Add a piece. Return the text that can no longer be a part of a stop string. */
    push(piece: string): string {
        if (this.#found) return "";
        const text = this.#held + piece;
        const start = this.#findFirst(text);
        if (start !== undefined) {
            this.#found = true;
            this.#held = "";
            return text.slice(0, start);
        }
        const size = text.length - Math.max(0, ...this.strings.map((string) => overlap(text, string)));
        this.#held = text.slice(size);
        return text.slice(0, size);
    }

    /** Return the text that is still held back. Call it when the text has ended. */
    finish(): string {
        const held = this.#held;
        this.#held = "";
        return held;
    }

    /** Return where the string begins that is complete first; of several that are complete there, the longest. */
    #findFirst(text: string): number | undefined {
        let first = Infinity;
        let start: number | undefined;
        for (const string of this.strings) {
            const place = text.indexOf(string);
            const end = place + string.length;
            if (place < 0 || end > first || (end === first && place >= start!)) continue;
            first = end;
            start = place;
        }
        return start;
    }
}

function checkString(string: unknown): void {
    if (typeof string !== "string" || hasLoneSurrogate(string)) {
        throw new RequestError("stop: found an item that is no Unicode text, expected strings");
    }
    const pairs = string.match(/[\ud800-\udbff]/g)?.length ?? 0;
    const characters = string.length - pairs;
    if (characters === 0 || characters > longestString) {
        throw new RequestError(
            `stop: found a string of ${characters} characters, expected 1 to ${longestString} characters`,
        );
    }
}

/** Return the size of the longest end of a text that is a beginning of a string, but not all of it. */
function overlap(text: string, string: string): number {
    for (let size = Math.min(text.length, string.length - 1); size > 0; size--) {
        if (text.endsWith(string.slice(0, size))) return size;
    }
    return 0;
}
