/** The settings of the page: what the fields of the form say, and the options that follow from it. */

import type { GenerateOptions, Sampling } from "../src/options.js";

/** A field for a number. An empty field means the bundle's default. */
interface NumberField {
    readonly name: string;
    /** Its label, for messages. */
    readonly label: string;
    readonly least: number;
    readonly most: number;
    readonly whole: boolean;
}

/** The ranges are those of docs/bundle-format.md, "Sampling". */
export const FIELDS = [
    { name: "maxNewTokens", label: "New tokens at most", least: 1, most: 100_000, whole: true },
    { name: "temperature", label: "Temperature", least: 0, most: 1e6, whole: false },
    { name: "topP", label: "Top-p", least: 0, most: 1, whole: false },
    { name: "topK", label: "Top-k", least: 0, most: 2 ** 31 - 1, whole: true },
    { name: "minP", label: "Min-p", least: 0, most: 1, whole: false },
    { name: "repetitionPenalty", label: "Repetition penalty", least: 0.01, most: 100, whole: false },
] as const satisfies readonly NumberField[];

export type FieldName = (typeof FIELDS)[number]["name"] | "seed";

/** The text of each field. */
export type FieldTexts = Readonly<Partial<Record<FieldName, string>>>;

/** A field that does not hold what it should. */
export class FieldError extends Error {
    readonly field: string;

    constructor(field: string, message: string) {
        super(message);
        this.name = "FieldError";
        this.field = field;
    }
}

/**
 * Return the options of a call. Empty fields of sampling have the values of `defaults`.
 *
 * @throws FieldError A field is no number, or out of range.
 */
export function readSettings(texts: FieldTexts, defaults: Sampling): GenerateOptions {
    const numbers: Partial<Record<string, number>> = {};
    for (const field of FIELDS) {
        const text = texts[field.name]?.trim() ?? "";
        if (text !== "") numbers[field.name] = readNumber(text, field);
    }
    const { maxNewTokens, ...sampling } = numbers;
    return { maxNewTokens, sampling: { ...defaults, ...sampling, seed: readSeed(texts.seed?.trim() ?? "") } };
}

/**
 * Return token ids that are written as numbers with spaces or commas between them.
 *
 * @throws FieldError The text has something else, or an id outside the vocabulary.
 */
export function readTokenIds(text: string, vocabSize: number): number[] {
    const words = text.split(/[\s,]+/).filter((word) => word !== "");
    return words.map((word) => {
        if (!/^\d{1,10}$/.test(word) || Number(word) >= vocabSize) {
            throw new FieldError("prompt", `Prompt: found "${word}", expected token ids from 0 to ${vocabSize - 1}`);
        }
        return Number(word);
    });
}

/** Return the texts of the form that an earlier visit stored; none if what is stored is something else. */
export function readStored(stored: string | null): Readonly<Record<string, string>> {
    try {
        const value: unknown = JSON.parse(stored ?? "{}");
        if (typeof value !== "object" || value === null) return {};
        return Object.fromEntries(
            Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === "string"),
        );
    } catch {
        return {};
    }
}

function readNumber(text: string, { name, label, least, most, whole }: NumberField): number {
    const value = Number(text);
    if (!Number.isFinite(value) || value < least || value > most || (whole && !Number.isInteger(value))) {
        const kind = whole ? "a whole number" : "a number";
        throw new FieldError(name, `${label}: found "${text}", expected ${kind} from ${least} to ${most}`);
    }
    return value;
}

function readSeed(text: string): bigint | undefined {
    if (text === "") return undefined;
    if (!/^\d{1,20}$/.test(text) || BigInt(text) >= 2n ** 64n) {
        throw new FieldError("seed", `Seed: found "${text}", expected a whole number from 0 to 2^64 - 1`);
    }
    return BigInt(text);
}
