/** The parameters of sampling: their ranges and defaults (docs/bundle-format.md, "Sampling"). */

import { RequestError } from "../errors.js";
import type { SamplingDefaults } from "../format/manifest.js";
import type { Sampling } from "../options.js";
import { shown } from "./checks.js";

/** Checked parameters, without gaps. */
export interface ResolvedSampling extends SamplingDefaults {
    readonly presencePenalty: number;
    readonly frequencyPenalty: number;
    /** Token ids and the numbers that are added to their logits. */
    readonly logitBias: readonly (readonly [id: number, bias: number])[];
    /** The lower and upper 32 bits of the seed. */
    readonly seed: readonly [low: number, high: number];
}

/** The defaults of the document: greedy, without penalties. */
export const GREEDY: SamplingDefaults = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 };

const BIGGEST_BIAS = 1e6;

/**
 * Return checked parameters. A missing parameter has the value of `defaults`, or else that of the document.
 *
 * @throws RequestError A parameter is out of its range, or an id of `logitBias` is outside the vocabulary.
 */
export function resolveSampling(
    defaults: SamplingDefaults,
    sampling: Sampling | undefined,
    vocabSize: number,
): ResolvedSampling {
    if (sampling !== undefined && (typeof sampling !== "object" || (sampling as unknown) === null)) {
        throw new RequestError(`sampling: found ${shown(sampling)}, expected an object of parameters`);
    }
    const given = sampling ?? {};
    return {
        temperature: checked(
            "temperature",
            given.temperature ?? defaults.temperature,
            (value) => value === 0 || (value >= 1e-6 && value <= 1e6),
            "0, or 1e-6 to 1e6",
        ),
        topK: checked(
            "topK",
            given.topK ?? defaults.topK,
            (value) => Number.isInteger(value) && value >= 0 && value < 2147483648,
            "a whole number, 0 to 2147483647",
        ),
        topP: checked(
            "topP",
            given.topP ?? defaults.topP,
            (value) => value > 0 && value <= 1,
            "a number above 0, at most 1",
        ),
        minP: inRange("minP", given.minP ?? defaults.minP, 0, 1),
        repetitionPenalty: inRange(
            "repetitionPenalty",
            given.repetitionPenalty ?? defaults.repetitionPenalty,
            0.01,
            100,
        ),
        presencePenalty: inRange("presencePenalty", given.presencePenalty ?? 0, -2, 2),
        frequencyPenalty: inRange("frequencyPenalty", given.frequencyPenalty ?? 0, -2, 2),
        logitBias: biases(given.logitBias ?? {}, vocabSize),
        seed: seedWords(given.seed ?? 0),
    };
}

function checked(name: string, value: unknown, isAllowed: (value: number) => boolean, expected: string): number {
    if (typeof value === "number" && isAllowed(value)) return value;
    throw new RequestError(`${name}: found ${shown(value)}, expected ${expected}`);
}

function inRange(name: string, value: unknown, least: number, most: number): number {
    return checked(name, value, (number) => number >= least && number <= most, `a number, ${least} to ${most}`);
}

function biases(given: Readonly<Record<number, number>>, vocabSize: number): [number, number][] {
    // A list or a Map would look like an object with other fields.
    if (typeof given !== "object" || Symbol.iterator in given) {
        throw new RequestError(`logitBias: found ${shown(given)}, expected an object: token id -> number`);
    }
    return Object.entries(given).map(([key, bias]) => {
        const id = Number(key);
        if (String(id) !== key || !Number.isInteger(id) || id < 0 || id >= vocabSize) {
            throw new RequestError(
                `logitBias: found token id ${shown(key)}, expected 0 to ${vocabSize - 1} (the vocabulary)`,
            );
        }
        return [id, inRange(`logitBias of token id ${id}`, bias, -BIGGEST_BIAS, BIGGEST_BIAS)];
    });
}

function seedWords(seed: unknown): [number, number] {
    const isWhole = typeof seed === "bigint" || Number.isSafeInteger(seed);
    const value = isWhole ? BigInt(seed as number | bigint) : -1n;
    if (value < 0n || value >= 1n << 64n) {
        throw new RequestError(
            `seed: found ${shown(seed)}, expected a whole number, 0 to 2^64 - 1; from 2^53 on, give it as a bigint`,
        );
    }
    return [Number(value & 0xffffffffn), Number(value >> 32n)];
}
