/** A model that runs in the caller's thread. */

import type { Model as ModelFace, ModelOptions, Sequences, Session } from "./api.js";
import { BundleError, RequestError } from "./errors.js";
import type { ChatOptions, GenerateOptions, Message, ModelStats, SelfTest, Token } from "./options.js";
import type { ChatTemplate } from "./runtime/chat-template/chat-template.js";
import {
    abortSignal,
    listener,
    listOf,
    optionsOf,
    shown,
    tokenIds,
    unicodeText,
    wholeNumber,
} from "./runtime/checks.js";
import { Continuation, generate } from "./runtime/generation.js";
import { loadModel, type LoadedModel } from "./runtime/load-model.js";
import { Sampler } from "./runtime/sampling.js";
import { selftest, type SelfTestOptions } from "./runtime/selftest.js";
import { ModelSequences } from "./runtime/model-sequences.js";
import { ModelSession, type SessionModel } from "./runtime/session.js";
import { settingsOf } from "./runtime/settings.js";
import { Tokenizer } from "./runtime/tokenizer/tokenizer.js";
import { Turns } from "./runtime/turns.js";
import type { Source } from "./source.js";
import { openInWorker } from "./worker/client.js";

const TOKENIZER = "tokenizer.json";
const TOKENIZER_CONFIG = "tokenizer_config.json";

/** An open bundle; see the interface in api.ts. */
export type Model = ModelFace;

/** Opens bundles. */
export const Model = {
    /**
     * Open a bundle and load its graph. The model owns the source: `close` closes it.
     *
     * @throws BundleError The bundle is damaged, incomplete or not supported, or cannot be read.
     * @throws ProviderError ONNX Runtime is missing, too old, or refuses the graph.
     * @throws MemoryError The weights do not fit into memory.
     * @throws RequestError An option is impossible.
     */
    async open(source: Source, options: ModelOptions): Promise<ModelFace> {
        const checked = checkedOptions(source, options);
        if (checked.worker) return openInWorker(source, checked);
        try {
            return new OpenModel(await loadModel(source, checked.backend, checked), checked);
        } catch (error) {
            // Only the first error says what is wrong.
            await source.close().catch(() => undefined);
            throw error;
        }
    },
};

/** Check the arguments of `Model.open`, as far as nothing else does it. */
function checkedOptions(source: Source, options: ModelOptions): ModelOptions {
    const { backend, worker, signal, onProgress } = optionsOf(options);
    const parts = [
        { name: "source", part: source as unknown, method: "openTable", example: "nodeFolder(path)" },
        { name: "backend", part: backend as unknown, method: "load", example: "onnxruntimeNode()" },
        ...(worker ? [{ name: "worker", part: worker as unknown, method: "start", example: "nodeWorker()" }] : []),
    ];
    for (const { name, part, method, example } of parts) {
        if (typeof (part as Record<string, unknown> | null | undefined)?.[method] === "function") continue;
        throw new RequestError(`${name}: found ${shown(part)}, expected one such as ${example}`);
    }
    return {
        ...options,
        signal: abortSignal(signal),
        onProgress: listener("onProgress", onProgress) ?? undefined,
    };
}

class OpenModel implements ModelFace, SessionModel {
    readonly loaded: LoadedModel;
    readonly turns = new Turns();
    readonly counters = { promptTokens: 0, promptSeconds: 0, generatedTokens: 0, generatedSeconds: 0 };
    readonly #options: ModelOptions;
    readonly #tokenizer = new Kept(() => this.#readTokenizer());
    readonly #template = new Kept(() => this.#readTemplate());
    #closing: Promise<void> | undefined;

    constructor(loaded: LoadedModel, options: ModelOptions) {
        this.loaded = loaded;
        this.#options = options;
    }

    get where(): string {
        return this.loaded.bundle.source.where;
    }

    get hasTokenizer(): boolean {
        return this.loaded.bundle.has(TOKENIZER);
    }

    get hasChatTemplate(): boolean {
        return this.hasTokenizer && this.loaded.bundle.manifest.generation.chatTemplate !== "";
    }

    get stats(): ModelStats {
        const { bundle, config, store, onnxruntime } = this.loaded;
        const { experts, files } = bundle.manifest;
        const shards = new Set(experts.shards.map(({ file }) => file));
        let tableBytes = 0;
        for (const shard of shards) tableBytes += files.get(shard)!.size;
        return {
            backend: this.#options.backend.name,
            threads: this.#options.backend.threads,
            onnxruntime,
            denseBytes: bundle.size(bundle.graphFile.file) + bundle.size(bundle.graph.data),
            tableBytes,
            recordBytes: experts.stride,
            vocabSize: config.vocabSize,
            contextLength: config.maxPositionEmbeddings,
            defaultSampling: bundle.manifest.generation.sampling,
            recordsRead: store.recordsRead,
            recordsInMemory: store.recordsInMemory,
            source: { ...bundle.source.stats },
            ...this.counters,
        };
    }

    async *text(prompt: string, options: GenerateOptions = {}): AsyncGenerator<string, undefined, undefined> {
        yield* this.#pieces(await this.encode(prompt), options);
        return undefined;
    }

    async *chat(
        messages: readonly Message[],
        options: GenerateOptions & ChatOptions = {},
    ): AsyncGenerator<string, undefined, undefined> {
        const text = await this.renderChat(messages, options);
        // The template has written the special tokens.
        yield* this.#pieces(await this.encode(text, { addSpecialTokens: false }), options);
        return undefined;
    }

    async *#pieces(ids: readonly number[], options: GenerateOptions): AsyncGenerator<string, undefined, undefined> {
        for await (const { text } of this.#generate([ids], options, true)) {
            if (text !== "") yield text;
        }
        return undefined;
    }

    stream(
        prompts: readonly (readonly number[])[],
        options: GenerateOptions = {},
    ): AsyncGenerator<Token, undefined, undefined> {
        return this.#generate(prompts, options, false);
    }

    async *#generate(
        prompts: readonly (readonly number[])[],
        options: GenerateOptions,
        hasText: boolean,
    ): AsyncGenerator<Token, undefined, undefined> {
        const { config, bundle } = this.loaded;
        if (listOf("prompts", prompts, "lists of token ids").length === 0) {
            throw new RequestError("prompts: found an empty list, expected at least one list of token ids");
        }
        const tokenizer = await this.tokenizer();
        const settings = settingsOf(bundle, options, tokenizer, hasText);
        const sampler = new Sampler(settings.sampling, config.vocabSize);
        const texts = Array.from(prompts, (prompt, index) => {
            const ids = tokenIds(`prompt ${index}`, prompt, config.vocabSize);
            return new Continuation(index, ids, settings, sampler, config.maxPositionEmbeddings);
        });
        const length = Math.max(...texts.map(({ mostLength }) => mostLength));
        const { signal } = settings;
        const state = await this.turns.run(() => Promise.resolve(this.loaded.sequences(texts.length, length)), signal);
        try {
            yield* generate(state, texts, this.turns, this.counters, signal);
        } finally {
            state.release();
        }
        return undefined;
    }

    async renderChat(messages: readonly Message[], options: ChatOptions = {}): Promise<string> {
        const { tools, addGenerationPrompt } = optionsOf(options);
        if (addGenerationPrompt !== undefined && typeof addGenerationPrompt !== "boolean") {
            throw new RequestError(`addGenerationPrompt: found ${shown(addGenerationPrompt)}, expected true or false`);
        }
        this.turns.checkOpen();
        return (await this.#template.get()).render(messages, { tools, addGenerationPrompt });
    }

    async #readTemplate(): Promise<ChatTemplate> {
        const { bundle } = this.loaded;
        const name = bundle.manifest.generation.chatTemplate;
        if (name === "") {
            throw new BundleError(`${this.where}: the bundle has no chat template; use a model with one, or text()`);
        }
        // Most programs never render a chat, so the engine is loaded with the first one.
        const { ChatTemplate } = await import("./runtime/chat-template/chat-template.js");
        const bytes = await bundle.readChecked(name);
        const tokenizerConfig = bundle.has(TOKENIZER_CONFIG) ? await bundle.readChecked(TOKENIZER_CONFIG) : undefined;
        return ChatTemplate.parse({ name, bytes }, tokenizerConfig, bundle.path(name));
    }

    async tokenizer(): Promise<Tokenizer | undefined> {
        this.turns.checkOpen();
        return this.hasTokenizer ? this.#tokenizer.get() : undefined;
    }

    async #readTokenizer(): Promise<Tokenizer> {
        const { bundle } = this.loaded;
        return Tokenizer.parse(await bundle.readChecked(TOKENIZER), bundle.path(TOKENIZER));
    }

    async #expectTokenizer(): Promise<Tokenizer> {
        const tokenizer = await this.tokenizer();
        if (tokenizer) return tokenizer;
        throw new BundleError(
            `${this.loaded.bundle.path(TOKENIZER)}: is not part of the bundle, so text cannot be used; use token ids`,
        );
    }

    async encode(text: string, options: { readonly addSpecialTokens?: boolean | undefined } = {}): Promise<number[]> {
        const { addSpecialTokens = true } = optionsOf(options);
        const tokenizer = await this.#expectTokenizer();
        return tokenizer.encode(unicodeText("text", text), addSpecialTokens);
    }

    async decode(ids: readonly number[]): Promise<string> {
        const tokenizer = await this.#expectTokenizer();
        return tokenizer.decode(tokenIds("ids", ids, this.loaded.config.vocabSize));
    }

    session(): Promise<Session> {
        return this.turns.run(() => Promise.resolve(new ModelSession(this)));
    }

    restore(saved: Uint8Array): Promise<Session> {
        return ModelSession.restore(this, saved);
    }

    async sequences(batchSize: number, options: { readonly maxLength?: number | undefined } = {}): Promise<Sequences> {
        const { maxLength } = optionsOf(options);
        wholeNumber("batchSize", batchSize, 1);
        return this.turns.run(() =>
            Promise.resolve(new ModelSequences(this.loaded.sequences(batchSize, maxLength), this.turns)),
        );
    }

    async selftest(options: SelfTestOptions = {}): Promise<SelfTest> {
        const signal = abortSignal(optionsOf(options).signal);
        const onProgress = listener("onProgress", options.onProgress) ?? undefined;
        return this.turns.run(() => selftest(this.loaded, { signal, onProgress }), signal);
    }

    close(): Promise<void> {
        return (this.#closing ??= this.turns.close().then(() => this.loaded.close()));
    }
}

/** Keeps what was read. If the reading fails, the next call tries again. */
class Kept<T> {
    readonly #read: () => Promise<T>;
    #value: Promise<T> | undefined;

    constructor(read: () => Promise<T>) {
        this.#read = read;
    }

    get(): Promise<T> {
        return (this.#value ??= this.#read().catch((error: unknown) => {
            this.#value = undefined;
            throw error;
        }));
    }
}
