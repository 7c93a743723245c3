/** The caller's end of the messages: numbers requests, and gives each its reply. */

import type { WorkerPort } from "../api.js";
import { MolkvError, ProviderError, RequestError } from "../errors.js";
import type { ModelStats } from "../options.js";
import { receivedError, type ObjectState, type Operation, type Reply } from "./messages.js";

/** What a request can have besides its operation. */
export interface CallOptions {
    readonly signal?: AbortSignal | undefined;
    readonly onProgress?: ((progress: never) => void) | undefined;
}

interface Waiting {
    resolve(reply: Extract<Reply, { value?: unknown }>): void;
    reject(error: Error): void;
    readonly onProgress: ((progress: never) => void) | undefined;
}

/** A connection to one worker. */
export class Connection {
    /** The model's numbers as of the last reply. */
    stats: ModelStats | undefined;

    readonly #port: WorkerPort;
    readonly #waiting = new Map<number, Waiting>();
    readonly #watchers = new Map<number, (state: ObjectState) => void>();
    #next = 0;
    #ended: Error | undefined;

    constructor(port: WorkerPort) {
        this.#port = port;
        port.listen(
            (message) => {
                this.#receive(message as Reply);
            },
            (error) => {
                this.#end(
                    new ProviderError(`the worker ended: ${error.message}; open the model again`, { cause: error }),
                );
                // After an error of its script, a worker of a browser goes on.
                void port.terminate();
            },
        );
    }

    /** Call `update` with the state of an object of the worker after each call that may change it. */
    watch(object: number, update: (state: ObjectState) => void): void {
        this.#watchers.set(object, update);
    }

    unwatch(object: number): void {
        this.#watchers.delete(object);
    }

    /** Do an operation, and return its value. */
    async request<T>(operation: Operation, options: CallOptions = {}): Promise<T> {
        const { reply } = this.#send(operation, options);
        return (await withSignal(reply, options.signal)).value as T;
    }

    /** Yield the items of an iterator of the worker. The worker computes an item when it is asked for it. */
    async *items<T>(operation: Operation, options: CallOptions): AsyncGenerator<T, undefined, undefined> {
        const { number, reply, stop } = this.#send(operation, options, true);
        try {
            await withSignal(reply, options.signal);
            for (;;) {
                const item = await withSignal(this.#send({ do: "next", iterator: number }, {}).reply, options.signal);
                if (item.done) {
                    return undefined;
                }
                yield item.value as T;
            }
        } finally {
            stop();
            await this.release({ do: "return", iterator: number });
        }
    }

    /** Do an operation that only releases what the worker holds. After the end of the worker there is nothing to do. */
    async release(operation: Operation): Promise<void> {
        try {
            if (!this.#ended) await this.request(operation);
        } catch (error) {
            if (!(error instanceof MolkvError)) throw error;
        }
    }

    #send(
        operation: Operation,
        options: CallOptions,
        lasting = false,
    ): { number: number; reply: Promise<Extract<Reply, { value?: unknown }>>; stop: () => void } {
        const number = this.#next++;
        const { signal, onProgress } = options;
        const abort = (): void => {
            if (!this.#ended) {
                this.#port.send({ abort: number });
            }
        };
        const stop = (): void => {
            signal?.removeEventListener("abort", abort);
        };
        const reply = new Promise<Extract<Reply, { value?: unknown }>>((resolve, reject) => {
            if (this.#ended) {
                throw this.#ended;
            }
            signal?.throwIfAborted();
            this.#waiting.set(number, { resolve, reject, onProgress });
            // A listener that throws also ends the request.
            const withProgress = onProgress !== undefined;
            this.#post({ number, operation, withSignal: signal !== undefined || withProgress, withProgress });
            signal?.addEventListener("abort", abort);
        });
        if (!lasting) {
            void reply.then(stop, stop);
        }
        return { number, reply, stop };
    }

    #post(message: { number: number; operation: Operation; withSignal: boolean; withProgress: boolean }): void {
        try {
            this.#port.send(message);
        } catch (error) {
            this.#waiting.delete(message.number);
            const why = error instanceof Error ? error.message : String(error);
            throw new RequestError(`an argument cannot be sent to the worker: ${why}`, { cause: error });
        }
    }

    #receive(message: Reply): void {
        const waiting = this.#waiting.get(message.number);
        if ("progress" in message) {
            this.#report(message.number, message.progress);
            return;
        }
        this.#waiting.delete(message.number);
        this.stats = message.stats ?? this.stats;
        if (message.state) {
            this.#watchers.get(message.state.object)?.(message.state.value);
        }
        if (message.error) {
            waiting?.reject(receivedError(message.error));
        } else {
            waiting?.resolve(message);
        }
    }

    /** Call a listener. If it throws, the request ends with its error, as in the caller's thread. */
    #report(number: number, progress: unknown): void {
        const waiting = this.#waiting.get(number);
        try {
            waiting?.onProgress?.(progress as never);
        } catch (error) {
            this.#waiting.delete(number);
            waiting?.reject(error as Error);
            this.#port.send({ abort: number });
        }
    }

    /** End the worker. Running requests end with an error. */
    async close(): Promise<void> {
        this.#end(new RequestError("the model is closed; open it again"));
        await this.#port.terminate();
    }

    #end(error: Error): void {
        this.#ended ??= error;
        for (const waiting of this.#waiting.values()) {
            waiting.reject(error);
        }
        this.#waiting.clear();
    }
}

/** Wait for a reply. If the signal has ended the request, throw the signal's reason. */
async function withSignal<T>(reply: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
    try {
        return await reply;
    } catch (error) {
        if (!(error instanceof MolkvError)) {
            signal?.throwIfAborted();
        }
        throw error;
    }
}
