/** Golden vectors (docs/bundle-format.md, "Golden vectors"): the reader of their file, and the comparison of logits. */

import { BundleError } from "../errors.js";
import { quoted } from "./json.js";
import type { ModelConfig } from "./manifest.js";
import { parseSafetensors, tensorNumbers, type Safetensors, type Tensor } from "./safetensors.js";

const version = "2";
const mostTop = 16;
const tensorsOfText = 5;

/** Sums over the logits of a position. */
const projections = 8;

/** A text of T tokens, the results for each position, and its greedy continuation. */
export interface GoldenText {
    /** [T] */
    readonly inputIds: Int32Array;
    /** K: the likeliest next tokens that are known for each position. */
    readonly topCount: number;
    /** [T, K], likeliest first. */
    readonly topIds: Int32Array;
    /** [T, K] */
    readonly topLogits: Float32Array;
    /** [T, 8] */
    readonly projection: Float32Array;
    /** [G], G may be 0. */
    readonly greedyIds: Int32Array;
}

/** The largest differences that rounding can cause. */
export interface GoldenLimits {
    /** Of each logit and each projection. */
    readonly maxAbs: number;
    /** Of all projections together. */
    readonly relativeL2: number;
}

export interface Golden {
    readonly limits: GoldenLimits;
    readonly texts: readonly GoldenText[];
}

/**
 * Parse a golden file. `where` is its path; `config` has the graph's `context_length` as `maxPositionEmbeddings`.
 *
 * @throws BundleError The file is damaged or of another version.
 */
export function parseGolden(bytes: Uint8Array, where: string, config: ModelConfig): Golden {
    const file = parseSafetensors(bytes, where);
    const found = file.metadata.get("golden_version");
    if (found !== version) {
        const shownVersion = found === undefined ? "none" : quoted(found);
        throw new BundleError(
            `${where}: golden_version: found ${shownVersion}, expected "${version}"; export the model again or update ` +
                "this driver",
        );
    }
    const count = Math.floor((file.tensors.size - 1) / tensorsOfText);
    if (count < 1 || file.tensors.size !== 1 + count * tensorsOfText) {
        throw new BundleError(`${where}: found ${file.tensors.size} tensors, expected limits and five for each text`);
    }
    const reader = new Reader(file, where, config);
    return { limits: reader.limits(), texts: Array.from({ length: count }, (_, index) => reader.text(index)) };
}

/** Reads the tensors of a golden file, and checks their dtypes and shapes. */
class Reader {
    constructor(
        private readonly file: Safetensors,
        private readonly where: string,
        private readonly config: ModelConfig,
    ) {}

    limits(): GoldenLimits {
        const [maxAbs, relativeL2] = this.floats("limits", [2]) as unknown as [number, number];
        for (const limit of [maxAbs, relativeL2]) {
            if (!(limit >= 0 && limit < Infinity)) throw this.error("limits", String(limit), "finite, not negative");
        }
        return { maxAbs, relativeL2 };
    }

    text(index: number): GoldenText {
        const name = `texts.${index}`;
        const tokens = this.length(`${name}.input_ids`);
        const newTokens = this.length(`${name}.greedy_ids`);
        const context = this.config.maxPositionEmbeddings;
        // The last greedy token is not run.
        if (tokens < 1 || tokens + Math.max(0, newTokens - 1) > context) {
            const expected = `at least 1, and at most ${context} without the last greedy token`;
            throw this.error(name, `${tokens} tokens and ${newTokens} greedy tokens`, expected);
        }
        const topCount = Math.min(mostTop, this.config.vocabSize);
        return {
            inputIds: this.ids(`${name}.input_ids`, [tokens]),
            topCount,
            topIds: this.ids(`${name}.top_ids`, [tokens, topCount]),
            topLogits: this.floats(`${name}.top_logits`, [tokens, topCount]),
            projection: this.floats(`${name}.projection`, [tokens, projections]),
            greedyIds: this.ids(`${name}.greedy_ids`, [newTokens]),
        };
    }

    private error(field: string, found: string, expected: string): BundleError {
        return new BundleError(`${this.where}: ${field}: found ${found}, expected ${expected}`);
    }

    private tensor(name: string): Tensor {
        const found = this.file.tensors.get(name);
        if (found === undefined) throw this.error(name, "no such tensor", "one");
        return found;
    }

    private length(name: string): number {
        const { shape } = this.tensor(name);
        if (shape.length !== 1) throw this.error(name, `the shape [${shape.join(", ")}]`, "one dimension");
        return shape[0]!;
    }

    private data(name: string, dtype: string, shape: readonly number[]): Uint8Array {
        const found = this.tensor(name);
        const shown = `${found.dtype} [${found.shape.join(", ")}]`;
        const expected = `${dtype} [${shape.join(", ")}]`;
        if (shown !== expected) throw this.error(name, shown, expected);
        return found.data;
    }

    private floats(name: string, shape: readonly number[]): Float32Array {
        return tensorNumbers(this.data(name, "F32", shape), Float32Array);
    }

    private ids(name: string, shape: readonly number[]): Int32Array {
        const ids = tensorNumbers(this.data(name, "I32", shape), Int32Array);
        const wrong = ids.find((id) => id < 0 || id >= this.config.vocabSize);
        if (wrong === undefined) return ids;
        throw this.error(name, String(wrong), `token ids from 0 to ${this.config.vocabSize - 1}`);
    }
}

/** The differences between logits and golden vectors, for one way to run the texts. */
export class GoldenErrors {
    /** The largest differences so far; NaN if a logit was NaN. */
    maxAbsLogit = 0;
    maxAbsProjection = 0;
    /**
     * Positions whose likeliest token is certain: its golden logit is more than twice `maxAbs` above the next one, so
     * errors within the limits cannot make another token likelier. And those where this token is the likeliest here.
     */
    certainTokens = 0;
    rightTokens = 0;
    private differenceSquares = 0;
    private goldenSquares = 0;
    /** The signs of each token: bit r belongs to projection r. */
    private readonly signs: Uint8Array;

    constructor(
        vocabSize: number,
        private readonly limits: GoldenLimits,
    ) {
        this.signs = Uint8Array.from({ length: vocabSize }, (_, token) => hash(token + 1));
    }

    /** sqrt(sum of (found - golden)^2 / sum of golden^2) over all projections so far. */
    get relativeL2(): number {
        if (this.differenceSquares === 0) return 0;
        return Math.sqrt(this.differenceSquares / this.goldenSquares);
    }

    /** Compare the logits [n, V] of the positions of a text from `first` on. The text has these positions. */
    add(text: GoldenText, first: number, logits: Float32Array): void {
        const vocabSize = this.signs.length;
        for (let row = 0; (row + 1) * vocabSize <= logits.length; row++) {
            this.addPosition(text, first + row, logits.subarray(row * vocabSize, (row + 1) * vocabSize));
        }
    }

    /** Return "" if all differences are within the limits; else the first limit that is exceeded. */
    failure(): string {
        const { maxAbs, relativeL2 } = this.limits;
        // NaN is not within a limit.
        const exceeds = (name: string, found: number, limit: number): string =>
            found <= limit ? "" : `${name} ${found}, expected at most ${limit}`;
        const tokens = `${this.rightTokens} of ${this.certainTokens} certain tokens are right, expected all`;
        return (
            exceeds("largest difference of a logit", this.maxAbsLogit, maxAbs) ||
            exceeds("largest difference of a projection", this.maxAbsProjection, maxAbs) ||
            exceeds("relative L2", this.relativeL2, relativeL2) ||
            (this.rightTokens === this.certainTokens ? "" : tokens)
        );
    }

    private addPosition(text: GoldenText, position: number, logits: Float32Array): void {
        const start = position * text.topCount;
        const ids = text.topIds.subarray(start, start + text.topCount);
        const tops = text.topLogits.subarray(start, start + text.topCount);
        ids.forEach((id, k) => {
            this.maxAbsLogit = Math.max(this.maxAbsLogit, Math.abs(logits[id]! - tops[k]!));
        });
        project(logits, this.signs).forEach((found, r) => {
            const expected = text.projection[position * projections + r]!;
            const difference = found - expected;
            this.maxAbsProjection = Math.max(this.maxAbsProjection, Math.abs(difference));
            this.differenceSquares += difference * difference;
            this.goldenSquares += expected * expected;
        });
        if (text.topCount > 1 && tops[0]! - tops[1]! > 2 * this.limits.maxAbs) {
            this.certainTokens++;
            if (likeliest(logits) === ids[0]) this.rightTokens++;
        }
    }
}

/** Return the eight projections of the logits [V] of a position. */
function project(logits: Float32Array, signs: Uint8Array): Float64Array {
    // First the logits with the same eight signs are added up, so that each logit needs one addition and not eight.
    const sums = new Float64Array(256);
    for (let token = 0; token < logits.length; token++) sums[signs[token]!]! += logits[token]!;
    const scale = Math.sqrt(logits.length);
    return Float64Array.from({ length: projections }, (_, r) => {
        return sums.reduce((total, sum, bits) => total + ((bits >> r) & 1 ? -sum : sum), 0) / scale;
    });
}

/** Return the id of the largest logit; of equal ones, the lowest id. */
function likeliest(logits: Float32Array): number {
    let best = 0;
    for (let id = 1; id < logits.length; id++) if (logits[id]! > logits[best]!) best = id;
    return best;
}

/** The finalizer of MurmurHash3. */
function hash(number: number): number {
    let h = number;
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    return h ^ (h >>> 16);
}
