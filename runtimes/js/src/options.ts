/** The options and results of the public face, as plain objects that can be sent to a worker. */

import type { SourceStats } from "./source.js";

/** Parameters of sampling (docs/bundle-format.md, "Sampling"). A missing parameter has the default given here. */
export interface Sampling {
    /** 0 (default): greedy. Otherwise 1e-6 to 1e6. */
    readonly temperature?: number | undefined;
    /** 0 (default): off. */
    readonly topK?: number | undefined;
    /** 1 (default): off. */
    readonly topP?: number | undefined;
    /** 0 (default): off. */
    readonly minP?: number | undefined;
    /** 1 (default): off. 0.01 to 100. */
    readonly repetitionPenalty?: number | undefined;
    /** 0 (default): off. -2 to 2. */
    readonly presencePenalty?: number | undefined;
    /** 0 (default): off. -2 to 2. */
    readonly frequencyPenalty?: number | undefined;
    /** Token id -> number that is added to its logit, -1e6 to 1e6. */
    readonly logitBias?: Readonly<Record<number, number>> | undefined;
    /** 0 to 2^64 - 1, default 0. A number above 2^53 is given as a bigint. */
    readonly seed?: number | bigint | undefined;
}

/** The options of all methods that generate. */
export interface GenerateOptions {
    /** The largest number of tokens to add to each prompt; default 128. */
    readonly maxNewTokens?: number | undefined;
    /** Default: the bundle's own parameters, with seed 0. */
    readonly sampling?: Sampling | undefined;
    /** Token ids that end a text; default: the bundle's. */
    readonly stopIds?: readonly number[] | undefined;
    /** Strings that end a text: at most 16, each of 1 to 1,000 characters. */
    readonly stop?: readonly string[] | undefined;
    /** Return the log-probability of each token and of this number of likeliest tokens; default: none. */
    readonly logprobs?: number | undefined;
    /** Ends the call with the signal's reason. */
    readonly signal?: AbortSignal | undefined;
}

export type Finish = "stop" | "length";

/** A token and the logarithm of its probability, which follows from the logits alone. */
export interface Logprob {
    readonly id: number;
    readonly logprob: number;
}

/** One generated token. */
export interface Token {
    /** The index of the prompt that the token continues. */
    readonly sequence: number;
    readonly id: number;
    /** Why the sequence ends with this token; undefined: it goes on. */
    readonly finish?: Finish | undefined;
    /** The text that this token completes; "" without a tokenizer. */
    readonly text: string;
    /** Only if log-probabilities were requested. */
    readonly logprob?: number | undefined;
    /** The likeliest tokens, likeliest first; only if log-probabilities were requested. */
    readonly best?: readonly Logprob[] | undefined;
}

/** A message of a chat; templates may read more fields. */
export interface Message {
    readonly role: string;
    readonly content: unknown;
    readonly [field: string]: unknown;
}

export interface ChatOptions {
    /** JSON schemas of functions. */
    readonly tools?: readonly unknown[] | undefined;
    /** Whether the text ends with the beginning of the model's answer; default true. */
    readonly addGenerationPrompt?: boolean | undefined;
}

/** Progress of `Model.open`. */
export interface Progress {
    readonly phase: "manifest" | "download" | "load";
    /** The file that is read, "" in the phases "manifest" and "load". */
    readonly file: string;
    /** Bytes of all files that are read whole: those that have arrived, and all. 0 before the manifest is read. */
    readonly loadedBytes: number;
    readonly totalBytes: number;
}

export interface OpenOptions {
    /** Tokens of a chunk of a prompt; default 128. */
    readonly prefillChunk?: number | undefined;
    readonly onProgress?: ((progress: Progress) => void) | undefined;
    /** Ends the opening with the signal's reason. */
    readonly signal?: AbortSignal | undefined;
}

/** The result of the golden vectors (docs/bundle-format.md, "Golden vectors"). */
export interface SelfTest {
    readonly passed: boolean;
    /** One line for each way to run the texts that did not pass. */
    readonly failures: readonly string[];
    /** The largest difference of a logit or a projection, and its limit. */
    readonly maxAbs: number;
    readonly maxAbsLimit: number;
    readonly relativeL2: number;
    readonly relativeL2Limit: number;
    /** Greedy tokens that were compared, and those that were equal. */
    readonly greedyTokens: number;
    readonly greedyEqual: number;
}

/** What a model is, and what it has done since it was opened. */
export interface ModelStats {
    readonly backend: string;
    readonly onnxruntime: string;
    readonly threads: number;
    /** Bytes of the graph and its weights, of the tables, and of one record. */
    readonly denseBytes: number;
    readonly tableBytes: number;
    readonly recordBytes: number;
    readonly vocabSize: number;
    readonly contextLength: number;
    /** The parameters of a call without the option `sampling`, except the seed, which is 0. */
    readonly defaultSampling: Sampling;
    /** Records that the driver asked its source for, and those that it had in RAM. */
    readonly recordsRead: number;
    readonly recordsInMemory: number;
    readonly source: SourceStats;
    /**
     * Tokens of prompts that were run, and tokens that were generated by steps, with the seconds of both. The first token
     * of each text follows from its prompt, so it counts for neither.
     */
    readonly promptTokens: number;
    readonly promptSeconds: number;
    readonly generatedTokens: number;
    readonly generatedSeconds: number;
}
