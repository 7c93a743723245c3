/** Workers of browsers. */

import type { WorkerFactory, WorkerPort } from "../api.js";
import { ProviderError } from "../errors.js";

/**
 * Return a factory for `Model.open`'s option `worker`.
 *
 * @param options.url The script of the worker; default: this package's own, in the form that bundlers recognize.
 */
export function webWorker(options: { readonly url?: URL | string | undefined } = {}): WorkerFactory {
    const start = (): Worker =>
        options.url === undefined
            ? new Worker(new URL("../web-worker.js", import.meta.url), { type: "module" })
            : new Worker(options.url, { type: "module" });
    return {
        start: () =>
            new Promise((resolve) => {
                resolve(port(started(start)));
            }),
    };
}

function started(start: () => Worker): Worker {
    try {
        return start();
    } catch (error) {
        const why = error instanceof Error ? error.message : String(error);
        throw new ProviderError(`the worker cannot be started: ${why}`, { cause: error });
    }
}

function port(worker: Worker): WorkerPort {
    return {
        send: (message) => {
            worker.postMessage(message);
        },
        listen: (onMessage, onEnd) => {
            worker.addEventListener("message", (event) => {
                onMessage(event.data);
            });
            worker.addEventListener("error", (event) => {
                event.preventDefault();
                onEnd(new Error(event.message || "its script could not be loaded"));
            });
            worker.addEventListener("messageerror", () => {
                onEnd(new Error("one of its messages cannot be read"));
            });
        },
        terminate: () => {
            worker.terminate();
            return Promise.resolve();
        },
    };
}
