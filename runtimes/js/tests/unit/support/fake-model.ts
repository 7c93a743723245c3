/**
 * A model for tests of the page. The record of an even id is in the cache. The token after id i is 7 i + 3, modulo the
 * vocabulary, and its text is "<id>".
 */

import type { Model, Session } from "../../../src/api.js";
import type { GenerateOptions, Message, ModelStats, Token } from "../../../src/options.js";

/** Numbers that the fake counts. */
interface Counters {
    memory: number;
    cached: number;
    network: number;
}

export class FakeModel implements Pick<Model, "encode" | "renderChat" | "session" | "selftest" | "close"> {
    readonly where = "fake";
    readonly hasTokenizer = true;
    readonly hasChatTemplate = true;
    /** The ids that calls computed, for each call of `stream`. */
    readonly computed: number[][] = [];
    readonly #counters: Counters = { memory: 0, cached: 0, network: 0 };
    readonly #known = new Set<number>();
    /** Milliseconds that a token takes. */
    pause = 0;

    get stats(): ModelStats {
        const { memory, cached, network } = this.#counters;
        return {
            backend: "onnxruntime-web (WASM)",
            onnxruntime: "1.30.0",
            threads: 2,
            denseBytes: 5_400_000,
            tableBytes: 22_000_000,
            recordBytes: 5_376,
            vocabSize: 4096,
            contextLength: 1024,
            defaultSampling: {},
            recordsRead: cached + network,
            recordsInMemory: memory,
            source: {
                networkBytes: 5_400_000 + network * 5_376,
                networkRequests: network,
                networkRecords: network,
                cachedRecords: cached,
                cache: "opfs",
                cacheReason: "",
            },
            promptTokens: 0,
            promptSeconds: 0,
            generatedTokens: 0,
            generatedSeconds: 0,
        };
    }

    /** The ids of a text are the codes of its characters. */
    encode(text: string): Promise<number[]> {
        return Promise.resolve(Array.from(text, (character) => character.codePointAt(0)! % 4096));
    }

    renderChat(messages: readonly Message[]): Promise<string> {
        return Promise.resolve(messages.map(({ role, content }) => `${role}:${String(content)};`).join(""));
    }

    session(): Promise<Session> {
        return Promise.resolve(new FakeSession(this) as unknown as Session);
    }

    selftest(): ReturnType<Model["selftest"]> {
        const limits = { maxAbs: 7.6e-6, maxAbsLimit: 1e-3, relativeL2: 1e-6, relativeL2Limit: 1e-4 };
        return Promise.resolve({ passed: true, failures: [], ...limits, greedyTokens: 96, greedyEqual: 96 });
    }

    close(): Promise<void> {
        return Promise.resolve();
    }

    /** Read the records of ids. */
    read(ids: readonly number[]): void {
        for (const id of new Set(ids)) {
            if (this.#known.has(id)) this.#counters.memory += 1;
            else if (id % 2 === 0) this.#counters.cached += 1;
            else this.#counters.network += 1;
            this.#known.add(id);
        }
    }
}

class FakeSession {
    ids: readonly number[] = [];
    readonly #model: FakeModel;
    #pending: readonly number[] = [];

    constructor(model: FakeModel) {
        this.#model = model;
    }

    async *stream(ids: readonly number[], options: GenerateOptions = {}): AsyncGenerator<Token> {
        this.#model.computed.push([...ids]);
        let next = [...this.#pending, ...ids];
        this.ids = [...this.ids, ...ids];
        for (let count = 0; count < (options.maxNewTokens ?? 128); count++) {
            if (this.#model.pause > 0) await new Promise((resolve) => setTimeout(resolve, this.#model.pause));
            options.signal?.throwIfAborted();
            this.#model.read(next);
            const id = (next.at(-1)! * 7 + 3) % 4096;
            next = this.#pending = [id];
            this.ids = [...this.ids, id];
            yield { sequence: 0, id, text: `<${id}>` };
        }
    }

    rewind(length: number): Promise<void> {
        this.ids = this.ids.slice(0, length);
        this.#pending = [];
        return Promise.resolve();
    }
}
