/** The generation of text: the steps that continue prompts (docs/bundle-format.md, "The end" and "Text"). */

import { ProviderError, RequestError } from "../errors.js";
import type { Finish, Token } from "../options.js";
import { logProbabilities } from "./logprobs.js";
import type { Sampler } from "./sampling.js";
import type { BatchState } from "./sequences.js";
import type { Settings } from "./settings.js";
import { StopStrings, TextStream } from "./text-stream.js";
import type { TurnTaker } from "./turns.js";

/** A prompt, and the tokens that were generated after it. */
export class Continuation {
    readonly #sequence: number;
    readonly #prompt: readonly number[];
    readonly #generated: number[] = [];
    readonly #room: number;
    readonly #settings: Settings;
    readonly #sampler: Sampler;
    readonly #stream: TextStream | undefined;
    readonly #stop: StopStrings;
    #finish: Finish | undefined;

    /**
     * @param sequence The index of the prompt in its call.
     * @param prompt Token ids that were checked.
     * @param context The most tokens that a sequence can run.
     * @throws RequestError The prompt is empty or longer than the context.
     */
    constructor(sequence: number, prompt: readonly number[], settings: Settings, sampler: Sampler, context: number) {
        if (prompt.length === 0) throw new RequestError(`prompt ${sequence}: is empty, expected at least one token`);
        if (prompt.length > context) {
            throw new RequestError(
                `prompt ${sequence}: has ${prompt.length} tokens, expected at most ${context} (the model's context)`,
            );
        }
        this.#sequence = sequence;
        this.#prompt = prompt;
        this.#settings = settings;
        this.#sampler = sampler;
        this.#stream = settings.tokenizer && new TextStream(settings.tokenizer, prompt);
        this.#stop = new StopStrings(settings.stop);
        // The last new token is not run, so it may be one more than the context has room for.
        this.#room = Math.min(settings.maxNewTokens, context - prompt.length + 1);
    }

    /** Why the text has ended; undefined: it goes on. */
    get finish(): Finish | undefined {
        return this.#finish;
    }

    get prompt(): readonly number[] {
        return this.#prompt;
    }

    /** The most tokens that are run: those of the prompt, and all new ones but the last. */
    get mostLength(): number {
        return this.#prompt.length + this.#room - 1;
    }

    get lastToken(): number {
        return this.#generated.at(-1)!;
    }

    /**
     * Choose the next token from the logits [V] of the last position.
     *
     * @throws ProviderError A logit is NaN or infinite.
     */
    add(logits: Float32Array): Token {
        const id = this.#choose(logits);
        this.#generated.push(id);
        if (this.#settings.stopIds.has(id)) this.#finish = "stop";
        else if (this.#generated.length >= this.#room) this.#finish = "length";
        const text = this.#stream ? this.#textOf(id, this.#stream) : "";
        const { logprobs } = this.#settings;
        return {
            sequence: this.#sequence,
            id,
            text,
            ...(this.#finish && { finish: this.#finish }),
            ...(logprobs !== undefined && logProbabilities(logits, id, logprobs)),
        };
    }

    #choose(logits: Float32Array): number {
        try {
            return this.#sampler.choose(logits, this.#prompt, this.#generated, this.#sequence);
        } catch (error) {
            if (!(error instanceof ProviderError)) throw error;
            const position = this.#prompt.length + this.#generated.length;
            throw new ProviderError(`position ${position} of sequence ${this.#sequence}: ${error.message}`, {
                cause: error,
            });
        }
    }

    /** Return the text that the chosen token completes. A complete stop string ends the text. */
    #textOf(id: number, stream: TextStream): string {
        let text = this.#stop.push(this.#finish === "stop" ? "" : stream.push(id));
        if (this.#finish) text += this.#stop.push(stream.finish());
        if (this.#stop.found) this.#finish = "stop";
        return this.#finish ? text + this.#stop.finish() : text;
    }
}

/** What a model counts. */
export interface Counters {
    promptTokens: number;
    promptSeconds: number;
    generatedTokens: number;
    generatedSeconds: number;
}

/**
 * Continue texts, one for each sequence of `state`, until all have ended. A sequence may hold the beginning of its
 * prompt. Each step is one turn, so calls of the same model can take turns.
 *
 * @throws BundleError A record cannot be read, or the graph fails.
 * @throws ProviderError A logit is NaN or infinite.
 */
export async function* generate(
    state: BatchState,
    texts: readonly Continuation[],
    turns: TurnTaker,
    counters: Counters,
    signal: AbortSignal | undefined,
): AsyncGenerator<Token, undefined, undefined> {
    for (const [sequence, text] of texts.entries()) {
        yield await turns.run(async () => {
            const start = performance.now();
            const ids = text.prompt.slice(state.lengths[sequence]);
            const token = text.add(await state.prefill(sequence, ids, { signal }));
            counters.promptTokens += ids.length;
            counters.promptSeconds += (performance.now() - start) / 1000;
            return token;
        }, signal);
    }
    while (texts.some(({ finish }) => finish === undefined)) {
        yield* await turns.run(async () => {
            const start = performance.now();
            const tokens = await step(state, texts, signal);
            counters.generatedTokens += tokens.length;
            counters.generatedSeconds += (performance.now() - start) / 1000;
            return tokens;
        }, signal);
    }
    return undefined;
}

/** Run the last token of each text that goes on, and choose the tokens that follow. */
async function step(
    state: BatchState,
    texts: readonly Continuation[],
    signal: AbortSignal | undefined,
): Promise<Token[]> {
    const active = texts.map(({ finish }) => finish === undefined);
    const ids = texts.map((text) => text.lastToken);
    const logits = await state.decode(ids, active, signal);
    const vocabSize = logits.length / texts.length;
    const tokens: Token[] = [];
    for (const [sequence, text] of texts.entries()) {
        if (active[sequence]) tokens.push(text.add(logits.subarray(sequence * vocabSize, (sequence + 1) * vocabSize)));
    }
    return tokens;
}
