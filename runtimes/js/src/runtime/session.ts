/** Sessions: texts that grow over several calls, and that can be saved. */

import type { Session } from "../api.js";
import { BundleError, ProviderError, RequestError } from "../errors.js";
import { parseSession, sessionGraph, writeSession, type SessionOwner } from "../format/session-file.js";
import type { GenerateOptions, Token } from "../options.js";
import { chatMessages, optionsOf, tokenIds, wholeNumber } from "./checks.js";
import { Continuation, generate, type Counters } from "./generation.js";
import type { LoadedModel } from "./load-model.js";
import { Sampler } from "./sampling.js";
import type { BatchState } from "./sequences.js";
import { settingsOf } from "./settings.js";
import type { Tokenizer } from "./tokenizer/tokenizer.js";
import type { Turns } from "./turns.js";

/** The parts of an open model that sessions use. */
export interface SessionModel {
    readonly loaded: LoadedModel;
    readonly turns: Turns;
    readonly counters: Counters;
    /** The tokenizer; undefined: the bundle has none. */
    tokenizer(): Promise<Tokenizer | undefined>;
    encode(text: string, options: { readonly addSpecialTokens: boolean }): Promise<number[]>;
}

type Messages = Session["messages"];

/** A text that grows. */
export class ModelSession implements Session {
    readonly #model: SessionModel;
    /** It may hold more tokens than the text, or others: after a rewind, and after a call that a later call has ended. */
    #state: BatchState;
    /** Whether the state may be used. After a ProviderError its KV cache may hold NaN. */
    #isSound = true;
    /** A change makes a new list, so a list that was given away stays as it is. */
    #ids: readonly number[] = [];
    #messages: Messages;
    /** The number of the latest call. An earlier call must not change the text or the state under it. */
    #calls = 0;
    #isClosed = false;

    /** Make a session in a turn of its model. */
    constructor(model: SessionModel) {
        this.#model = model;
        this.#state = model.loaded.sequences(1);
    }

    /**
     * Return a session from the bytes of a saved one.
     *
     * @throws RequestError The bytes are refused.
     */
    static async restore(model: SessionModel, saved: Uint8Array): Promise<ModelSession> {
        if (!(saved instanceof Uint8Array)) {
            throw new RequestError("the saved session: expected the bytes of a file, as a Uint8Array");
        }
        const { ids, length, layers, messages } = await parseSession(
            saved,
            await sessionOwner(model.loaded),
            "the saved session",
        );
        return model.turns.run(() =>
            ModelSession.#filled(model, { ids, messages }, (state) => state.restore(0, ids.slice(0, length), layers)),
        );
    }

    /** Return a session with a text. `fill` fills its state with a beginning of the text. */
    static async #filled(
        model: SessionModel,
        { ids, messages }: Pick<Session, "ids" | "messages">,
        fill: (state: BatchState) => Promise<void>,
    ): Promise<ModelSession> {
        const session = new ModelSession(model);
        try {
            await fill(session.#state);
        } catch (error) {
            session.#state.release();
            throw error;
        }
        session.#ids = ids;
        session.#messages = messages;
        return session;
    }

    get ids(): readonly number[] {
        return this.#ids;
    }

    get messages(): Messages {
        return this.#messages;
    }

    async *stream(ids: readonly number[], options: GenerateOptions = {}): AsyncGenerator<Token, undefined, undefined> {
        this.#checkOpen();
        const { config, bundle } = this.#model.loaded;
        const tokens = tokenIds("ids", ids, config.vocabSize);
        const settings = settingsOf(bundle, options, await this.#model.tokenizer(), true);
        const context = config.maxPositionEmbeddings;
        let whole: readonly number[] = [...this.#ids, ...tokens];
        if (whole.length > context) {
            throw new RequestError(
                `the session has ${whole.length} tokens with this prompt, expected at most ${context} (the model's ` +
                    "context); shorten its text with rewind",
            );
        }
        const text = new Continuation(0, whole, settings, new Sampler(settings.sampling, config.vocabSize), context);
        const call = ++this.#calls;
        const turns = {
            run: <T>(action: () => Promise<T>, signal?: AbortSignal) => this.#run(call, action, signal),
        };
        await turns.run(() => this.#prepare(text.prompt), settings.signal);
        const steps = generate(this.#state, [text], turns, this.#model.counters, settings.signal);
        while (text.finish === undefined) {
            const token = (await steps.next()).value!;
            this.#checkCurrent(call);
            this.#ids = whole = [...whole, token.id];
            yield token;
        }
        return undefined;
    }

    /** Run an action of a call in a turn. */
    #run<T>(call: number, action: () => Promise<T>, signal: AbortSignal | undefined): Promise<T> {
        return this.#model.turns.run(async () => {
            this.#checkCurrent(call);
            try {
                return await action();
            } catch (error) {
                if (error instanceof ProviderError) this.#isSound = false;
                throw error;
            }
        }, signal);
    }

    /** Make the state hold a beginning of `ids`. The last token is always run, since its logits are needed. */
    async #prepare(ids: readonly number[]): Promise<void> {
        if (!this.#isSound) {
            this.#state.release();
            this.#state = this.#model.loaded.sequences(1);
            this.#isSound = true;
        }
        await this.#state.rewind(0, Math.min(this.#computed(ids), ids.length - 1));
    }

    /** Return the number of tokens of `ids` whose keys and values are in the KV cache. */
    #computed(ids: readonly number[]): number {
        if (!this.#isSound) return 0;
        const history = this.#state.history(0);
        const most = Math.min(history.length, ids.length);
        let length = 0;
        while (length < most && history[length] === ids[length]) length++;
        return length;
    }

    async *text(text: string, options: GenerateOptions = {}): AsyncGenerator<string, undefined, undefined> {
        this.#checkOpen();
        const ids = await this.#model.encode(text, { addSpecialTokens: this.#ids.length === 0 });
        for await (const token of this.stream(ids, options)) {
            if (token.text !== "") yield token.text;
        }
        return undefined;
    }

    // The next call rewinds the state, as far as it has to.
    // eslint-disable-next-line @typescript-eslint/require-await -- an error must be a rejection
    async rewind(length: number): Promise<void> {
        this.#checkOpen();
        wholeNumber("length", length, 0, this.#ids.length);
        this.#calls++;
        this.#ids = this.#ids.slice(0, length);
    }

    async fork(): Promise<Session> {
        this.#checkOpen();
        const text = { ids: this.#ids, messages: this.#messages };
        return this.#model.turns.run(() => {
            this.#checkOpen();
            const length = this.#computed(text.ids);
            return ModelSession.#filled(this.#model, text, (state) => state.copy(0, this.#state, 0, length));
        });
    }

    async save(options: { readonly messages?: Messages } = {}): Promise<Uint8Array> {
        this.#checkOpen();
        const ids = this.#ids;
        const messages = chatMessages(optionsOf(options).messages ?? this.#messages);
        if (ids.length === 0) throw new RequestError("the session is empty, expected a text to save");
        const owner = await sessionOwner(this.#model.loaded);
        const saved = await this.#model.turns.run(async () => {
            this.#checkOpen();
            const length = this.#computed(ids);
            return { ids, length, layers: await this.#state.save(0, length), messages };
        });
        return writeSession(owner, saved);
    }

    async close(): Promise<void> {
        if (this.#isClosed) return;
        this.#isClosed = true;
        await this.#model.turns.release(() => {
            this.#state.release();
        });
    }

    #checkOpen(): void {
        if (this.#isClosed) throw new RequestError("the session is closed; make a new one");
    }

    #checkCurrent(call: number): void {
        this.#checkOpen();
        if (call === this.#calls) return;
        throw new RequestError("the session is in use by a later call, which ended this one");
    }
}

async function sessionOwner({ bundle, config }: LoadedModel): Promise<SessionOwner> {
    const { kvDtype } = bundle.graph;
    if (kvDtype === "float16") throw new BundleError(`${bundle.source.where}: profile cpu has no KV cache of float16`);
    const graph = await sessionGraph(bundle.manifest, bundle.graph);
    return { tableId: bundle.manifest.experts.id, graph, config, kvDtype };
}
