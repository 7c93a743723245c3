/** Checks of arguments that callers give, who may write JavaScript without types. */

import { RequestError } from "../errors.js";

/** Return a value as text of at most 80 characters for a message. */
export function shown(value: unknown): string {
    if (Array.isArray(value)) return "a list";
    if ((typeof value === "object" && value !== null) || typeof value === "function")
        return `a value of type ${typeof value}`;
    const text = typeof value === "string" ? JSON.stringify(value) : String(value);
    return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

/** Return a whole number from `least` to `most`. */
export function wholeNumber(name: string, value: unknown, least: number, most = Number.MAX_SAFE_INTEGER): number {
    if (typeof value === "number" && Number.isSafeInteger(value) && value >= least && value <= most) return value;
    const range = most === Number.MAX_SAFE_INTEGER ? `${least} or more` : `${least} to ${most}`;
    throw new RequestError(`${name}: found ${shown(value)}, expected a whole number, ${range}`);
}

/** Return the options of a call. */
export function optionsOf<T extends object>(options: T): T {
    if (typeof options === "object" && (options as unknown) !== null) return options;
    throw new RequestError(`options: found ${shown(options)}, expected an object`);
}

/** Return a signal; undefined: there is none. */
export function abortSignal(signal: AbortSignal | null | undefined): AbortSignal | undefined {
    if (signal === undefined || signal === null) return undefined;
    if (typeof signal === "object" && typeof signal.throwIfAborted === "function") return signal;
    throw new RequestError(`signal: found ${shown(signal)}, expected an AbortSignal`);
}

/** Return a function of the caller; undefined: there is none. */
export function listener<T>(name: string, given: ((value: T) => void) | null | undefined): typeof given {
    if (given === undefined || given === null || typeof given === "function") return given;
    throw new RequestError(`${name}: found ${shown(given)}, expected a function`);
}

/** Return a list of the caller, which is an array. `of` says in the message what it holds. */
export function listOf<T>(name: string, given: readonly T[], of: string): readonly T[] {
    if (!Array.isArray(given)) throw new RequestError(`${name}: found ${shown(given)}, expected a list of ${of}`);
    return given as readonly T[];
}

/** Return the messages of a chat: objects whose values are texts. */
export function chatMessages<T extends readonly object[] | undefined>(messages: T): T {
    if (messages === undefined) return messages;
    for (const message of listOf<unknown>("messages", messages, "objects")) {
        const isObject = typeof message === "object" && message !== null && !Array.isArray(message);
        if (isObject && Object.values(message).every((value) => typeof value === "string")) continue;
        throw new RequestError("messages: found another value, expected objects whose values are texts");
    }
    return messages;
}

/** Return a copy of a list of token ids of the vocabulary. A list of numbers may be a typed array. */
export function tokenIds(name: string, ids: unknown, vocabSize: number): number[] {
    if (!Array.isArray(ids) && !(ids instanceof Int32Array)) {
        throw new RequestError(`${name}: found ${shown(ids)}, expected a list of token ids`);
    }
    return Array.from(ids as ArrayLike<unknown>, (id) => {
        if (typeof id === "number" && Number.isInteger(id) && id >= 0 && id < vocabSize) return id;
        throw new RequestError(
            `${name}: found token id ${shown(id)}, expected a whole number, 0 to ${vocabSize - 1} (the vocabulary)`,
        );
    });
}

/** Whether a text has a surrogate that is not part of a pair, so that it has no UTF-8. */
export function hasLoneSurrogate(text: string): boolean {
    return /[\ud800-\udfff]/u.test(text);
}

/** Return a text that is Unicode text: without half of a surrogate pair. */
export function unicodeText(name: string, text: unknown): string {
    if (typeof text !== "string") throw new RequestError(`${name}: found ${shown(text)}, expected a string`);
    if (hasLoneSurrogate(text)) {
        throw new RequestError(`${name}: found half of a surrogate pair, expected Unicode text`);
    }
    return text;
}
