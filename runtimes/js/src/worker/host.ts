/** The worker's side: it opens a model and does what the caller's messages say. */

import type { Backend } from "../backend.js";
import type { Model, ModelOptions, Sequences, Session } from "../api.js";
import { RequestError } from "../errors.js";
import type { Description, Source } from "../source.js";
import { sentError, type ObjectState, type Operation, type Reply, type Request } from "./messages.js";

/** What a platform gives the host. */
export interface HostPlatform {
    send(reply: Reply): void;
    source(description: Description): Source;
    backend(description: Description): Backend;
    /** `Model.open` in this thread. */
    open(source: Source, options: ModelOptions): Promise<Model>;
}

type WorkerObject = Model | Session | Sequences;
type Method = (...args: readonly unknown[]) => unknown;

const MODEL = 0; // the number of the model among the objects

/** Does the requests of one caller. */
export class Host {
    readonly #platform: HostPlatform;
    readonly #objects = new Map<number, WorkerObject>();
    readonly #iterators = new Map<number, { object: number; iterator: AsyncIterator<unknown, unknown> }>();
    readonly #controllers = new Map<number, AbortController>();
    readonly #sentIds = new Map<number, readonly number[]>();
    #nextObject = MODEL + 1;

    constructor(platform: HostPlatform) {
        this.#platform = platform;
    }

    /** Do what a message says. The reply is sent later; nothing is thrown. */
    receive(request: Request): void {
        if ("abort" in request) {
            this.#controllers.get(request.abort)?.abort();
            return;
        }
        void this.#answer(request);
    }

    async #answer(request: Exclude<Request, { abort: number }>): Promise<void> {
        const { number, operation } = request;
        const controller = new AbortController();
        this.#controllers.set(number, controller);
        const extras = {
            ...(request.withSignal && { signal: controller.signal }),
            ...(request.withProgress && {
                onProgress: (progress: never) => {
                    this.#platform.send({ number, progress });
                },
            }),
        };
        const object = this.#objectOf(operation);
        let reply: Exclude<Reply, { progress: unknown }>;
        try {
            reply = { number, ...(await this.#do(number, operation, extras)) };
        } catch (error) {
            // An item of an iterator is computed with the signal of the request that made the iterator.
            const { signal } = operation.do === "next" ? this.#signalOf(operation.iterator) : controller;
            reply = { number, error: sentError(error, signal.aborted) };
        }
        if (operation.do === "next" && (reply.error || reply.done)) {
            this.#forget(operation.iterator);
        }
        if (operation.do !== "iterate") {
            this.#controllers.delete(number);
        }
        try {
            this.#send(reply, object);
        } catch (error) {
            // The result cannot be sent, for example because there is no memory for its copy.
            this.#platform.send({ number, error: sentError(error, false) });
        }
    }

    #send(reply: Exclude<Reply, { progress: unknown }>, object: number | undefined): void {
        const state = object === undefined ? undefined : this.#stateOf(object);
        const model = this.#objects.get(MODEL) as Model | undefined;
        this.#platform.send({
            ...reply,
            ...(state && { state: { object: object!, value: state } }),
            ...(model && { stats: model.stats }),
        });
    }

    async #do(number: number, operation: Operation, extras: object): Promise<{ value?: unknown; done?: boolean }> {
        switch (operation.do) {
            case "open":
                return { value: await this.#open(operation, extras) };
            case "call":
                return { value: await this.#call(operation.object, operation.method, operation.args, extras) };
            case "iterate": {
                const iterator = this.#method(
                    operation.object,
                    operation.method,
                )(...withExtras(operation.args, extras));
                this.#iterators.set(number, {
                    object: operation.object,
                    iterator: iterator as AsyncIterator<unknown, unknown>,
                });
                return { value: number };
            }
            case "next": {
                const item = await this.#iterators.get(operation.iterator)?.iterator.next();
                return { value: item?.value, done: item?.done ?? true };
            }
            case "return": {
                const iterator = this.#iterators.get(operation.iterator)?.iterator;
                this.#forget(operation.iterator);
                await iterator?.return?.();
                return {};
            }
        }
    }

    async #open(operation: Extract<Operation, { do: "open" }>, extras: object): Promise<unknown> {
        const { prefillChunk } = operation;
        const model = await this.#platform.open(this.#platform.source(operation.source), {
            backend: this.#platform.backend(operation.backend),
            ...(prefillChunk !== undefined && { prefillChunk }),
            ...extras,
        });
        this.#objects.set(MODEL, model);
        return { where: model.where, hasTokenizer: model.hasTokenizer, hasChatTemplate: model.hasChatTemplate };
    }

    async #call(object: number, method: string, args: readonly unknown[], extras: object): Promise<unknown> {
        const value = await this.#method(object, method)(...withExtras(args, extras));
        if (method === "close") {
            this.#objects.delete(object);
            this.#sentIds.delete(object);
        }
        if (typeof value !== "object" || value === null || !("close" in value)) {
            return value;
        }
        const created = this.#nextObject++;
        this.#objects.set(created, value as Session | Sequences);
        return { object: created, state: this.#stateOf(created) };
    }

    #method(object: number, name: string): Method {
        const target = this.#objects.get(object) as unknown as Record<string, Method> | undefined;
        const method = target?.[name];
        if (!target || !method) {
            throw new RequestError("the session or the sequences are closed; make new ones");
        }
        return method.bind(target);
    }

    #signalOf(iterator: number): { signal: { aborted: boolean } } {
        return this.#controllers.get(iterator) ?? { signal: { aborted: false } };
    }

    #forget(iterator: number): void {
        this.#iterators.delete(iterator);
        this.#controllers.delete(iterator);
    }

    #objectOf(operation: Operation): number | undefined {
        if (operation.do === "call" || operation.do === "iterate") {
            return operation.object;
        }
        return operation.do === "open" ? undefined : this.#iterators.get(operation.iterator)?.object;
    }

    #stateOf(number: number): ObjectState | undefined {
        const object = this.#objects.get(number);
        if (object && "lengths" in object) {
            return { kind: "sequences", maxLength: object.maxLength, lengths: object.lengths };
        }
        if (!object || !("ids" in object)) {
            return undefined;
        }
        const known = this.#sentIds.get(number) ?? [];
        const ids = [...object.ids];
        const different = ids.findIndex((id, index) => id !== known[index]);
        const kept = different < 0 ? ids.length : different;
        this.#sentIds.set(number, ids);
        return { kind: "session", kept, added: ids.slice(kept), messages: object.messages };
    }
}

/** Add a signal and a listener to the options, which are the last argument. */
function withExtras(args: readonly unknown[], extras: object): readonly unknown[] {
    if (Object.keys(extras).length === 0) {
        return args;
    }
    return [...args.slice(0, -1), { ...(args.at(-1) as object), ...extras }];
}
