import { describe, expect, it } from "vitest";

import { planChunks } from "../../../src/runtime/chunks.js";

function lengths(count: number, chunk: number, block: number): number[] {
    return planChunks(0, count, { chunk, block, allLogits: false }).map(({ length }) => length);
}

describe("planChunks", () => {
    it("divides prompts as the examples of the document", () => {
        expect(lengths(140, 128, 5)).toEqual([125, 15]);
        expect(lengths(7, 128, 5)).toEqual([5, 2]);
    });

    it("cuts a prompt without blocks into chunks of the given length", () => {
        expect(lengths(300, 128, 0)).toEqual([128, 128, 44]);
        expect(lengths(300, 128, 128)).toEqual([128, 128, 44]);
        expect(lengths(300, 128, 200)).toEqual([128, 128, 44]);
        expect(lengths(3, 1, 5)).toEqual([1, 1, 1]);
    });

    it("cuts the remainder into a multiple of the block and a shorter chunk", () => {
        expect(lengths(300, 128, 64)).toEqual([128, 128, 44]);
        expect(lengths(127, 128, 64)).toEqual([64, 63]);
        expect(lengths(4, 128, 5)).toEqual([4]);
    });

    it("keeps the logits of the last position, or those of all positions once", () => {
        const options = { chunk: 5, block: 5, allLogits: false };
        expect(planChunks(10, 12, options)).toEqual([
            { start: 10, length: 5, follows: false, keep: 0 },
            { start: 15, length: 5, follows: true, keep: 0 },
            { start: 20, length: 2, follows: true, keep: 1 },
        ]);
        expect(planChunks(10, 12, { ...options, allLogits: true }).map(({ keep }) => keep)).toEqual([5, 5, 2]);
    });
});
