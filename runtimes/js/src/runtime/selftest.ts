/** The self-test: runs the golden vectors of a bundle in four ways (docs/bundle-format.md, "Golden vectors"). */

import { MolkvError } from "../errors.js";
import { GoldenErrors, parseGolden, type Golden, type GoldenText } from "../format/golden.js";
import type { SelfTest } from "../options.js";
import type { LoadedModel } from "./load-model.js";
import { indexOfLargest } from "./sampling.js";
import type { BatchState } from "./sequences.js";

const PIECE = 48; // tokens of a prompt; not a multiple of the common windows 32 and 64
const BATCH_STEPS = 48; // positions of each text that are decoded in the batch

export interface SelfTestOptions {
    readonly signal?: AbortSignal | undefined;
    /** Gets the done share, from 0 to 1. */
    readonly onProgress?: ((done: number) => void) | undefined;
}

/**
 * Compare the logits and greedy tokens of a model with its golden vectors.
 *
 * @throws BundleError The golden vectors are damaged or of another version.
 */
export async function selftest(loaded: LoadedModel, options: SelfTestOptions = {}): Promise<SelfTest> {
    const { bundle, config } = loaded;
    const name = bundle.graph.golden;
    const content = await bundle.readChecked(name, options);
    return new GoldenRun(loaded, parseGolden(content, bundle.path(name), config), options).run();
}

class GoldenRun {
    readonly #loaded: LoadedModel;
    readonly #golden: Golden;
    readonly #options: SelfTestOptions;
    readonly #failures: string[] = [];
    readonly #ways: GoldenErrors[] = [];
    #doneSteps = 0;
    readonly #allSteps: number;

    constructor(loaded: LoadedModel, golden: Golden, options: SelfTestOptions) {
        this.#loaded = loaded;
        this.#golden = golden;
        this.#options = options;
        const steps = golden.texts.map(({ inputIds }) => Math.ceil(inputIds.length / PIECE) + inputIds.length);
        this.#allSteps =
            steps.reduce((sum, count) => sum + count, 0) +
            Math.min(
                BATCH_STEPS,
                longest(golden.texts, ({ inputIds }) => inputIds),
            ) +
            longest(golden.texts, ({ greedyIds }) => greedyIds);
    }

    async run(): Promise<SelfTest> {
        await this.#way("prefill in chunks", (errors) => this.#eachText((text) => this.#prefill(text, errors)));
        await this.#way("step-by-step decode", (errors) => this.#eachText((text) => this.#decode(text, errors)));
        await this.#way("decode in a batch", (errors) => this.#batch(errors));
        const greedyTokens = this.#golden.texts.reduce((sum, { greedyIds }) => sum + greedyIds.length, 0);
        let greedyEqual = 0;
        await this.#attempt("greedy text", async () => {
            greedyEqual = await this.#greedy();
            const all = `only ${greedyEqual} of ${greedyTokens} tokens are equal to the tokens of the source model`;
            return greedyEqual === greedyTokens ? "" : all;
        });
        const { maxAbs, relativeL2 } = this.#golden.limits;
        return {
            passed: this.#failures.length === 0,
            failures: this.#failures,
            maxAbs: Math.max(...this.#ways.flatMap((way) => [way.maxAbsLogit, way.maxAbsProjection])),
            maxAbsLimit: maxAbs,
            relativeL2: Math.max(...this.#ways.map((way) => way.relativeL2)),
            relativeL2Limit: relativeL2,
            greedyTokens,
            greedyEqual,
        };
    }

    async #way(name: string, run: (errors: GoldenErrors) => Promise<void>): Promise<void> {
        const errors = new GoldenErrors(this.#loaded.config.vocabSize, this.#golden.limits);
        this.#ways.push(errors);
        await this.#attempt(name, async () => {
            await run(errors);
            return errors.failure();
        });
    }

    /** Run a way, which returns why it did not pass. A damaged record, for example, also fails the way. */
    async #attempt(name: string, run: () => Promise<string>): Promise<void> {
        let failure: string;
        try {
            failure = await run();
        } catch (error) {
            // The reason of the signal may be an error of any class.
            this.#options.signal?.throwIfAborted();
            if (!(error instanceof MolkvError)) throw error;
            failure = error.message;
        }
        if (failure) this.#failures.push(`${name}: ${failure}`);
    }

    async #eachText(run: (text: GoldenText) => Promise<void>): Promise<void> {
        for (const text of this.#golden.texts) await run(text);
    }

    async #prefill(text: GoldenText, errors: GoldenErrors): Promise<void> {
        await this.#with(1, text.inputIds.length, async (state) => {
            for (let start = 0; start < text.inputIds.length; start += PIECE) {
                const ids = [...text.inputIds.subarray(start, start + PIECE)];
                errors.add(text, start, await state.prefill(0, ids, { allLogits: true, signal: this.#options.signal }));
                this.#advance();
            }
        });
    }

    async #decode(text: GoldenText, errors: GoldenErrors): Promise<void> {
        await this.#with(1, text.inputIds.length, async (state) => {
            errors.add(text, 0, await state.prefill(0, [text.inputIds[0]!], this.#options));
            this.#advance();
            for (let position = 1; position < text.inputIds.length; position++) {
                const ids = [text.inputIds[position]!];
                errors.add(text, position, await state.decode(ids, undefined, this.#options.signal));
                this.#advance();
            }
        });
    }

    async #batch(errors: GoldenErrors): Promise<void> {
        const { texts } = this.#golden;
        const { vocabSize } = this.#loaded.config;
        const ends = texts.map(({ inputIds }) => Math.min(inputIds.length, BATCH_STEPS));
        await this.#with(texts.length, Math.max(...ends), async (state) => {
            for (const [index, text] of texts.entries()) {
                errors.add(text, 0, await state.prefill(index, [text.inputIds[0]!], this.#options));
            }
            this.#advance();
            for (let position = 1; position < Math.max(...ends); position++) {
                const active = ends.map((end) => position < end);
                const ids = texts.map(({ inputIds }) => inputIds[Math.min(position, inputIds.length - 1)]!);
                const logits = await state.decode(ids, active, this.#options.signal);
                texts.forEach((text, index) => {
                    const row = logits.subarray(index * vocabSize, (index + 1) * vocabSize);
                    if (active[index]) errors.add(text, position, row);
                });
                this.#advance();
            }
        });
    }

    /** Continue all texts in one batch. Return the number of tokens before the first wrong token of each text. */
    async #greedy(): Promise<number> {
        const texts = this.#golden.texts.filter(({ greedyIds }) => greedyIds.length > 0);
        if (texts.length === 0) return 0;
        const { vocabSize } = this.#loaded.config;
        const most = Math.max(...texts.map(({ inputIds, greedyIds }) => inputIds.length + greedyIds.length - 1));
        let equal = 0;
        await this.#with(texts.length, most, async (state) => {
            let next: number[] = [];
            for (const [index, { inputIds }] of texts.entries()) {
                next.push(indexOfLargest(await state.prefill(index, [...inputIds], this.#options)));
            }
            const right = texts.map(() => true);
            for (let step = 0; ; step++) {
                for (const [index, { greedyIds }] of texts.entries()) {
                    right[index] &&= step < greedyIds.length && next[index] === greedyIds[step];
                }
                equal += right.filter(Boolean).length;
                this.#advance();
                // The last token of a text is not run.
                const active = texts.map(({ greedyIds }, index) => right[index]! && step + 1 < greedyIds.length);
                if (!active.some(Boolean)) return;
                const logits = await state.decode(next, active, this.#options.signal);
                next = texts.map((_, index) =>
                    indexOfLargest(logits.subarray(index * vocabSize, (index + 1) * vocabSize)),
                );
            }
        });
        return equal;
    }

    async #with(batchSize: number, length: number, run: (state: BatchState) => Promise<void>): Promise<void> {
        const state = this.#loaded.sequences(batchSize, length);
        try {
            await run(state);
        } finally {
            state.release();
        }
    }

    #advance(): void {
        this.#options.onProgress?.(Math.min(1, ++this.#doneSteps / this.#allSteps));
    }
}

function longest(texts: readonly GoldenText[], ids: (text: GoldenText) => Int32Array): number {
    return Math.max(...texts.map((text) => ids(text).length));
}
