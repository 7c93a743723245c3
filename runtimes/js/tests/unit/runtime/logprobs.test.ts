import { describe, expect, it } from "vitest";
import { logProbabilities } from "../../../src/runtime/logprobs.js";

describe("logProbabilities", () => {
    // exp: 1, 2, 4, 1; the sum is 8
    const logits = Float32Array.from([0, Math.log(2), Math.log(4), 0]);

    it("returns the logarithms of probabilities", () => {
        const { logprob, best } = logProbabilities(logits, 1, 2);
        expect(logprob).toBeCloseTo(Math.log(2 / 8), 6);
        expect(best.map(({ id }) => id)).toEqual([2, 1]);
        expect(best[0]!.logprob).toBeCloseTo(Math.log(4 / 8), 6);
    });

    it("takes the lower ids of equal logits first", () => {
        const equal = Float32Array.from([1, 3, 2, 3, 2, 2, 1]);
        const ids = (count: number): number[] => logProbabilities(equal, 0, count).best.map(({ id }) => id);
        expect(ids(0)).toEqual([]);
        expect(ids(1)).toEqual([1]);
        expect(ids(4)).toEqual([1, 3, 2, 4]);
        expect(ids(7)).toEqual([1, 3, 2, 4, 5, 0, 6]);
    });

    it("does not overflow", () => {
        const { logprob } = logProbabilities(Float32Array.from([3e38, 3e38, -3e38]), 0, 0);
        expect(logprob).toBeCloseTo(-Math.log(2), 6);
    });
});
