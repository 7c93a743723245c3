/** Reads streamed text to screen readers, in portions that they can follow. */

const INTERVAL_MS = 3000;

/** Gathers text, and announces it at most every three seconds, in whole words. */
export class Announcer {
    readonly #announce: (text: string) => void;
    #waiting = "";
    #timer: ReturnType<typeof setTimeout> | undefined;

    /** @param announce Replaces the content of a live region. */
    constructor(announce: (text: string) => void) {
        this.#announce = announce;
    }

    /** Add a piece of text. */
    push(piece: string): void {
        this.#waiting += piece;
        this.#timer ??= setTimeout(() => {
            this.#timer = undefined;
            const end = this.#waiting.search(/\s\S*$/);
            if (end < 0) return; // a part of a word waits for the rest
            this.#announce(this.#waiting.slice(0, end));
            this.#waiting = this.#waiting.slice(end);
        }, INTERVAL_MS);
    }

    /** Announce what waits and a last sentence. */
    finish(sentence: string): void {
        clearTimeout(this.#timer);
        this.#timer = undefined;
        this.#announce(`${this.#waiting.trim()} ${sentence}`.trim());
        this.#waiting = "";
    }
}
