import { describe, expect, test } from "vitest";

import type { Model, ModelOptions, WorkerFactory } from "../../../src/api.js";
import { BundleError, ProviderError, RequestError } from "../../../src/errors.js";
import type { GenerateOptions, ModelStats, Progress } from "../../../src/options.js";
import type { Source } from "../../../src/source.js";
import { openInWorker } from "../../../src/worker/client.js";
import { Host } from "../../../src/worker/host.js";
import type { Reply, Request } from "../../../src/worker/messages.js";

let tokensMade = 0;

/** A session that adds the numbers from 100 on, and whose `text` fails after two pieces. */
class FakeSession {
    ids: number[];
    readonly messages = undefined;

    constructor(ids: readonly number[] = []) {
        this.ids = [...ids];
    }

    async *stream(ids: readonly number[], options: GenerateOptions = {}) {
        this.ids.push(...ids);
        for (let count = 0; count < (options.maxNewTokens ?? 3); count++) {
            await new Promise((resolve) => setTimeout(resolve, 1));
            options.signal?.throwIfAborted();
            tokensMade++;
            this.ids.push(100 + count);
            yield { sequence: 0, id: 100 + count, text: "" };
        }
    }

    async *text() {
        yield await Promise.resolve("a");
        yield "b";
        throw new BundleError("shard: the record is damaged");
    }

    rewind(length: number) {
        this.ids = this.ids.slice(0, length);
        return Promise.resolve();
    }

    fork() {
        return Promise.resolve(new FakeSession(this.ids));
    }

    save() {
        return Promise.resolve(Uint8Array.from(this.ids));
    }

    close() {
        return Promise.resolve();
    }
}

function fakeModel(): Model {
    return {
        where: "fake",
        hasTokenizer: true,
        hasChatTemplate: false,
        get stats() {
            return { generatedTokens: tokensMade } as ModelStats;
        },
        session: () => Promise.resolve(new FakeSession()),
        encode: (text: string) =>
            text === "bug" ? Promise.reject(new TypeError("oops")) : Promise.resolve([text.length]),
        decode: () => Promise.reject(new RequestError("id 9: too large")),
        selftest: async (options: { onProgress?: (done: number) => void; signal?: AbortSignal } = {}) => {
            options.onProgress?.(0.5);
            await new Promise((resolve, reject) => {
                setTimeout(resolve, 50);
                options.signal?.addEventListener("abort", () => {
                    reject(options.signal!.reason as Error);
                });
            });
            options.onProgress?.(1);
            return { passed: true };
        },
        close: () => Promise.resolve(),
    } as unknown as Model;
}

/** Run the host in this thread. Messages are cloned, as between threads. `end` ends the worker. */
function inThread(
    open: () => Promise<Model>,
): WorkerFactory & { end: (error: Error) => void; requests: Request[]; terminations: () => number } {
    const ends: ((error: Error) => void)[] = [];
    const requests: Request[] = [];
    let terminations = 0;
    return {
        requests,
        terminations: () => terminations,
        end: (error) => {
            ends[0]!(error);
        },
        start: () => {
            let receive: (message: unknown) => void;
            const host = new Host({
                send: (reply) => {
                    const copy = structuredClone(reply);
                    setTimeout(() => {
                        receive(copy);
                    });
                },
                source: (description) => ({ where: description.kind }) as unknown as Source,
                backend: () => ({}) as ModelOptions["backend"],
                open: async (_source, options) => {
                    options.onProgress?.({ phase: "load", file: "", loadedBytes: 1, totalBytes: 2 });
                    options.signal?.throwIfAborted();
                    return open();
                },
            });
            return Promise.resolve({
                send: (message) => {
                    requests.push(structuredClone(message as Request));
                    const copy = structuredClone(message as Request);
                    setTimeout(() => {
                        host.receive(copy);
                    });
                },
                listen: (onMessage: (message: Reply) => void, onEnd) => {
                    receive = onMessage as (message: unknown) => void;
                    ends.push(onEnd);
                },
                terminate: () => {
                    terminations++;
                    return Promise.resolve();
                },
            });
        },
    };
}

const source = { description: { kind: "fake" } } as unknown as Source;
const backend = { description: { kind: "fake" } } as unknown as ModelOptions["backend"];

async function openFake(): Promise<Model> {
    return openInWorker(source, { backend, worker: inThread(() => Promise.resolve(fakeModel())) });
}

describe("a model in a worker", () => {
    test("opens with progress, and gives facts, values and numbers", async () => {
        const progress: Progress[] = [];
        const model = await openInWorker(source, {
            backend,
            worker: inThread(() => Promise.resolve(fakeModel())),
            onProgress: (step) => progress.push(step),
        });
        expect(progress).toEqual([{ phase: "load", file: "", loadedBytes: 1, totalBytes: 2 }]);
        expect([model.where, model.hasTokenizer, model.hasChatTemplate]).toEqual(["fake", true, false]);
        expect(await model.encode("four")).toEqual([4]);
        expect(model.stats.generatedTokens).toBe(tokensMade);
    });

    test("streams the tokens of a session, whose ids follow", async () => {
        const model = await openFake();
        const session = await model.session();
        const seen: [number, number][] = [];
        for await (const token of session.stream([1, 2])) {
            seen.push([token.id, session.ids.length]);
        }
        expect(seen).toEqual([
            [100, 3],
            [101, 4],
            [102, 5],
        ]);
        const copy = await session.fork();
        await session.rewind(1);
        expect(session.ids).toEqual([1]);
        expect(copy.ids).toEqual([1, 2, 100, 101, 102]);
        expect(await copy.save()).toEqual(Uint8Array.of(1, 2, 100, 101, 102));
        expect(model.stats.generatedTokens).toBe(tokensMade);
    });

    test("throws the errors of the worker as errors of the same class", async () => {
        const model = await openFake();
        await expect(model.decode([9])).rejects.toThrow(new RequestError("id 9: too large"));
        await expect(model.encode("bug")).rejects.toThrow("TypeError: oops");
        const pieces: string[] = [];
        const reading = async (): Promise<void> => {
            for await (const piece of (await model.session()).text("x")) {
                pieces.push(piece);
            }
        };
        await expect(reading()).rejects.toThrow(BundleError);
        expect(pieces).toEqual(["a", "b"]);
    });

    test("ends a call and a stream with the reason of the signal", async () => {
        const model = await openFake();
        const reason = new Error("enough");
        const calling = new AbortController();
        const shares: number[] = [];
        const call = model.selftest({ signal: calling.signal, onProgress: (done) => shares.push(done) });
        setTimeout(() => {
            calling.abort(reason);
        }, 20);
        await expect(call).rejects.toBe(reason);
        expect(shares).toEqual([0.5]);

        const streaming = new AbortController();
        const stream = (await model.session()).stream([1], { maxNewTokens: 1000, signal: streaming.signal });
        await stream.next();
        streaming.abort(reason);
        await expect(stream.next()).rejects.toBe(reason);
        await expect(model.selftest({ signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    });

    test("tells the worker that a stream was left", async () => {
        const worker = inThread(() => Promise.resolve(fakeModel()));
        const model = await openInWorker(source, { backend, worker });
        const session = await model.session();
        for await (const token of session.stream([1], { maxNewTokens: 1000 })) {
            expect(token.id).toBe(100);
            break;
        }
        expect(worker.requests.at(-1)).toMatchObject({ operation: { do: "return" } });
    });

    test("ends running calls when the worker ends", async () => {
        const worker = inThread(() => Promise.resolve(fakeModel()));
        const model = await openInWorker(source, { backend, worker });
        const call = model.selftest();
        worker.end(new Error("out of memory"));
        await expect(call).rejects.toThrow(new ProviderError("the worker ended: out of memory; open the model again"));
        await expect(model.encode("x")).rejects.toThrow(ProviderError);
    });

    test("terminates a worker whose script fails; its objects can still be closed", async () => {
        const worker = inThread(() => Promise.resolve(fakeModel()));
        const model = await openInWorker(source, { backend, worker });
        const session = await model.session();
        const stream = session.stream([1]);
        await stream.next();
        worker.end(new Error("a defect"));
        expect(worker.terminations()).toBe(1);
        await expect(stream.next()).rejects.toThrow(ProviderError);
        await session.close();
        await model.close();
    });

    test("ends a call whose listener throws, in the worker too", async () => {
        const worker = inThread(() => Promise.resolve(fakeModel()));
        const model = await openInWorker(source, { backend, worker });
        const reason = new Error("my own defect");
        const call = model.selftest({
            onProgress: () => {
                throw reason;
            },
        });
        await expect(call).rejects.toBe(reason);
        expect(worker.requests.at(-1)).toEqual({ abort: 1 });
    });

    test("refuses calls of a closed session, which may be closed again", async () => {
        const session = await (await openFake()).session();
        await session.close();
        await session.close();
        await expect(session.rewind(0)).rejects.toThrow(RequestError);
        await expect(session.stream([1]).next()).rejects.toThrow(RequestError);
    });

    test("refuses calls after close, and arguments that cannot be sent", async () => {
        const model = await openFake();
        await expect(model.encode((() => "x") as unknown as string)).rejects.toThrow(/an argument cannot be sent/);
        await model.close();
        await model.close();
        await expect(model.encode("x")).rejects.toThrow("the model is closed");
    });

    test("refuses sources that only work in the caller's thread", async () => {
        const worker = inThread(() => Promise.resolve(fakeModel()));
        await expect(openInWorker({} as Source, { backend, worker })).rejects.toThrow(
            /source: .*without a description/,
        );
    });

    test("passes on why the worker cannot open the model", async () => {
        const worker = inThread(() => Promise.reject(new BundleError("manifest.json: not found")));
        await expect(openInWorker(source, { backend, worker })).rejects.toThrow("manifest.json: not found");
    });
});
