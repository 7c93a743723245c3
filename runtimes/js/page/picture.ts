/** What the picture of the table shows: squares that light up when one of their rows is used. */

import { countText, plural, shareText } from "./numbers.js";
import type { Origin, RowsByOrigin } from "./origins.js";

const MOST_SQUARES = 2048;
const COLUMNS = 64;
const GLOW_MS = 1500;

/** A square that was used. */
export interface Square {
    readonly index: number;
    readonly origin: Origin;
    /** 1 when a row was just used, then falling to 0. */
    readonly glow: number;
}

/** The squares of a table. Each stands for `rowsOfSquare` rows with neighbouring ids. */
export class TablePicture {
    readonly rows: number;
    readonly rowsOfSquare: number;
    readonly columns: number;
    readonly lines: number;
    readonly squares: number;
    readonly #lit = new Map<number, { origin: Origin; time: number }>();
    readonly #counts: Record<Origin, number> = { network: 0, cache: 0, memory: 0 };

    constructor(rows: number) {
        this.rows = rows;
        this.rowsOfSquare = Math.max(1, Math.ceil(rows / MOST_SQUARES));
        this.squares = Math.ceil(rows / this.rowsOfSquare);
        this.columns = Math.min(COLUMNS, Math.max(1, this.squares));
        this.lines = Math.ceil(this.squares / this.columns);
    }

    /** Light up the squares of rows. `now` is in milliseconds. A square has the colour of its last row. */
    light(rows: RowsByOrigin, now: number): void {
        for (const origin of ["memory", "cache", "network"] as const) {
            for (const row of rows[origin]) {
                if (row < 0 || row >= this.rows) continue;
                this.#lit.set(Math.floor(row / this.rowsOfSquare), { origin, time: now });
                this.#counts[origin] += 1;
            }
        }
    }

    /** Return the squares that were ever lit. */
    *lit(now: number): Generator<Square> {
        for (const [index, { origin, time }] of this.#lit) {
            yield { index, origin, glow: Math.max(0, 1 - (now - time) / GLOW_MS) };
        }
    }

    /** Whether a square still glows, so that the picture changes with time alone. */
    glows(now: number): boolean {
        for (const { time } of this.#lit.values()) {
            if (now - time < GLOW_MS) return true;
        }
        return false;
    }

    /** Return what one square stands for. */
    get scale(): string {
        return `One square is ${plural(this.rowsOfSquare, "row")} of the table.`;
    }

    /** Return the picture in words. */
    text(usedRows: number): string {
        const { network, cache, memory } = this.#counts;
        return (
            `The table has ${plural(this.rows, "row")}. ${countText(usedRows)} of them ` +
            `(${shareText(usedRows, this.rows)}) were used. Uses: ${countText(network)} from the network, ` +
            `${countText(cache)} from the cache, ${countText(memory)} from memory.`
        );
    }
}
