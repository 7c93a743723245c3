/** The choice of the next token, to the bit as docs/bundle-format.md, "Sampling", defines it. */

import { ProviderError } from "../errors.js";
import { makeHeap, nthLargest, popLargest } from "./heap.js";
import { CUTOFF, exp64, uniform } from "./sampling-numbers.js";
import type { ResolvedSampling } from "./sampling-parameters.js";

/** Chooses tokens. Keeps its working memory for later choices of the same vocabulary. */
export class Sampler {
    readonly #parameters: ResolvedSampling;
    readonly #isAdjusted: boolean;
    /** Adjusted logits [V]; later, the y of the candidates. */
    readonly #y: Float64Array;
    /** The ids of the candidates, ascending. */
    readonly #ids: Int32Array;
    readonly #weights: Float64Array;
    /** The y of the candidates, as a heap. */
    readonly #heap: Float64Array;
    /** Occurrences of each id [V]; all 0 between two choices. */
    readonly #counts: Int32Array;
    /** The number of candidates. */
    #kept = 0;

    constructor(parameters: ResolvedSampling, vocabSize: number) {
        const p = parameters;
        this.#parameters = p;
        this.#isAdjusted =
            p.logitBias.length > 0 || p.repetitionPenalty !== 1 || p.presencePenalty !== 0 || p.frequencyPenalty !== 0;
        const needsY = this.#isAdjusted || p.temperature > 0;
        const candidates = p.temperature > 0 ? vocabSize : 0;
        this.#y = new Float64Array(needsY ? vocabSize : 0);
        this.#ids = new Int32Array(candidates);
        this.#weights = new Float64Array(candidates);
        this.#heap = new Float64Array(p.topK > 0 || p.topP < 1 ? candidates : 0);
        this.#counts = new Int32Array(this.#isAdjusted ? vocabSize : 0);
    }

    /**
     * Return the next token.
     *
     * `logits` is [V]. `prompt` and `generated` are ids of the vocabulary. `sequence` is the index of the prompt in its
     * call.
     *
     * @throws ProviderError A logit is NaN or infinite.
     */
    choose(logits: Float32Array, prompt: readonly number[], generated: readonly number[], sequence: number): number {
        checkFinite(logits);
        const { temperature, topK, topP, minP, seed } = this.#parameters;
        if (temperature === 0 && !this.#isAdjusted) return indexOfLargest(logits);
        this.#adjust(logits, prompt, generated);
        if (temperature === 0) return indexOfLargest(this.#y);
        this.#scale(temperature);
        if (topK > 0 && topK < this.#kept) this.#keepTopK(topK);
        for (let index = 0; index < this.#kept; index++) this.#weights[index] = exp64(this.#y[index]!);
        if (topP < 1) this.#keepTopP(topP);
        if (minP > 0) this.#keepMinP(minP);
        return this.#draw(uniform(seed, sequence, prompt.length + generated.length));
    }

    #adjust(logits: Float32Array, prompt: readonly number[], generated: readonly number[]): void {
        this.#y.set(logits);
        for (const [id, bias] of this.#parameters.logitBias) this.#y[id]! += bias;
        if (this.#parameters.repetitionPenalty !== 1) {
            this.#penalizeRepetition(prompt);
            this.#penalizeRepetition(generated);
            for (const id of prompt) this.#counts[id] = 0;
            for (const id of generated) this.#counts[id] = 0;
        }
        const { presencePenalty, frequencyPenalty } = this.#parameters;
        if (presencePenalty !== 0 || frequencyPenalty !== 0) this.#penalizeFrequency(generated);
    }

    #penalizeRepetition(ids: readonly number[]): void {
        const penalty = this.#parameters.repetitionPenalty;
        for (const id of ids) {
            if (this.#counts[id]!++ > 0) continue;
            const x = this.#y[id]!;
            this.#y[id] = x > 0 ? x / penalty : x * penalty;
        }
    }

    #penalizeFrequency(generated: readonly number[]): void {
        const { presencePenalty, frequencyPenalty } = this.#parameters;
        for (const id of generated) this.#counts[id]!++;
        for (const id of generated) {
            const count = this.#counts[id]!;
            if (count === 0) continue;
            this.#y[id] = this.#y[id]! - frequencyPenalty * count - presencePenalty;
            this.#counts[id] = 0;
        }
    }

    /** Compute y, and keep the ids with a weight above 0. The others change no sum and are never drawn. */
    #scale(temperature: number): void {
        const most = this.#y[indexOfLargest(this.#y)]!;
        this.#kept = 0;
        for (let id = 0; id < this.#y.length; id++) {
            const y = (this.#y[id]! - most) / temperature;
            if (!(y >= CUTOFF)) continue;
            this.#y[this.#kept] = y;
            this.#ids[this.#kept++] = id;
        }
    }

    #keepTopK(count: number): void {
        const heap = this.#copyToHeap();
        this.#keepLargest(nthLargest(heap, this.#kept, count), count);
    }

    #keepTopP(share: number): void {
        let total = 0;
        for (let index = 0; index < this.#kept; index++) total += this.#weights[index]!;
        const bound = share * total;
        // A heap sorts only the candidates that are summed. Equal y have equal weights, so their order has no effect.
        const heap = this.#copyToHeap();
        makeHeap(heap, this.#kept);
        let sum = 0;
        for (let count = 1; count <= this.#kept; count++) {
            const border = popLargest(heap, this.#kept - count + 1);
            sum += exp64(border);
            if (sum >= bound) {
                this.#keepLargest(border, count);
                return;
            }
        }
    }

    #copyToHeap(): Float64Array {
        this.#heap.set(this.#y.subarray(0, this.#kept));
        return this.#heap;
    }

    /**
     * Keep the `count` candidates with the largest y; of equal y, those with the lowest ids. `border` is the smallest y
     * that is kept.
     */
    #keepLargest(border: number, count: number): void {
        let equal = count; // candidates with y = border that are kept
        for (let index = 0; index < this.#kept; index++) if (this.#y[index]! > border) equal--;
        let kept = 0;
        for (let index = 0; index < this.#kept; index++) {
            const y = this.#y[index]!;
            if (y < border || (y === border && equal-- <= 0)) continue;
            this.#y[kept] = y;
            this.#weights[kept] = this.#weights[index]!;
            this.#ids[kept++] = this.#ids[index]!;
        }
        this.#kept = kept;
    }

    #keepMinP(share: number): void {
        let kept = 0;
        for (let index = 0; index < this.#kept; index++) {
            if (this.#weights[index]! < share) continue;
            this.#weights[kept] = this.#weights[index]!;
            this.#ids[kept++] = this.#ids[index]!;
        }
        this.#kept = kept;
    }

    #draw(u: number): number {
        let total = 0;
        for (let index = 0; index < this.#kept; index++) total += this.#weights[index]!;
        const bound = u * total;
        let sum = 0;
        let index = 0;
        // The loop ends before the last candidate at the latest: u * total rounds to less than total.
        for (; index < this.#kept - 1; index++) {
            sum += this.#weights[index]!;
            if (sum > bound) break;
        }
        return this.#ids[index]!;
    }
}

/** Return the index of the largest number; of equal numbers, the first one. */
export function indexOfLargest(numbers: Float32Array | Float64Array): number {
    let best = 0;
    let most = numbers[0]!;
    for (let index = 1; index < numbers.length; index++) {
        if (numbers[index]! > most) {
            most = numbers[index]!;
            best = index;
        }
    }
    return best;
}

function checkFinite(logits: Float32Array): void {
    for (let id = 0; id < logits.length; id++) {
        if (Number.isFinite(logits[id])) continue;
        throw new ProviderError(
            `the logit of token id ${id}: found ${logits[id]!}, expected a finite number; the weights are damaged or ` +
                "the provider computes wrong numbers: run the self-test",
        );
    }
}
