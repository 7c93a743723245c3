import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { MolkvError } from "../../../src/errors.js";
import type { Sampling } from "../../../src/options.js";
import { exp64, threefry, uniform } from "../../../src/runtime/sampling-numbers.js";
import { GREEDY, resolveSampling } from "../../../src/runtime/sampling-parameters.js";
import { Sampler } from "../../../src/runtime/sampling.js";

interface Recipe {
    size: number;
    seed: number;
    terms: number;
    drop: number;
    shift: number;
}
interface Case {
    logits: string;
    sampling: Record<string, unknown>;
    prompt: number[];
    generated: number[];
    sequence: number;
    token?: number;
    error?: string;
}
interface Vectors {
    threefry: { key: [string, string]; counter: [string, string]; output: string[] }[];
    uniform: { seed: string; sequence: number; position: number; u: string }[];
    exp64: [string, string][];
    logits: Record<string, (number | string)[] | Recipe>;
    cases: Case[];
}

const file = new URL("../../../../conformance/sampling.json", import.meta.url);
const vectors = JSON.parse(readFileSync(file, "utf8")) as Vectors;

const NAMES: Record<string, string> = {
    top_k: "topK",
    top_p: "topP",
    min_p: "minP",
    repetition_penalty: "repetitionPenalty",
    presence_penalty: "presencePenalty",
    frequency_penalty: "frequencyPenalty",
    logit_bias: "logitBias",
};

function samplingOf(given: Record<string, unknown>): Sampling {
    const entries = Object.entries(given).map(([name, value]) => [
        NAMES[name] ?? name,
        name === "seed" ? BigInt(value as string) : value,
    ]);
    return Object.fromEntries(entries) as Sampling;
}

function fromBits(hex: string): number {
    const view = new DataView(new ArrayBuffer(8));
    view.setBigUint64(0, BigInt(`0x${hex}`));
    return view.getFloat64(0);
}

function logitsOf(recipe: (number | string)[] | Recipe): Float32Array {
    if (Array.isArray(recipe)) return Float32Array.from(recipe, Number);
    let state = BigInt(recipe.seed);
    return Float32Array.from({ length: recipe.size }, () => {
        let sum = 0;
        for (let term = 0; term < recipe.terms; term++) {
            state = (1664525n * state + 1013904223n) % (1n << 32n);
            sum += Number(state >> BigInt(recipe.drop));
        }
        return (sum - recipe.terms * 2 ** (31 - recipe.drop)) / 2 ** recipe.shift;
    });
}

const hex = (value: number): string => value.toString(16).padStart(8, "0");

describe("the functions of the document", () => {
    it.each(vectors.threefry)("computes threefry $key $counter", ({ key, counter, output }) => {
        const [k0, k1, x0, x1] = [...key, ...counter].map((text) => parseInt(text, 16)) as [
            number,
            number,
            number,
            number,
        ];
        expect(threefry(k0, k1, x0, x1).map(hex)).toEqual(output);
    });

    it.each(vectors.uniform)("computes the random number of $seed $sequence $position", (given) => {
        const { seed } = resolveSampling(GREEDY, { seed: BigInt(given.seed) }, 1);
        expect(uniform(seed, given.sequence, given.position)).toBe(fromBits(given.u));
    });

    it("computes exp64", () => {
        for (const [y, expected] of vectors.exp64) expect(exp64(fromBits(y))).toBe(fromBits(expected));
    });
});

describe("Sampler", () => {
    const logits = new Map(Object.entries(vectors.logits).map(([name, recipe]) => [name, logitsOf(recipe)]));

    it("gives the token or the error of all conformance cases", () => {
        const found = vectors.cases.map(({ logits: name, sampling, prompt, generated, sequence }) => {
            const numbers = logits.get(name)!;
            try {
                const parameters = resolveSampling(GREEDY, samplingOf(sampling), numbers.length);
                return new Sampler(parameters, numbers.length).choose(numbers, prompt, generated, sequence);
            } catch (error) {
                return (error as MolkvError).kind;
            }
        });
        expect(found).toEqual(vectors.cases.map(({ token, error }) => token ?? error));
    });

    it("keeps nothing of earlier choices", () => {
        const cases = vectors.cases.filter((each) => each.logits === "1000" && each.error === undefined);
        const numbers = logits.get("1000")!;
        for (const each of cases) {
            const sampler = new Sampler(resolveSampling(GREEDY, samplingOf(each.sampling), 1000), 1000);
            sampler.choose(numbers.slice().reverse(), [3, 3, 5], [7, 7, 9], 1);
            expect(sampler.choose(numbers, each.prompt, each.generated, each.sequence)).toBe(each.token);
        }
        expect(cases.length).toBeGreaterThan(50);
    });
});

describe("resolveSampling", () => {
    const defaults = { temperature: 0.5, topK: 40, topP: 0.9, minP: 0.1, repetitionPenalty: 1.5 };

    it("takes missing parameters from the bundle, then from the document", () => {
        expect(resolveSampling(defaults, undefined, 8)).toEqual({
            ...defaults,
            presencePenalty: 0,
            frequencyPenalty: 0,
            logitBias: [],
            seed: [0, 0],
        });
        const own = { temperature: 0, topK: undefined, seed: 2 ** 32 + 5, logitBias: { 7: -1 } };
        expect(resolveSampling(defaults, own, 8)).toMatchObject({
            temperature: 0,
            topK: 40,
            seed: [5, 1],
            logitBias: [[7, -1]],
        });
    });

    it.each([
        [{ temperature: Number.NaN }, "temperature: found NaN, expected 0, or 1e-6 to 1e6"],
        [{ temperature: "1" }, 'temperature: found "1", expected 0, or 1e-6 to 1e6'],
        [{ topK: 1.5 }, "topK: found 1.5, expected a whole number, 0 to 2147483647"],
        [{ minP: null }, undefined],
        [{ seed: 1.5 }, "seed: found 1.5, expected a whole number, 0 to 2^64 - 1"],
        [{ seed: 2 ** 53 }, "seed: found 9007199254740992, expected a whole number"],
        [{ logitBias: { "1e0": 1 } }, 'logitBias: found token id "1e0", expected 0 to 7 (the vocabulary)'],
        [{ logitBias: { 1: "2" } }, 'logitBias of token id 1: found "2", expected a number'],
        [{ logitBias: 3 }, "logitBias: found 3, expected an object"],
        [null, "sampling: found null"],
        [[], undefined],
    ])("refuses or takes %o", (sampling, message) => {
        const resolve = (): unknown => resolveSampling(defaults, sampling as Sampling, 8);
        if (message === undefined) expect(resolve).not.toThrow();
        else expect(resolve).toThrow(message);
    });
});
