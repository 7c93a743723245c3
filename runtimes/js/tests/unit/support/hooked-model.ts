/** Models of conformance bundles whose reads and graph calls a test can watch, delay, change or let fail. */

import type { Model, WorkerFactory } from "../../../src/api.js";
import type { Backend, GraphSession } from "../../../src/backend.js";
import { onnxruntimeNode } from "../../../src/backends/onnxruntime-node.js";
import { Model as Models } from "../../../src/model.js";
import type { OpenOptions } from "../../../src/options.js";
import type { Source } from "../../../src/source.js";
import { nodeFolder } from "../../../src/sources/node-folder.js";
import { Host } from "../../../src/worker/host.js";
import type { Request } from "../../../src/worker/messages.js";
import { bundlePath } from "./run-cases.js";

/** What a test does in the calls. A missing function does nothing. */
export interface Hooks {
    /** Called with the logits of a call of the graph, which it may change. */
    logits?: ((logits: Float32Array) => void | Promise<void>) | undefined;
    /** Called before records are read. */
    read?: ((rows: readonly number[]) => void | Promise<void>) | undefined;
    /** Called before a file is read whole. */
    load?: ((name: string) => void) | undefined;
    /** Caches that were created and not yet released; a cache that is released twice counts twice. */
    caches?: number;
    /** How often the graph and the source were released. */
    graphReleases?: number;
    sourceCloses?: number;
}

export type Place = "thread" | "worker";
export const places: readonly Place[] = ["thread", "worker"];

/** Open a bundle in this thread, or over the messages of a worker that also runs in this thread. */
export function openHooked(
    bundle: string,
    hooks: Hooks = {},
    place: Place = "thread",
    options: OpenOptions = {},
): Promise<Model> {
    const source = hookedSource(bundle, hooks);
    const backend = hookedBackend(hooks);
    return Models.open(source, {
        ...options,
        backend,
        ...(place === "worker" && { worker: inThread(source, backend) }),
    });
}

function hookedSource(bundle: string, hooks: Hooks): Source {
    const real = nodeFolder(bundlePath(bundle));
    const changed: Partial<Source> = {
        load: (file, options) => {
            hooks.load?.(file.name);
            return real.load(file, options);
        },
        openTable: async (table) => {
            const reader = await real.openTable(table);
            return {
                read: async (rows, options) => {
                    await hooks.read?.(rows);
                    return reader.read(rows, options);
                },
                close: () => reader.close(),
            };
        },
        close: () => {
            hooks.sourceCloses = (hooks.sourceCloses ?? 0) + 1;
            return real.close();
        },
    };
    return proxied(real, changed);
}

function hookedBackend(hooks: Hooks): Backend {
    const real = onnxruntimeNode({ threads: 1 });
    return proxied(real, {
        load: async (files) => {
            const graph = await real.load(files);
            const changed: Partial<GraphSession> = {
                createCache: (batchSize, slots) => {
                    hooks.caches = (hooks.caches ?? 0) + 1;
                    const cache = graph.createCache(batchSize, slots);
                    const release = cache.release.bind(cache);
                    cache.release = () => {
                        hooks.caches = hooks.caches! - 1;
                        release();
                    };
                    return cache;
                },
                run: async (call) => {
                    const logits = (await graph.run(call)).slice();
                    await hooks.logits?.(logits);
                    return logits;
                },
                release: () => {
                    hooks.graphReleases = (hooks.graphReleases ?? 0) + 1;
                    return graph.release();
                },
            };
            return proxied(graph, changed);
        },
    });
}

/** Return an object with some methods in the place of its own. */
function proxied<T extends object>(real: T, changed: Partial<T>): T {
    return new Proxy(real, {
        get(target, name) {
            const value: unknown = Reflect.get(name in changed ? changed : target, name);
            return typeof value === "function" ? (value.bind(target) as unknown) : value;
        },
    });
}

/** A worker that runs in this thread. Messages are cloned, as between threads. */
function inThread(source: Source, backend: Backend): WorkerFactory {
    return {
        start: () => {
            let receive: (message: unknown) => void;
            const host = new Host({
                send: (reply) => {
                    const copy: unknown = structuredClone(reply);
                    setTimeout(() => {
                        receive(copy);
                    });
                },
                source: () => source,
                backend: () => backend,
                open: (given, options) => Models.open(given, options),
            });
            return Promise.resolve({
                send: (message) => {
                    const copy = structuredClone(message as Request);
                    setTimeout(() => {
                        host.receive(copy);
                    });
                },
                listen: (onMessage) => {
                    receive = onMessage;
                },
                terminate: () => Promise.resolve(),
            });
        },
    };
}

/** Return the ids of tokens. */
export async function idsOf(tokens: AsyncIterable<{ readonly id: number }>): Promise<number[]> {
    const ids: number[] = [];
    for await (const { id } of tokens) ids.push(id);
    return ids;
}
