/** The caller's side: a model whose calls all run in a worker. */

import type { Model, ModelOptions, Sequences, Session } from "../api.js";
import { RequestError } from "../errors.js";
import { abortSignal, listener, optionsOf } from "../runtime/checks.js";
import type { ChatOptions, GenerateOptions, Message, ModelStats, SelfTest, Token } from "../options.js";
import type { Description, Source } from "../source.js";
import { Connection, type CallOptions } from "./connection.js";
import type { ModelFacts, ObjectState } from "./messages.js";

const MODEL = 0; // the number of the model among the worker's objects

interface Created {
    readonly object: number;
    readonly state: ObjectState;
}

/**
 * Open a model in a worker (see `Model.open`).
 *
 * @throws RequestError The source or the backend cannot be made in a worker.
 */
export async function openInWorker(source: Source, options: ModelOptions): Promise<Model> {
    const connection = new Connection(await options.worker!.start());
    try {
        const facts = await connection.request<ModelFacts>(
            {
                do: "open",
                source: described("source", source),
                backend: described("backend", options.backend),
                ...(options.prefillChunk !== undefined && { prefillChunk: options.prefillChunk }),
            },
            options,
        );
        return new WorkerModel(connection, facts);
    } catch (error) {
        await connection.close();
        throw error;
    }
}

function described(name: string, thing: { readonly description?: Description | undefined }): Description {
    if (!thing.description) {
        throw new RequestError(
            `${name}: found one without a description, expected one that a worker can make again; ` +
                "open the model without the option worker",
        );
    }
    return thing.description;
}

/** An object of the worker: methods, and iterators whose items come one at a time. */
class WorkerObject {
    protected readonly connection: Connection;
    protected readonly object: number;

    constructor(connection: Connection, object: number) {
        this.connection = connection;
        this.object = object;
    }

    protected async call<T>(method: string, args: readonly unknown[], options: CallOptions = {}): Promise<T> {
        return this.connection.request<T>({ do: "call", object: this.object, method, args }, checked(options));
    }

    /** Close the object. It may be closed already. */
    protected release(): Promise<void> {
        return this.connection.release({ do: "call", object: this.object, method: "close", args: [] });
    }

    protected async *iterate<T>(
        method: string,
        args: readonly unknown[],
        options: CallOptions = {},
    ): AsyncGenerator<T, undefined, undefined> {
        yield* this.connection.items<T>({ do: "iterate", object: this.object, method, args }, checked(options));
        return undefined;
    }
}

class WorkerModel extends WorkerObject implements Model {
    readonly where: string;
    readonly hasTokenizer: boolean;
    readonly hasChatTemplate: boolean;

    constructor(connection: Connection, facts: ModelFacts) {
        super(connection, MODEL);
        this.where = facts.where;
        this.hasTokenizer = facts.hasTokenizer;
        this.hasChatTemplate = facts.hasChatTemplate;
    }

    get stats(): ModelStats {
        return this.connection.stats!;
    }

    text(prompt: string, options: GenerateOptions = {}): AsyncGenerator<string, undefined, undefined> {
        return this.iterate("text", [prompt, withoutSignal(options)], options);
    }

    stream(
        prompts: readonly (readonly number[])[],
        options: GenerateOptions = {},
    ): AsyncGenerator<Token, undefined, undefined> {
        return this.iterate("stream", [prompts, withoutSignal(options)], options);
    }

    chat(
        messages: readonly Message[],
        options: GenerateOptions & ChatOptions = {},
    ): AsyncGenerator<string, undefined, undefined> {
        return this.iterate("chat", [messages, withoutSignal(options)], options);
    }

    renderChat(messages: readonly Message[], options: ChatOptions = {}): Promise<string> {
        return this.call("renderChat", [messages, options]);
    }

    encode(text: string, options: { readonly addSpecialTokens?: boolean | undefined } = {}): Promise<number[]> {
        return this.call("encode", [text, options]);
    }

    decode(ids: readonly number[]): Promise<string> {
        return this.call("decode", [ids]);
    }

    async session(): Promise<Session> {
        return new WorkerSession(this.connection, await this.call<Created>("session", []));
    }

    async restore(saved: Uint8Array): Promise<Session> {
        return new WorkerSession(this.connection, await this.call<Created>("restore", [saved]));
    }

    async sequences(batchSize: number, options: { readonly maxLength?: number | undefined } = {}): Promise<Sequences> {
        return new WorkerSequences(
            this.connection,
            await this.call<Created>("sequences", [batchSize, options]),
            batchSize,
        );
    }

    selftest(
        options: {
            readonly signal?: AbortSignal | undefined;
            readonly onProgress?: ((done: number) => void) | undefined;
        } = {},
    ): Promise<SelfTest> {
        return this.call("selftest", [{}], options);
    }

    async close(): Promise<void> {
        try {
            await this.release();
        } finally {
            await this.connection.close();
        }
    }
}

class WorkerSession extends WorkerObject implements Session {
    #ids: readonly number[] = [];
    #messages: Session["messages"];

    constructor(connection: Connection, created: Created) {
        super(connection, created.object);
        this.#update(created.state);
        connection.watch(created.object, (state) => {
            this.#update(state);
        });
    }

    #update(state: ObjectState): void {
        if (state.kind === "session") {
            this.#ids = [...this.#ids.slice(0, state.kept), ...state.added];
            this.#messages = state.messages;
        }
    }

    get ids(): readonly number[] {
        return this.#ids;
    }

    get messages(): Session["messages"] {
        return this.#messages;
    }

    stream(ids: readonly number[], options: GenerateOptions = {}): AsyncGenerator<Token, undefined, undefined> {
        return this.iterate("stream", [ids, withoutSignal(options)], options);
    }

    text(text: string, options: GenerateOptions = {}): AsyncGenerator<string, undefined, undefined> {
        return this.iterate("text", [text, withoutSignal(options)], options);
    }

    rewind(length: number): Promise<void> {
        return this.call("rewind", [length]);
    }

    async fork(): Promise<Session> {
        return new WorkerSession(this.connection, await this.call<Created>("fork", []));
    }

    save(
        options: { readonly messages?: readonly Readonly<Record<string, string>>[] | undefined } = {},
    ): Promise<Uint8Array> {
        return this.call("save", [options]);
    }

    async close(): Promise<void> {
        await this.release();
        this.connection.unwatch(this.object);
    }
}

class WorkerSequences extends WorkerObject implements Sequences {
    readonly batchSize: number;
    #maxLength = 0;
    #lengths: readonly number[] = [];

    constructor(connection: Connection, created: Created, batchSize: number) {
        super(connection, created.object);
        this.batchSize = batchSize;
        this.#update(created.state);
        connection.watch(created.object, (state) => {
            this.#update(state);
        });
    }

    #update(state: ObjectState): void {
        if (state.kind === "sequences") {
            this.#maxLength = state.maxLength;
            this.#lengths = state.lengths;
        }
    }

    get maxLength(): number {
        return this.#maxLength;
    }

    get lengths(): readonly number[] {
        return this.#lengths;
    }

    prefill(
        sequence: number,
        ids: readonly number[],
        options: { readonly signal?: AbortSignal | undefined } = {},
    ): Promise<Float32Array> {
        return this.call("prefill", [sequence, ids, {}], options);
    }

    decode(
        ids: readonly number[],
        options: { readonly active?: readonly boolean[] | undefined; readonly signal?: AbortSignal | undefined } = {},
    ): Promise<Float32Array> {
        return this.call("decode", [ids, withoutSignal(options)], options);
    }

    rewind(sequence: number, length: number): Promise<void> {
        return this.call("rewind", [sequence, length]);
    }

    fork(sequence: number): Promise<number> {
        return this.call("fork", [sequence]);
    }

    async close(): Promise<void> {
        await this.release();
        this.connection.unwatch(this.object);
    }
}

/** A signal cannot be sent: the connection sends a message when it aborts. `checked` refuses what is no object. */
function withoutSignal<T extends { readonly signal?: AbortSignal | undefined }>(options: T): T {
    return { ...options, signal: undefined };
}

/** Check what stays on this side. */
function checked(options: CallOptions): CallOptions {
    const { signal, onProgress } = optionsOf(options);
    return { signal: abortSignal(signal), onProgress: listener("onProgress", onProgress) ?? undefined };
}
