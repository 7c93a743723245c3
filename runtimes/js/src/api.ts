/**
 * The public face of an open model. There are two implementations: model.ts runs in the caller's thread, and
 * worker/client.ts sends every call to a worker.
 */

import type { Backend } from "./backend.js";
import type { ChatOptions, GenerateOptions, Message, ModelStats, OpenOptions, SelfTest, Token } from "./options.js";

/** Starts workers that run models; `nodeWorker()` and `webWorker()` return one. */
export interface WorkerFactory {
    /** @internal */
    start(): Promise<WorkerPort>;
}

/** A running worker. @internal */
export interface WorkerPort {
    send(message: unknown): void;
    /** Set the receiver of messages, and of the end of the worker. */
    listen(onMessage: (message: unknown) => void, onEnd: (error: Error) => void): void;
    terminate(): Promise<void>;
}

/** The options of `Model.open`. */
export interface ModelOptions extends OpenOptions {
    readonly backend: Backend;
    /** Run everything in a worker of this factory; default: in the caller's thread. */
    readonly worker?: WorkerFactory | undefined;
}

/** An open bundle. One call at a time runs; other calls wait for it. */
export interface Model {
    /** The path or address of the bundle. */
    readonly where: string;
    readonly hasTokenizer: boolean;
    readonly hasChatTemplate: boolean;
    /** Numbers for people, as of the last result that the caller received. */
    readonly stats: ModelStats;

    /**
     * Continue a text. Yield its pieces; a piece is yielded as soon as no later token can change it.
     *
     * @throws BundleError The bundle has no tokenizer.
     */
    text(prompt: string, options?: GenerateOptions): AsyncIterableIterator<string>;
    /** Continue a batch of prompts, which are lists of token ids. Tokens have text only with `stop`. */
    stream(prompts: readonly (readonly number[])[], options?: GenerateOptions): AsyncIterableIterator<Token>;
    /** Render messages with the bundle's chat template, and continue them. Yield pieces as `text` does. */
    chat(messages: readonly Message[], options?: GenerateOptions & ChatOptions): AsyncIterableIterator<string>;
    /** Return the text that the bundle's chat template makes of messages. Encode it without special tokens. */
    renderChat(messages: readonly Message[], options?: ChatOptions): Promise<string>;
    /** Return the token ids of a text. `addSpecialTokens` (default true) adds those that start a text. */
    encode(text: string, options?: { readonly addSpecialTokens?: boolean | undefined }): Promise<number[]>;
    /** Return the text of token ids, without special tokens. */
    decode(ids: readonly number[]): Promise<string>;

    /** Return an empty session: a text that grows over several calls. */
    session(): Promise<Session>;
    /**
     * Return a session from the bytes of a saved one (docs/bundle-format.md, "The saved file").
     *
     * @throws RequestError The bytes are refused.
     */
    restore(saved: Uint8Array): Promise<Session>;
    /** Return free sequences for use step by step. `maxLength` (default: the context) limits their tokens. */
    sequences(batchSize: number, options?: { readonly maxLength?: number | undefined }): Promise<Sequences>;
    /** Compare the model with the golden vectors of the bundle. `onProgress` gets the done share, from 0 to 1. */
    selftest(options?: {
        readonly signal?: AbortSignal | undefined;
        readonly onProgress?: ((done: number) => void) | undefined;
    }): Promise<SelfTest>;
    /** Release the graph, the source and the worker. A running call ends with an error. */
    close(): Promise<void>;
}

/** A text that grows over several calls. Its KV cache is kept, so each call computes only the new tokens. */
export interface Session {
    /** The token ids of the text, as of the last result that the caller received. */
    readonly ids: readonly number[];
    /** The messages of a chat that the saved file held; undefined if it held none. */
    readonly messages: readonly Readonly<Record<string, string>>[] | undefined;
    /**
     * Append token ids, and generate the tokens that follow. A token becomes part of the text when it is yielded. The
     * tokens have their text if the bundle has a tokenizer. `ids` may be empty if the text is not.
     */
    stream(ids: readonly number[], options?: GenerateOptions): AsyncIterableIterator<Token>;
    /** Append a text, and yield the pieces of the text that follows. */
    text(text: string, options?: GenerateOptions): AsyncIterableIterator<string>;
    /** Shorten the text to its first `length` tokens. */
    rewind(length: number): Promise<void>;
    /** Return a copy. Both can then continue in different ways. */
    fork(): Promise<Session>;
    /** Return the bytes of the saved file. `messages` is by default this session's. */
    save(options?: {
        readonly messages?: readonly Readonly<Record<string, string>>[] | undefined;
    }): Promise<Uint8Array>;
    close(): Promise<void>;
}

/** A batch of sequences for use step by step. A sequence of length 0 is free. A failed call changes nothing. */
export interface Sequences {
    readonly batchSize: number;
    readonly maxLength: number;
    /** The tokens of each sequence, as of the last result that the caller received. */
    readonly lengths: readonly number[];
    /** Append token ids to a sequence. Return the logits of the last position, [V]. */
    prefill(
        sequence: number,
        ids: readonly number[],
        options?: { readonly signal?: AbortSignal | undefined },
    ): Promise<Float32Array>;
    /** Append one id to each active sequence. Return logits, [B, V]; those of other sequences mean nothing. */
    decode(
        ids: readonly number[],
        options?: { readonly active?: readonly boolean[] | undefined; readonly signal?: AbortSignal | undefined },
    ): Promise<Float32Array>;
    /** Shorten a sequence. Length 0 frees it. */
    rewind(sequence: number, length: number): Promise<void>;
    /** Copy a sequence to the first free one, and return its index. */
    fork(sequence: number): Promise<number>;
    close(): Promise<void>;
}
