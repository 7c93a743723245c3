/** Workers of Node (worker_threads). */

import { Worker } from "node:worker_threads";

import type { WorkerFactory, WorkerPort } from "../api.js";
import { ProviderError } from "../errors.js";

/**
 * Return a factory for `Model.open`'s option `worker`.
 *
 * @param options.url The script of the worker; default: this package's own. A bundler may need another address.
 */
export function nodeWorker(options: { readonly url?: URL | string | undefined } = {}): WorkerFactory {
    const url = options.url ?? new URL("../node-worker.js", import.meta.url);
    return { start: () => Promise.resolve(port(url)) };
}

function port(url: URL | string): WorkerPort {
    let worker: Worker;
    try {
        worker = new Worker(typeof url === "string" ? new URL(url) : url);
    } catch (error) {
        const why = error instanceof Error ? error.message : String(error);
        throw new ProviderError(`${String(url)}: the worker cannot be started: ${why}`, { cause: error });
    }
    return {
        send: (message) => {
            worker.postMessage(message);
        },
        listen: (onMessage, onEnd) => {
            worker.on("message", onMessage);
            worker.on("error", onEnd);
            worker.on("messageerror", onEnd);
            worker.on("exit", (code) => {
                onEnd(new Error(`exit code ${code}`));
            });
        },
        terminate: async () => {
            await worker.terminate();
        },
    };
}
