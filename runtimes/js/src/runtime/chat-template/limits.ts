/** The limits of docs/bundle-format.md, "Chat template". */

import { fail } from "./failures.js";

/** Characters of a template. */
export const MAX_SOURCE = 2 ** 18;
/** The largest width of a text, and the largest precision of a number. */
export const MAX_WIDTH = 9999;
/** Bits of an integer in arithmetic. */
export const MAX_BITS = 2 ** 16;
/** Digits of an integer that is read or written, as in Python. */
export const MAX_DIGITS = 4300;
/** Nested statements and expressions of a template, and nested calls. */
export const MAX_DEPTH = 1000;

const MAX_SECONDS = 5;
const MAX_SIZE = 2 ** 26;

/** The work that a rendering may still do. */
export class Work {
    private left: number;
    private depth = 0;
    private readonly end: number;

    constructor(
        private readonly maxSize = MAX_SIZE,
        private readonly maxSeconds = MAX_SECONDS,
    ) {
        this.left = maxSize;
        this.end = Date.now() + 1000 * maxSeconds;
    }

    /**
     * Count the characters or items of a result, and check the time.
     *
     * @throws TemplateFailure A limit is exceeded.
     */
    add(size: number): void {
        this.left -= size;
        if (this.left < 0) {
            fail(`its texts and lists together have more than ${this.maxSize} characters and items`);
        }
        if (Date.now() > this.end) {
            fail(`it takes more than ${this.maxSeconds} seconds`);
        }
    }

    /** Count one more level of nesting. `leave` ends the level. */
    enter(): void {
        this.depth += 1;
        if (this.depth > MAX_DEPTH) {
            fail(`it nests more than ${MAX_DEPTH} operations or calls (recursion)`);
        }
    }

    leave(): void {
        this.depth -= 1;
    }
}

/** Check an argument that sets the size of a result. */
export function checkWidth(name: string, value: bigint | number): void {
    if (value > MAX_WIDTH || value < -MAX_WIDTH) {
        fail(`${name}: found the argument ${value}, expected at most ${MAX_WIDTH}`);
    }
}
